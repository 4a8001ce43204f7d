"""A spec as the text of a file of its own, which may lie anywhere on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchtrain.spec.data import FilesSplit
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.spec.model import CustomModel
from batchtrain.spec.resolved import document_yaml
from batchtrain.spec.written import in_written_order, written_document

__all__ = ["spec_text"]

NO_PATH = ("sample:", "custom:")
HUB = "hf:"
LOCAL = ("./", "../", "/")
"""What follows `hf:` begins so where it is a folder, as for `batchtrain.tables.discovery`."""

SOURCES = (
    ("data", "source"),
    ("data", "split", "train"),
    ("data", "split", "valid"),
    ("data", "split", "test"),
)


def spec_text(
    loaded: LoadedSpec,
    values: Mapping[str, Any],
    *,
    header: Sequence[str] = (),
    source: str | None = None,
    storage: str | None = None,
) -> str:
    """The spec of a trial as YAML, to be read by people and run as any other.

    It says what the user wrote, in that order, with the values put in and without `search`. Local
    paths are absolute in it, since they would count from another folder. A class of the user's
    (`custom:`, or a model of the kind `custom`) is still looked for beside the new file.

    Args:
        loaded: The spec with the `search` section.
        values: Those of the trial, by dotted key.
        header: Lines to begin with, as comments.
        source: What `data.source` is to be; left out, the same.
        storage: What `storage` is to be; left out, the same.

    Raises:
        SpecError: If the values do not go with the spec.
    """
    trial = with_values(loaded, values)
    document = in_written_order(written_document(trial.spec), loaded.places)
    # Written out even where it is a default, which counts from the spec file too.
    document["storage"] = trial.spec.storage
    base = loaded.path.parent
    for names in SOURCES if isinstance(trial.spec.data.split, FilesSplit) else SOURCES[:1]:
        _change(document, names, lambda text: _source(text, base))
    _change(document, ("storage",), lambda text: _home(text, base))
    _change(document, ("training", "warm_start", "bundle"), lambda text: _home(text, base))
    _change(document, ("tracking", "tensorboard", "dir"), lambda text: str(base / text))
    _change(document, ("tracking", "mlflow", "uri"), lambda text: _uri(text, base))
    if isinstance(trial.spec.model, CustomModel):
        for name in trial.spec.model.assets:
            _change(document, ("model", "assets", name), lambda text: str(base / text))
    if source is not None:
        document["data"]["source"] = source
    if storage is not None:
        document["storage"] = storage
    lines = [part for line in header for part in line.splitlines() or [""]]
    comments = "".join(f"# {_printable(line)}".rstrip() + "\n" for line in lines)
    return comments + document_yaml(document)


def _printable(line: str) -> str:
    """Without the characters that the spec reader refuses even in a comment."""
    return "".join(each if each.isprintable() else " " for each in line)


def _change(document: Any, names: Sequence[str], change: Callable[[str], str]) -> None:
    """Replace a text, in place, where there is one."""
    *sections, last = names
    for name in sections:
        document = document.get(name) if isinstance(document, dict) else None
    if isinstance(document, dict) and isinstance(document.get(last), str):
        document[last] = change(document[last])


def _source(text: str, base: Path) -> str:
    """As `batchtrain.tables` reads it."""
    if text.startswith(HUB):
        folder = text.removeprefix(HUB)
        return f"{HUB}{base / folder}" if folder.startswith(LOCAL) else text
    return text if text.startswith(NO_PATH) or "://" in text else str(base / text)


def _home(text: str, base: Path) -> str:
    return text if "://" in text else str(base / Path(text).expanduser())


def _uri(text: str, base: Path) -> str:
    """As `batchtrain.training.mlflow_log` reads it: what has a colon is no folder."""
    return text if ":" in text or text == "databricks" else str(base / text)
