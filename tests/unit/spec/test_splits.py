"""Splits in a spec: which sections agree with them, and where a source may be left out."""

from __future__ import annotations

import pytest

from batchtrain.errors import SpecError
from batchtrain.spec.data import SPLITS, may_have_rows, split_column
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.spec.resolved import resolved_document, spec_yaml

HEAD = "version: 1\nname: tiny\ndata:\n  target: y\n"


def load(split: str, *more: str, source: str = "  source: a.csv\n") -> LoadedSpec:
    return parse_spec(f"{HEAD}{source}  split: {split}\n" + "\n".join(more), "spec.yaml")


def problems(split: str, *more: str, source: str = "  source: a.csv\n") -> str:
    with pytest.raises(SpecError) as caught:
        load(split, *more, source=source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("split", "splits", "column"),
    [
        ("{kind: time, column: t}", "train valid test", "t"),
        ("{kind: group, column: g, fractions: {train: 0.8, test: 0.2}}", "train test", "g"),
        ("{kind: column, column: f}", "train valid test", "f"),
        ("{kind: column, column: f, train: [a, 1, true]}", "train", "f"),
        ("{kind: source}", "train valid test", None),
        ("{kind: ordered, fractions: {train: 1}}", "train", None),
    ],
)
def test_a_rule_says_which_splits_it_fills_and_what_it_reads(
    split: str, splits: str, column: str | None
) -> None:
    rule = load(split).spec.data.split
    assert rule is not None
    assert [each for each in SPLITS if may_have_rows(rule, each)] == splits.split()
    assert split_column(rule) == column


def test_with_files_the_source_is_the_training_files_and_need_not_be_written() -> None:
    split = "{kind: files, train: a.csv, test: b.csv}"
    for source in ("", "  source: a.csv\n"):
        data = load(split, source=source).spec.data
        assert data.source == "a.csv"
        assert data.split is not None
        assert not may_have_rows(data.split, "valid")
    assert "`source` differs" in problems(split, source="  source: b.csv\n")
    assert "'source' is missing" in problems("{kind: random}", source="")
    assert "'train' is missing" in problems("{kind: files, test: b.csv}", source="")


def test_the_resolved_spec_of_files_is_read_again() -> None:
    spec = load("{kind: files, train: a.csv, test: b.csv}", source="").spec
    # Who prepared the same rows first may have had them in another place.
    first = load("{kind: files, train: old/a.csv, test: old/b.csv}", source="").spec
    document = resolved_document(
        spec,
        data={**first.data.model_dump(mode="json"), "task": "regression"},
        batch_rows=32,
        loss="mse",
        metrics=["rmse"],
        device="cpu",
        workers=1,
    )
    again = parse_spec(spec_yaml({key: document[key] for key in ("version", "name", "data")}), "s")
    assert again.spec.data.split == spec.data.split


@pytest.mark.parametrize(
    ("split", "fragment"),
    [
        ("{kind: column, column: y}", "is the target"),
        ("{kind: column, column: f, test: [a]}", "`train` lists no value"),
        ("{kind: column, column: f, train: [a, 1], test: ['1']}", "'1' twice"),
        ("{kind: column, column: f, train: []}", "train"),
        ("{kind: column, column: f, train: [1.5]}", "1.5"),
        ("{kind: time}", "'column' is missing"),
        ("{kind: time, column: t, seed: 1}", "seed"),
        ("{kind: files, train: s3://b/a.csv}", "not built yet"),
        ("{kind: files, train: a.csv, test: 'https://h/b.csv'}", "data.split.test"),
        ("{kind: colum, column: f}", "Did you mean 'column'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(split: str, fragment: str) -> None:
    source = "" if "files" in split else "  source: a.csv\n"
    assert fragment in problems(split, source=source)


def test_a_column_that_is_declared_cannot_name_the_splits() -> None:
    text = problems("{kind: column, column: f}", "  columns: {f: {kind: numeric}}")
    assert "no feature" in text
    load("{kind: group, column: f}", "  columns: {f: {kind: numeric}}")


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ("{kind: files, train: a.csv, test: b.csv}", "names no rows for valid"),
        ("{kind: column, column: f, train: [a], test: [b]}", "names no rows for valid"),
        ("{kind: time, column: t, fractions: {train: 1}}", "fractions.valid` is 0"),
    ],
)
def test_what_follows_the_validation_loss_needs_rows_for_it(split: str, why: str) -> None:
    assert why in problems(split, "training: {early_stopping: {patience: 3}}")
    load(split)
    kept = split.replace("test: b.csv", "valid: b.csv").replace("test: [b]", "valid: [b]")
    if kept != split:
        load(kept, "training: {early_stopping: {patience: 3}}")
