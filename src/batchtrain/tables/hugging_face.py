"""Find the files of a data set as the Hugging Face `datasets` library keeps it, without it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from batchtrain.errors import DataError, UnsafeInputError
from batchtrain.spec.data import SPLITS
from batchtrain.tables.discovery import LOCAL, Discovery
from batchtrain.tables.hub import discover_on_hub

__all__ = ["discover_hugging_face", "is_hugging_face"]

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "validation": "valid",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
"""The name of a split there to its name here."""

STATE = "state.json"
DICT = "dataset_dict.json"
MAX_STATE_BYTES = 16 << 20


def is_hugging_face(source: str) -> bool:
    """Whether a source is a data set of Hugging Face, in a folder or on the hub."""
    return source.startswith("hf:")


def discover_hugging_face(source: str, base: Path) -> Discovery:
    """Find the files of `hf:./FOLDER`, which `save_to_disk` wrote, or of a name of the hub.

    The files of a folder come in the order of its `state.json`, which is that of the rows. A
    folder of several splits (`dataset_dict.json`) gives them in the order train, valid, test.

    Args:
        source: `hf:` and a folder that begins with `./`, `../` or `/`; else see `hub`.
        base: What a relative folder starts from.

    Raises:
        DataError: If this is no such folder, or has a split of another name.
        UnsafeInputError: If it names files outside of it.
    """
    text = source.removeprefix("hf:")
    if not text.startswith(LOCAL):
        return with_splits(source, discover_on_hub(source))
    folder = base / text
    if (folder / STATE).is_file():
        return Discovery(_data_files(folder))
    if not (folder / DICT).is_file():
        what = "no such folder" if not folder.is_dir() else f"neither {STATE} nor {DICT}"
        raise DataError(
            f"source {source!r}: expected a folder that `save_to_disk` of the datasets library "
            f"wrote, found {what} at {folder}. Files of other kinds are named without `hf:`"
        )
    names = _list_of_text(folder / DICT, "splits")
    return with_splits(source, {name: _data_files(_inside(folder, name)) for name in names})


def with_splits(source: str, files_of: Mapping[str, Mapping[str, Path]]) -> Discovery:
    """Put the files of all splits in one order.

    Args:
        source: As it was written, for messages.
        files_of: Name of a split, as it is called there, to its files; one without a name is
            the whole data set.

    Raises:
        DataError: If a split has another name, two are the same split, or there is no `train`.
    """
    if list(files_of) == [""]:
        return Discovery(dict(files_of[""]))
    names = {SPLIT_NAMES.get(name, ""): name for name in files_of}
    listed = ", ".join(name or "files without one" for name in files_of)
    if "" in names or "train" not in names or len(names) < len(files_of):
        raise DataError(
            f"source {source!r}: expected the splits train, validation and test, or some of them "
            f"with train, found {listed}. Name one as {f'{source}/SPLIT'!r}, or several under "
            "`data.split: {kind: files}`"
        )
    order = [(split, files_of[names[split]]) for split in SPLITS if split in names]
    return Discovery(
        files={f"{split}/{name}": path for split, files in order for name, path in files.items()},
        splits=tuple(split for split, files in order for _ in files),
    )


def _data_files(folder: Path) -> dict[str, Path]:
    """The files of one split, in the order of the rows."""
    state = folder / STATE
    if not state.is_file():
        raise DataError(
            f"{folder}: expected {STATE} and Arrow files, as `save_to_disk` writes them, found "
            f"no {STATE}. Save the data set again"
        )
    document = _document(state)
    if document.get("_indices_data_files"):
        raise DataError(
            f"{state}: expected rows in the order of the files, found an index (_indices_data_files"
            ") of an old version. Call `flatten_indices()` and save the data set again"
        )
    entries = document.get("_data_files")
    entries = entries if isinstance(entries, list) else []
    names = [each.get("filename") for each in entries if isinstance(each, dict)]
    if not names or len(names) != len(entries) or len(set(map(str, names))) < len(names):
        raise DataError(
            f"{state}: expected a list of different files under _data_files, found "
            f"{str(entries)[:200]}. Save the data set again"
        )
    return {str(name): _regular(_inside(folder, name)) for name in names}


def _inside(folder: Path, name: Any) -> Path:
    """An entry of a folder that a file in it names."""
    if not isinstance(name, str) or PurePosixPath(name).name != name or name in {"", ".", ".."}:
        raise UnsafeInputError(
            f"{folder}: expected names of entries of this folder, found {str(name)[:200]!r}. "
            "Save the data set again"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeInputError(
            f"{path}: expected an entry of this folder, found a link to "
            f"{str(path.resolve())!r}. Save the data set again"
        )
    return path


def _regular(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(
            f"{path}: expected the file that {STATE} names, found: {error.strerror}. "
            "Save the data set again"
        ) from error
    if not stat.S_ISREG(mode):
        raise UnsafeInputError(
            f"{path}: expected a regular file, found something else. Save the data set again"
        )
    return path


def _list_of_text(path: Path, key: str) -> Iterable[str]:
    names = _document(path).get(key)
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{path}: expected a list under {key!r}, found {str(names)[:200]}. "
            "Save the data set again"
        )
    return list(map(str, names))


def _document(path: Path) -> dict[str, Any]:
    problem = ""
    document = None
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_STATE_BYTES))
    except OSError as error:
        problem = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: expected a JSON object, found {problem or 'another value'}. "
            "Save the data set again"
        )
    return document
