"""Find the files of a data set on the Hugging Face hub, at a revision that the source names.

The files are read as they are there; no code of a data set is run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import yaml

from batchtrain.errors import DataError
from batchtrain.tables.formats import format_of

__all__ = ["Hub", "HubName", "HuggingFaceHub", "discover_on_hub"]

NAME = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)@(?P<rest>[^@]+)")
REVISION = re.compile(r"(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)(?P<path>(?:/[^/]+)*)")
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", flags=re.DOTALL | re.MULTILINE)

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The split of a file whose path has one of these words, as the hub itself takes it:
https://huggingface.co/docs/hub/datasets-file-names-and-splits"""

README = "README.md"
INSTALL = "pip install 'batchtrain[hf]'"


@dataclass(frozen=True)
class HubName:
    """A data set of the hub, and what of it is meant.

    Attributes:
        repository: Such as `org/name`.
        revision: A commit, a tag or a branch; only a commit stays what it is.
        path: The subset, the split, both or neither.
    """

    repository: str
    revision: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> HubName:
        """Take `hf:org/name@revision`, with `/subset`, `/split` or `/subset/split` behind it.

        Raises:
            DataError: If it has no revision, or cannot be such a name.
        """
        name = NAME.fullmatch(source.removeprefix("hf:"))
        rest = REVISION.fullmatch(name["rest"]) if name else None
        if name is None or rest is None or rest["path"].count("/") > 2:
            missing = "@" not in source
            raise DataError(
                f"source {source!r}: expected hf:NAME@REVISION, or hf:NAME@REVISION/SPLIT, found "
                f"{'no revision' if missing else 'another text'}. Name a revision, best a commit, "
                "so that the rows stay the same; a folder begins with hf:./"
            )
        path = tuple(part for part in rest["path"].split("/") if part)
        return cls(name["repository"], rest["revision"], path)


class Hub(Protocol):
    """The hub as it is used here."""

    def files(self, repository: str, revision: str) -> Sequence[str]:
        """The paths of all files of a data set."""
        ...

    def download(self, repository: str, revision: str, name: str) -> Path:
        """A local copy of one file."""
        ...


class HuggingFaceHub:
    """The hub itself, by `huggingface_hub`, which keeps what it has downloaded."""

    def files(self, repository: str, revision: str) -> Sequence[str]:
        """See `Hub.files`."""
        with _asking(repository, revision, "the list of files"):
            found = (
                _library()
                .HfApi()
                .list_repo_files(repository, repo_type="dataset", revision=revision)
            )
        return list(map(str, found))

    def download(self, repository: str, revision: str, name: str) -> Path:
        """See `Hub.download`."""
        with _asking(repository, revision, name):
            found = _library().hf_hub_download(
                repository, name, repo_type="dataset", revision=revision
            )
        return Path(found)


def _library() -> Any:
    """`huggingface_hub`, which is an extra: few data sets come from there."""
    return importlib.import_module("huggingface_hub")


@contextmanager
def _asking(repository: str, revision: str, what: str) -> Iterator[None]:
    """Say of any failure what was asked for; the errors are those of several libraries.

    Raises:
        DataError: If the library is missing, or the block fails.
    """
    instead = "save the data set to a folder and name that as hf:./FOLDER"
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f"hf:{repository}@{revision}: expected the package huggingface_hub, which reads from "
            f"the hub, found none. Install it with {INSTALL}, or {instead}"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise DataError(
            f"hf:{repository}@{revision}: expected to read {what} from the Hugging Face hub, found "
            f"{type(error).__name__}: {lines[0][:300]}. Look at the name, the revision and the "
            f"network; without one, {instead}"
        ) from error


HUB: Hub = HuggingFaceHub()


