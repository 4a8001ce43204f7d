"""A commented starter spec from a table, for `init`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from batchtrain.cli.outcome import plain
from batchtrain.errors import DataError, Problem, SpecError
from batchtrain.preparation.survey import Survey, survey
from batchtrain.preparation.suspicion import suspicions
from batchtrain.spec.data import DEFAULT_NULL_VALUES, DataSpec
from batchtrain.spec.model import MlpModel
from batchtrain.spec.resolved import spec_yaml
from batchtrain.spec.training import TrainingSpec
from batchtrain.tables import Unsupported, open_source

__all__ = ["starter_text", "write_starter"]

HEADER = """\
# Written by `batchtrain init` after reading all {rows} rows.
# Every key that is left out has a default: `batchtrain check SPEC --resolved` prints them all.
"""
ABOUT_DATA = """
# What the rows are. `columns` is what was found; a line that is taken out is inferred again.
# List columns that must not be learned from (identifiers) under `exclude`.
# A cell means "missing" if it is one of `null_values`; left out, these are
# {nulls}
"""
ABOUT_MODEL = """
# Also: linear, resnet, cnn (columns that are pixels), or custom with a class of yours.
"""
SHOWN_OF_MODEL = {"kind", "hidden", "activation", "dropout"}
ABOUT_EVALUATION = """
# A model that misses a threshold here is not exported.
# evaluation: {{require: {{{metric}: ">= 0.8"}}}}
"""


def write_starter(data: str, target: str, out: Path | None) -> tuple[Path, list[str]]:
    """Look at the whole table and write a spec for it.

    Args:
        data: As `data.source`, relative to the working directory.
        target: The column to predict.
        out: Where to write; left out, `<name>.yaml` in the working directory.

    Returns:
        Where it was written, and a sentence for each column that should be looked at.

    Raises:
        DataError: If the file exists or the table cannot be used.
        SpecError: If the target is not in the table.
    """
    name = _name(data)
    path = out or Path(f"{name}.yaml")
    _refuse_existing(path)
    source = open_source(data, base=Path.cwd(), null_values=DEFAULT_NULL_VALUES)
    section = DataSpec(source=_relative(data, path), target=target)
    try:
        found = survey(section, source, seed=42, where=lambda _key: data, leave_out_unread=True)
    except SpecError as error:
        raise SpecError([_for_the_command(problem) for problem in error.problems]) from None
    notes = suspicions(found)
    text = starter_text(name, section.source, found, notes)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_existing(path)
    except OSError as error:
        raise DataError(
            f"--out: expected a place to write {path} to, found {error.strerror}. "
            "Choose an existing folder"
        ) from error
    return path, notes


def starter_text(name: str, source: str, found: Survey, notes: Sequence[str] = ()) -> str:
    """The spec with its most useful keys; a column that was found is listed with its kind.

    Args:
        name: Of the run.
        source: As `data.source`.
        found: What the table holds.
        notes: What should be looked at; they become comments.
    """
    data: dict[str, Any] = {
        "source": source,
        "target": found.data.target,
        "task": found.data.task,
        "columns": {
            column: {"kind": spec.kind, "missing": spec.missing}
            | ({"scale": spec.scale} if spec.kind == "numeric" else {})
            for column, spec in found.data.columns.items()
        },
        **({"exclude": list(found.data.exclude)} if found.data.exclude else {}),
        "split": found.data.split.model_dump(mode="json") if found.data.split else None,
    }
    metric = "accuracy" if found.task == "classification" else "r2"
    defaults = TrainingSpec()
    training = {
        "epochs": defaults.epochs,
        "optimizer": defaults.optimizer.model_dump(include={"kind", "lr"}),
        "schedule": {"kind": "plateau", "factor": 0.1, "patience": 5},
        "early_stopping": {"patience": 12},
    }
    model = MlpModel(kind="mlp")
    parts = [
        HEADER.format(rows=found.schema.num_rows),
        spec_yaml({"version": 1, "name": name}),
        ABOUT_DATA.format(nulls=", ".join(map(repr, DEFAULT_NULL_VALUES))),
        *_about_excluded(found),
        *(_comment(f"Look at this: {note}.") for note in notes),
        spec_yaml({"data": data}),
        ABOUT_MODEL,
        spec_yaml({"model": model.model_dump(mode="json", include=SHOWN_OF_MODEL)}),
        "\n",
        spec_yaml({"training": training}),
        ABOUT_EVALUATION.format(metric=metric),
    ]
    return "".join(parts)


def _about_excluded(found: Survey) -> Iterator[str]:
    """Why columns are excluded, a line for each."""
    for name in found.data.exclude:
        column = found.schema.columns[name]
        held = column.arrow_type if isinstance(column, Unsupported) else column
        yield _comment(f"Excluded: {name!r} holds {held}, which is read as no kind by itself.")
    if found.data.exclude:
        yield _comment("Convert such a column to numbers, names, or true and false to use it;")
        yield _comment("lists and images can be declared: docs/columns.md.")


def _comment(text: str) -> str:
    """A line of a comment, whatever characters the text has."""
    return f"# {plain(' '.join(text.split()))}\n"


def _for_the_command(problem: Problem) -> Problem:
    """Name the option of `init` where the problem is with a key of a spec."""
    option = "--target" if problem.key.startswith("data.target") else problem.key
    return Problem("init", option, problem.message, problem.hint)


def _name(data: str) -> str:
    stem = Path(data.removeprefix("sample:")).name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:63].rstrip("-") or "table"


def _relative(data: str, spec: Path) -> str:
    """The source as seen from the spec's folder; an absolute one elsewhere stays absolute."""
    if data.startswith("sample:"):
        return data
    if data.startswith("hf:"):
        text = data.removeprefix("hf:")
        if not text.startswith(("./", "../", "/")):
            return data
        inner = _relative(text, spec)
        return f"hf:{inner if inner.startswith(('../', '/')) else './' + inner}"
    where, folder = Path.cwd() / data, spec.absolute().parent
    if where.is_relative_to(folder):
        return str(where.relative_to(folder))
    return data if Path(data).is_absolute() else os.path.relpath(where, folder)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise DataError(
            f"init: expected a file that does not exist yet, found {str(path)!r}. "
            "Choose another name with --out"
        )
