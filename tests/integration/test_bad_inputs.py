"""Every bad spec and bad table ends in a typed error, exit code 2, and nothing written."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.tables import write_sample

GOOD = {
    "version": 1,
    "name": "good",
    "data": {"source": "rows.csv", "target": "Drug"},
    "training": {"epochs": 1},
}


def _data(**changes: object) -> dict[str, object]:
    """The good `data` section with other keys."""
    return {"data": {"source": "rows.csv", "target": "Drug", **changes}}


# What is merged into the good spec (None takes a key away), and what the message must say.
BAD_SPECS: list[tuple[dict[str, object], list[str]]] = [
    ({"version": 2}, ["version", "1"]),
    ({"version": None}, ["version"]),
    ({"name": None}, ["name"]),
    ({"name": "../evil"}, ["name", "lower-case"]),
    ({"name": "Upper"}, ["name", "lower-case"]),
    ({"seed": -1}, ["seed", "0"]),
    ({"seed": "42"}, ["seed", "quotes"]),
    ({"sede": 1}, ["sede", "seed"]),
    ({"engine": "rya"}, ["engine", "Did you mean"]),
    ({"determinism": "canonicle"}, ["determinism", "canonical"]),
    ({"retries": {"lost_worker": -3}}, ["retries.lost_worker", "from 0"]),
    ({"search": {"trials": 3}}, ["search.space", "missing"]),
    ({"storage": "s3://user:secret@bucket/runs"}, ["storage"]),
    ({"data": None}, ["data"]),
    ({"data": {"source": "rows.csv"}}, ["data.target"]),
    ({"data": {"target": "Drug"}}, ["data.source"]),
    ({"data": {"source": "rows.csv", "target": "drug"}}, ["data.target", "'Drug'"]),
    ({"data": {"source": "rows.csv", "target": "Drug", "exclude": ["Agee"]}}, ["'Age'"]),
    ({"data": {"source": "rows.csv", "target": "Drug", "exclude": ["Drug"]}}, ["excluded"]),
    (
        _data(columns={"BP": {"kind": "numeric"}}),
        ["data.columns.BP", "HIGH", "number"],
    ),
    (
        _data(columns={"X": {"kind": "numeric"}}),
        ["no column 'X'"],
    ),
    (
        {
            "data": {
                "source": "rows.csv",
                "target": "Drug",
                "columns": {"Age": {"kind": "nummeric"}},
            }
        },
        ["numeric"],
    ),
    (
        _data(columns={"Age": {"kind": "numeric", "missing": "constant"}}),
        ["fill_value"],
    ),
    ({"data": {"source": "rows.csv", "target": "Drug", "task": "regression"}}, ["numbers", "text"]),
    (
        {"data": {"source": "rows.csv", "target": "Age", "split": {"kind": "stratified"}}},
        ["random"],
    ),
    (
        _data(split={"kind": "random", "fractions": {"train": 0.8, "test": 0.3}}),
        ["add up to 1"],
    ),
    (
        _data(split={"kind": "time"}),
        ["data.split.column", "missing"],
    ),
    (_data(split={"kind": "time", "column": "age"}), ["data.split.column", "'Age'"]),
    (_data(split={"kind": "time", "column": "Sex"}), ["data.split.column", "'F'", "2026-11-21"]),
    (_data(split={"kind": "group", "column": "Na_to_K"}), ["data.split.column", "fractions"]),
    (_data(split={"kind": "group", "column": "Drug"}), ["split.column", "target"]),
    (
        _data(split={"kind": "column", "column": "Sex", "train": ["M"]}),
        ["data.split", "'F'", "row_id"],
    ),
    (
        _data(split={"kind": "column", "column": "Sex", "train": ["M"], "test": ["M", "F"]}),
        ["'M' twice"],
    ),
    (_data(split={"kind": "files", "train": "rows.csv", "test": "rows.csv"}), ["each file in one"]),
    (_data(split={"kind": "files", "train": "a.csv"}), ["source", "split.train"]),
    (
        _data(split={"kind": "files", "train": "rows.csv", "test": "s3://b/x.csv"}),
        ["data.split.test", "not built yet"],
    ),
    (_data(split={"kind": "source"}), ["data.split", "splits of its own"]),
    ({"data": {"source": "hf:org/name", "target": "Drug"}}, ["hf:org/name", "NAME@REVISION"]),
    ({"data": {"source": "hf:./rows.csv", "target": "Drug"}}, ["hf:./rows.csv", "save_to_disk"]),
    ({"data": {"source": "sample:drug2000", "target": "Drug"}}, ["drug200"]),
    ({"data": {"source": "row.csv", "target": "Drug"}}, ["rows.csv"]),
    ({"model": {"kind": "mpl"}}, ["model", "mlp"]),
    ({"model": {"kind": "cnn", "shape": [8, 8]}}, ["model.shape", "a list of 3"]),
    ({"model": {"kind": "cnn", "kernel": 2}}, ["model.kernel", "odd number"]),
    ({"model": {"kind": "resnet", "blocks": 0}}, ["model.blocks", "1"]),
    ({"model": {"kind": "mlp", "hiden": [3]}}, ["hidden"]),
    ({"model": {"kind": "mlp", "dropout": 1.5}}, ["dropout", "1"]),
    ({"model": {"kind": "custom", "target": "os:system"}}, ["os"]),
    ({"model": {"kind": "custom", "target": "nets:Net"}}, ["--allow-code"]),
    ({"training": {"epochs": 0}}, ["epochs", "1"]),
    ({"training": {"batch_size": "half"}}, ["batch_size", "full"]),
    ({"training": {"lr": 0.1}}, ["training.optimizer.lr"]),
    ({"training": {"optimizer": {"kind": "adam", "lr": -1}}}, ["lr", "0"]),
    ({"training": {"loss": "mse"}}, ["mse", "classification"]),
    ({"training": {"checkpoint": {"every_steps": 0}}}, ["training.checkpoint.every_steps", "1"]),
    ({"evaluation": {"require": {"accuracy": "0.9"}}}, ["accuracy", ">="]),
    ({"evaluation": {"metrics": ["acuracy"]}}, ["accuracy"]),
    ({"evaluation": {"metrics": ["r2"]}}, ["r2", "classification"]),
    ({"export": {"formats": ["onnx"]}}, ["onnx", "not built yet"]),
    ({"resources": {"workers": 0}}, ["workers", "from 1 to 4096"]),
]

ROWS = "x,y\n" + "".join(f"{n},{n % 2}\n" for n in range(40))


def _parquet_with_a_date(path: Path) -> None:
    day = dt.date(2026, 1, 1)
    pq.write_table(pa.table({"x": [day] * 40, "y": [0, 1] * 20}), path / "rows.parquet")


# What is written beside the spec, the source, and what the message must say.
BAD_TABLES: list[tuple[str, Callable[[Path], object], str, list[str]]] = [
    ("no-file", lambda path: None, "rows.csv", ["rows.csv"]),
    ("empty-file", lambda path: (path / "rows.csv").write_text(""), "rows.csv", ["rows.csv", "0"]),
    ("header-only", lambda path: (path / "rows.csv").write_text("x,y\n"), "rows.csv", ["0 rows"]),
    (
        "ragged",
        lambda path: (path / "rows.csv").write_text(ROWS + "1,2,3\n"),
        "rows.csv",
        ["42", "3"],
    ),
    (
        "latin-1",
        lambda path: (path / "rows.csv").write_bytes(ROWS.encode() + b"\xe9,1\n"),
        "rows.csv",
        ["UTF-8", "byte"],
    ),
    (
        "utf-16",
        lambda path: (path / "rows.csv").write_bytes(ROWS.encode("utf-16")),
        "rows.csv",
        ["UTF-16"],
    ),
    (
        "nul-byte",
        lambda path: (path / "rows.csv").write_bytes(ROWS.encode() + b"\0,1\n"),
        "rows.csv",
        ["NUL"],
    ),
    (
        "duplicate-names",
        lambda path: (path / "rows.csv").write_text("x,x,y\n1,2,0\n1,3,1\n"),
        "rows.csv",
        ["'x'"],
    ),
    (
        "one-class",
        lambda path: (path / "rows.csv").write_text("x,y\n" + "1,a\n" * 40),
        "rows.csv",
        ["two classes", "1"],
    ),
    (
        "no-target-value",
        lambda path: (path / "rows.csv").write_text("x,y\n" + "1,\n" * 40),
        "rows.csv",
        ["two classes", "0"],
    ),
    (
        "infinite",
        lambda path: (path / "rows.csv").write_text(ROWS + "inf,1\n"),
        "rows.csv",
        ["'x'", "inf", "data.exclude"],
    ),
    (
        "only-the-target",
        lambda path: (path / "rows.csv").write_text("y\n" + "0\n1\n" * 20),
        "rows.csv",
        ["feature column"],
    ),
    (
        "too-few-rows",
        lambda path: (path / "rows.csv").write_text("x,y\n1,0\n2,1\n"),
        "rows.csv",
        ["split", "at least one row"],
    ),
    (
        "not-parquet",
        lambda path: (path / "rows.parquet").write_text(ROWS),
        "rows.parquet",
        ["rows.parquet"],
    ),
    ("a-date-column", _parquet_with_a_date, "rows.parquet", ["date", "exclude"]),
    ("a-pipe", lambda path: os.mkfifo(path / "rows.csv"), "rows.csv", ["rows.csv"]),
    (
        "drift",
        lambda path: [
            (path / "a.csv").write_text(ROWS),
            (path / "b.csv").write_text("x,z\n1,2\n"),
        ],
        "*.csv",
        ["a.csv", "b.csv"],
    ),
    (
        "a-link-out",
        lambda path: [
            (path / "in").mkdir(),
            (path / "rows.csv").write_text(ROWS),
            (path / "in" / "rows.csv").symlink_to(path / "rows.csv"),
        ],
        "in",
        ["link"],
    ),
    (
        "storage-inside",
        lambda path: (path / "rows.csv").write_text(ROWS),
        ".",
        ["storage", "input"],
    ),
]


def _merged(changes: dict[str, object]) -> dict[str, object]:
    merged = {**GOOD, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def _run(folder: Path, spec: dict[str, object]) -> tuple[int, str]:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def _written(folder: Path) -> list[str]:
    """What lies on the storage, the cache of content hashes aside."""
    runs = folder / "runs"
    files = [path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file()]
    return [name for name in files if not name.startswith("_cache/")]


def test_the_good_spec_runs(tmp_path: Path) -> None:
    """Else the cases below could fail for another reason than they say."""
    write_sample("drug200", tmp_path / "rows.csv")
    assert _run(tmp_path, GOOD)[0] == 0


@pytest.mark.parametrize(("changes", "said"), BAD_SPECS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_spec_is_refused_before_anything_is_written(
    changes: dict[str, object], said: list[str], tmp_path: Path
) -> None:
    write_sample("drug200", tmp_path / "rows.csv")
    code, output = _run(tmp_path, _merged(changes))
    assert code == 2, output
    assert [fragment for fragment in said if fragment not in output] == [], output
    assert _written(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "source", "said"),
    [case[1:] for case in BAD_TABLES],
    ids=[case[0] for case in BAD_TABLES],
)
def test_a_bad_table_is_refused_and_leaves_nothing(
    make: Callable[[Path], object], source: str, said: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    spec = {**GOOD, "data": {"source": source, "target": "y"}}
    code, output = _run(tmp_path, spec)
    assert code == 2, output
    assert [fragment for fragment in said if fragment not in output] == [], output
    assert _written(tmp_path) == []
