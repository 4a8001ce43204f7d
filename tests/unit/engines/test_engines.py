"""An engine that works in disorder, in odd units and partly twice, gives the same bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine
from batchtrain.errors import BatchtrainError, ClusterError
from batchtrain.evaluation.stage import evaluate
from batchtrain.prediction.loaded import load_bundle
from batchtrain.prediction.predict import predict_file
from batchtrain.preparation import shards
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.tables import open_source, scan
from tests.support.builders import (
    MemoryStorage,
    layout_for,
    mixed_table,
    prepared_for,
    quantity_table,
    run,
    slices,
    spec_for,
    write_table,
)
from tests.support.engines import ScrambledEngine, fails_at, table_and_marks

DROPPING: dict[str, Any] = {
    "source": "rows",
    "columns": {
        "age": {"kind": "numeric", "missing": "drop"},
        "dose": {"kind": "numeric", "missing": "median", "scale": "robust", "indicator": True},
        "pressure": {"kind": "categorical", "missing": "most_frequent"},
    },
}


def write_parts(folder: Path, table: pa.Table, sizes: list[int], ending: str) -> None:
    folder.mkdir()
    for place, part in enumerate(slices(table, sizes)):
        path = folder / f"part-{place:03d}.{ending}"
        if ending == "parquet":
            pq.write_table(part, path, row_group_size=1 + place * 7 % 23)
        else:
            write_table(path, part)


def prepared_bytes(loaded: LoadedSpec, engine: Engine) -> dict[str, str]:
    """The hash of each file, and of what the manifest says."""
    prepared, status = prepare(loaded, MemoryStorage(), Progress(), engine=engine)
    assert status == "built"
    manifest = prepared.artifact.manifest
    return {"": manifest.digest, **{name: entry.sha256 for name, entry in manifest.files.items()}}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # an example takes a second: none is made smaller
)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    block_rows=st.integers(5, 70),
    cores=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_d24_prepared_data_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    sizes: list[int],
    block_rows: int,
    cores: int,
    seed: int,
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 30)
    folder = tmp_path_factory.mktemp("engines")
    write_parts(folder / "rows", mixed_table(200, seed=seed), sizes, ending)
    loaded = spec_for(folder, data={**DROPPING, "lanes": 2})
    expected = prepared_bytes(loaded, EmbeddedEngine(block_rows))
    assert prepared_bytes(loaded, ScrambledEngine(block_rows, cores, seed)) == expected


@pytest.mark.parametrize("kind", ["classification", "regression", "line"])
def test_reports_and_predictions_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 7)
    if kind == "classification":
        write_parts(tmp_path / "rows", mixed_table(150), [40, 3], "csv")
        loaded = spec_for(tmp_path, data={**DROPPING, "lanes": 24})
    else:
        table = quantity_table(150, features=1 if kind == "line" else 3)
        write_parts(tmp_path / "rows", table, [40, 3], "csv")
        loaded = spec_for(tmp_path, target="y", data={"source": "rows", "lanes": 3})
    trained = run(loaded, last="train").trained
    assert trained is not None
    layout = layout_for(loaded)
    engines = (EmbeddedEngine(16), ScrambledEngine(16))
    files = []
    for engine in engines:
        report, status = evaluate(
            loaded, prepared_for(loaded), trained, layout, Progress(), engine=engine
        )
        assert status == "built"
        files.append(dict(report.artifact.manifest.files))
        layout.storage.delete(f"{report.artifact.key}/manifest.json")
    assert "line" not in kind or "report.html" in files[0]
    # The page shows how long the stage took.
    assert {name for name in files[0] if files[0][name].sha256 != files[1][name].sha256} <= {
        "report.html",
        "MODEL_CARD.md",
    }
    assert {"metrics.json", "predictions/test.parquet", "spec.yaml"} <= set(files[0])

    bundle = load_bundle(run(loaded).bundle.artifact.url)  # type: ignore[union-attr]
    for ending in ("csv", "parquet"):
        found = [
            predict_file(
                bundle,
                "rows",
                tmp_path / f"{engine.name}.{ending}",
                base=tmp_path,
                progress=Progress(),
                engine=engine,
            )
            for engine in engines
        ]
        assert found[0].path.read_bytes() == found[1].path.read_bytes()
        assert found[0].counts == found[1].counts
        assert found[0].counts.rows == 150


@pytest.mark.parametrize("engine", [EmbeddedEngine(4), ScrambledEngine(4)])
def test_marks_stand_beside_the_rows_they_are_for(tmp_path: Path, engine: Engine) -> None:
    write_parts(tmp_path / "rows", pa.table({"a": range(41)}), [9, 2], "csv")
    source = open_source("rows", base=tmp_path, null_values=())
    marks = np.arange(41, dtype=np.uint8)
    rows = scan(source).rows_of_files
    found = list(
        engine.map_blocks(
            source, {"a": "integer"}, table_and_marks, rows_of_files=rows, marks=marks
        )
    )
    assert [beside["first"][0].as_py() for _table, beside in found] == list(range(0, 41, 4))
    for table, beside in found:
        assert list(beside["marks"][0].as_py()) == table["a"].to_pylist()
    without = list(engine.map_blocks(source, {"a": "integer"}, table_and_marks))
    assert {beside["marks"][0].as_py() for _table, beside in without} == {b""}


@pytest.mark.parametrize(
    ("cells", "policy"),
    [
        ({30: "inf", 70: "inf"}, {}),
        ({30: "1e300", 70: "inf"}, {}),
        ({55: ""}, {"missing": "error"}),
        ({12: "x", 99: "y"}, {"kind": "numeric"}),
    ],
)
def test_the_error_of_a_preparation_is_the_same(
    tmp_path: Path, cells: dict[int, str], policy: dict[str, str]
) -> None:
    table = mixed_table(120, gaps=False)
    numbers = [cells.get(row, str(row)) for row in range(120)]
    table = table.append_column("odd", pa.array(numbers))
    write_parts(tmp_path / "rows", table, [50, 20], "csv")
    columns = {"odd": {"kind": "numeric", **policy}}
    loaded = spec_for(tmp_path, data={"source": "rows", "columns": columns})
    texts = []
    for engine in (EmbeddedEngine(8), ScrambledEngine(8)):
        with pytest.raises(BatchtrainError) as caught:
            prepare(loaded, MemoryStorage(), Progress(), engine=engine)
        texts.append((type(caught.value), str(caught.value)))
    assert texts[0] == texts[1]


def test_an_error_that_is_none_of_ours_comes_in_its_place(tmp_path: Path) -> None:
    write_parts(tmp_path / "rows", pa.table({"a": range(41)}), [9, 2], "csv")
    source = open_source("rows", base=tmp_path, null_values=())
    for engine, kind in (
        (EmbeddedEngine(4), ZeroDivisionError),
        (ScrambledEngine(4), ClusterError),
    ):
        results = engine.map_blocks(source, {"a": "integer"}, partial(fails_at, 13))
        assert [next(results)[0].num_rows for _ in range(3)] == [4, 4, 4]
        with pytest.raises(kind, match="by a test"):
            next(results)