def discover_on_hub(source: str, hub: Hub | None = None) -> dict[str, dict[str, Path]]:
    """Download the files of a data set, or of one split of it.

    Args:
        source: See `HubName.parse`.
        hub: Where to ask; left out, the hub itself.

    Returns:
        Name of a split to its files, by their paths there in the order of the rows; the one split
        that was asked for, or a data set without splits, has the name "".

    Raises:
        DataError: If the name is none, or there is no such subset, split or network.
    """
    hub = hub or HUB
    wanted = HubName.parse(source)
    all_names = sorted(hub.files(wanted.repository, wanted.revision), key=str.encode)
    names = [name for name in all_names if format_of(name) and not _is_hidden(name)]
    splits, rest = _declared(hub, wanted, names) if README in all_names else ({}, wanted.path)
    if not splits:
        splits = _by_keyword(names)
    if len(rest) > 1:
        raise _nothing(source, "/".join(rest), splits)
    if rest:
        if rest[0] not in splits:
            raise _nothing(source, rest[0], splits)
        splits = {"": splits[rest[0]]}
    if not any(splits.values()):
        raise _nothing(source, "a file of rows", dict.fromkeys(all_names[:10]))
    return {
        split: {name: hub.download(wanted.repository, wanted.revision, name) for name in files}
        for split, files in splits.items()
    }


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _by_keyword(names: Sequence[str]) -> dict[str, list[str]]:
    """Split to files, by the words in their paths; without any word all are one data set."""
    splits: dict[str, list[str]] = {}
    for name in names:
        words = set(re.split(r"[-._ /0-9]+", name.lower()))
        found = [split for split, keywords in KEYWORDS.items() if not words.isdisjoint(keywords)]
        splits.setdefault(found[0] if found else "", []).append(name)
    return splits


def _declared(
    hub: Hub, wanted: HubName, names: Sequence[str]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The splits that the data set's card declares, and what of the path is left to find.

    https://huggingface.co/docs/hub/datasets-manual-configuration
    """
    subsets = _subsets(hub.download(wanted.repository, wanted.revision, README))
    if not subsets:
        return {}, wanted.path
    path = wanted.path
    if path and path[0] in subsets:
        chosen, path = subsets[path[0]], path[1:]
    elif len(subsets) == 1 or "default" in subsets:
        chosen = subsets.get("default") or next(iter(subsets.values()))
    else:
        raise DataError(
            f"hf:{wanted.repository}@{wanted.revision}: expected a subset, since the data set has "
            f"several, found {'/'.join(path) or 'none'}. Name one as "
            f"hf:{wanted.repository}@{wanted.revision}/SUBSET: {', '.join(subsets)}"
        )
    return {
        split: [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
        for split, patterns in chosen.items()
    }, path


def _subsets(readme: Path) -> dict[str, dict[str, list[str]]]:
    """Subset to split to patterns of paths; empty where the card declares none."""
    text = FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace"))
    try:
        card = yaml.safe_load(text[1]) if text else None
    except yaml.YAMLError:
        card = None
    configs = card.get("configs") if isinstance(card, dict) else None
    subsets = {}
    for each in configs if isinstance(configs, list) else []:
        files = each.get("data_files") if isinstance(each, dict) else None
        if files is not None:
            subsets[str(each.get("config_name", "default"))] = _patterns(files)
    return subsets


def _patterns(files: Any) -> dict[str, list[str]]:
    """Split to patterns, of a path, a list of paths, or a list of splits with paths."""
    if isinstance(files, dict):
        return {str(split): _texts(paths) for split, paths in files.items()}
    entries = files if isinstance(files, list) else [files]
    if all(isinstance(each, dict) for each in entries):
        return {str(each.get("split", "train")): _texts(each.get("path")) for each in entries}
    return {"": _texts(entries)}


def _texts(paths: Any) -> list[str]:
    every: Iterable[Any] = paths if isinstance(paths, list) else [paths]
    return [str(path).removeprefix("./") for path in every if path is not None]


def _nothing(source: str, wanted: str, splits: Mapping[str, object]) -> DataError:
    listed = ", ".join(name or "one without a name" for name in splits) or "nothing"
    return DataError(
        f"source {source!r}: expected {wanted} in it, found {listed}. "
        "Name a subset or split that is there"
    )
