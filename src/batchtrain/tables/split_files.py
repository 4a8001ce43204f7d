"""Open a source whose splits are files of their own: train, then valid, then test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from batchtrain.errors import DataError
from batchtrain.spec.data import SPLITS
from batchtrain.tables.source import Source, open_source

__all__ = ["open_splits"]


def open_splits(sources: Mapping[str, str], *, base: Path, null_values: Sequence[str]) -> Source:
    """Open one source for each split as one; its rows are numbered through all of them.

    Args:
        sources: Split to source, as for `open_source`; some of train, valid and test.
        base: The folder that relative sources start from.
        null_values: As for `open_source`.

    Returns:
        The files of train, valid and test in this order; their names begin with their split.

    Raises:
        DataError: If a source cannot be opened, has splits of its own or is a sample, formats
            are mixed, or a file is in two splits.
        UnsafeInputError: As `open_source`.
    """
    opened = {
        split: open_source(sources[split], base=base, null_values=null_values)
        for split in SPLITS
        if split in sources
    }
    for split, source in opened.items():
        if source.splits or source.kind == "sample":
            what = "a built-in sample" if source.kind == "sample" else "several splits in one"
            raise DataError(
                f"data.split.{split}: expected files of rows, found {what} in {source.text!r}. "
                + ("Name one split of it" if source.splits else "Write it to a file first")
            )
    _require_one_format(opened)
    _require_different_files(opened)
    first = next(iter(opened.values()))
    files = [(split, file) for split, source in opened.items() for file in source.files]
    return replace(
        first,
        text=", ".join(source.text for source in opened.values()),
        files=tuple(replace(file, name=f"{split}/{file.name}") for split, file in files),
        skipped=tuple(
            f"{split}/{name}" for split, source in opened.items() for name in source.skipped
        ),
        splits=tuple(split for split, _ in files),
    )


def _require_one_format(opened: Mapping[str, Source]) -> None:
    kinds = {source.kind: split for split, source in opened.items()}
    if len(kinds) > 1:
        found = " and ".join(f"{kind} ({opened[split].text!r})" for kind, split in kinds.items())
        raise DataError(
            f"data.split: expected files of one format in all splits, found {found}. "
            "Convert some of them"
        )


def _require_different_files(opened: Mapping[str, Source]) -> None:
    """A row in two splits would be learned and then tested."""
    seen: dict[tuple[int, int], str] = {}
    for split, source in opened.items():
        for file in source.files:
            about = file.path.stat()
            key = (about.st_dev, about.st_ino)
            other = seen.setdefault(key, split)
            if other != split:
                raise DataError(
                    f"data.split: expected each file in one split, found {file.path} in {other} "
                    f"and in {split}. Name different files"
                )
