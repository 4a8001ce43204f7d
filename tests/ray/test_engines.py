"""Ray Data and this process: the same bytes, the same errors, whatever the files look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv as pa_csv

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine, Tables
from batchtrain.engines.ray import RETRIES, RayEngine
from batchtrain.engines.session import RaySession
from batchtrain.errors import BatchtrainError, ClusterError, DataError, SchemaMismatchError
from batchtrain.evaluation.stage import evaluate
from batchtrain.prediction.loaded import load_bundle
from batchtrain.prediction.predict import predict_file
from batchtrain.preparation import shards
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import FolderStorage
from batchtrain.tables import open_source
from tests.support.builders import layout_for, mixed_table, run, slices, spec_for
from tests.support.engines import dies_at, fails_at, table_and_marks

pytestmark = pytest.mark.ray

BLOCK_ROWS = 16

DATA: dict[str, Any] = {
    "source": "rows",
    "columns": {
        "age": {"kind": "numeric", "missing": "drop"},
        "dose": {"kind": "numeric", "missing": "median", "scale": "robust", "indicator": True},
        "pressure": {"kind": "categorical", "missing": "most_frequent"},
    },
}


@pytest.fixture
def engines(ray_session: RaySession) -> list[Engine]:
    """Both, with blocks so small that a few hundred rows are many."""
    return [
        EmbeddedEngine(block_rows=BLOCK_ROWS),
        RayEngine(ray_session, num_cpus=2, block_rows=BLOCK_ROWS),
    ]


def write_parts(folder: Path, table: pa.Table, sizes: list[int], ending: str) -> Path:
    """Write rows as many uneven files, the Parquet ones with odd row groups."""
    folder.mkdir(parents=True)
    for place, part in enumerate(slices(table, sizes)):
        path = folder / f"part-{place:03d}.{ending}"
        if ending == "parquet":
            pq.write_table(part, path, row_group_size=1 + place * 7 % 23)
        else:
            pa_csv.write_csv(part, path)
    return folder


def digests(loaded: LoadedSpec, engine: Engine, name: str) -> dict[str, str]:
    """The hash of every file of the data that an engine prepares in a storage of its own."""
    storage = FolderStorage(loaded.path.parent / name)
    artifact = prepare(loaded, storage, Progress(), engine=engine)[0].artifact
    return {file: entry.sha256 for file, entry in artifact.manifest.files.items()}


def many_csv(folder: Path) -> LoadedSpec:
    write_parts(folder / "rows", mixed_table(500), [90, 1, 3, 160, 16, 5, 40], "csv")
    return spec_for(folder, data={**DATA, "lanes": 3})


def many_parquet(folder: Path) -> LoadedSpec:
    rows = write_parts(folder / "rows", mixed_table(500), [130, 2, 64, 200], "parquet")
    pq.write_table(mixed_table(0), rows / "part-001a.parquet")
    return spec_for(folder, data=DATA)


def wide_parquet(folder: Path) -> LoadedSpec:
    """With a column of text, one of number lists, and one of what each row weighs."""
    table = mixed_table(300)
    words = [f"note {place % 7} of {place % 3}" for place in range(table.num_rows)]
    pixels = [[place / 7, float(place % 5), 0.5] for place in range(table.num_rows)]
    table = table.append_column("words", pa.array(words))
    table = table.append_column("pixels", pa.array(pixels))
    weights = pa.array([place % 5 / 2 for place in range(table.num_rows)])
    table = table.append_column("counts for", weights)
    write_parts(folder / "rows", table, [40, 111, 9], "parquet")
    columns = {
        "words": {"kind": "text", "features": 32},
        "pixels": {"kind": "vector", "size": 3, "scale": "standard"},
    }
    return spec_for(folder, data={"source": "rows", "columns": columns, "weight": "counts for"})


def sample(folder: Path) -> LoadedSpec:
    return spec_for(folder, target="Drug", data={"source": "sample:drug200"})


@pytest.mark.parametrize(
    "make", [many_csv, pytest.param(many_parquet, marks=pytest.mark.long), wide_parquet, sample]
)
def test_prepared_data_are_the_same_bytes(
    make: Callable[[Path], LoadedSpec],
    engines: list[Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 50)
    loaded = make(tmp_path)
    embedded, by_ray = (digests(loaded, engine, engine.name) for engine in engines)
    assert by_ray == embedded
    assert len(embedded) > 8


def test_metrics_and_predictions_are_the_same_bytes(
    engines: list[Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 20)
    loaded = many_csv(tmp_path)
    result = run(loaded, last="train")
    prepared, trained, layout = result.prepared, result.trained, layout_for(loaded)
    assert prepared is not None
    assert trained is not None
    reports = []
    for engine in engines:
        report, status = evaluate(loaded, prepared, trained, layout, Progress(), engine=engine)
        assert status == "built"
        reports.append(report.artifact.manifest.files)
        layout.storage.delete(f"{report.artifact.key}/manifest.json")
    names = ["metrics.json", "predictions/test.parquet", "predictions/valid.parquet"]
    assert [reports[0][name].sha256 for name in names] == [
        reports[1][name].sha256 for name in names
    ]

    bundle = load_bundle(run(loaded).bundle.artifact.url)  # type: ignore[union-attr]
    found = [
        predict_file(
            bundle,
            "rows",
            tmp_path / f"{engine.name}.csv",
            base=tmp_path,
            progress=Progress(),
            engine=engine,
        )
        for engine in engines
    ]
    assert found[0].path.read_bytes() == found[1].path.read_bytes()
    assert found[0].counts == found[1].counts
    assert found[0].counts.rows == prepared.content["input_rows"]


def raised(results: Iterator[Tables]) -> tuple[int, BaseException]:
    """How many results come before an error, and the error."""
    count = 0
    try:
        for _tables in results:
            count += 1
    except (BatchtrainError, ZeroDivisionError) as error:
        return count, error
    raise AssertionError("expected an error, found none")


@pytest.mark.parametrize("bad", [[3], [470], [300, 301, 450], [], ["empty"], ["broken"]])
def test_the_first_error_in_the_order_of_the_rows_is_raised_as_itself(
    bad: list[Any], engines: list[Engine], tmp_path: Path
) -> None:
    ages = [str(age) for age in range(500)]
    for row in bad:
        if isinstance(row, int):
            ages[row] = "x"
    folder = write_parts(tmp_path / "rows", pa.table({"age": ages}), [100, 7, 90], "csv")
    if bad == ["empty"]:
        (folder / "part-003a.csv").write_text('"age"\n')
    if bad == ["broken"]:
        (folder / "part-003a.csv").write_text('"age"\n1\n2\n"3\n')
    source = open_source("rows", base=tmp_path, null_values=())
    if not bad:
        (folder / "part-002.csv").write_text("changed")
    found = [
        raised(engine.map_blocks(source, {"age": "integer"}, table_and_marks)) for engine in engines
    ]
    (count, error), (count_by_ray, error_by_ray) = found
    assert (count_by_ray, type(error_by_ray), str(error_by_ray)) == (count, type(error), str(error))
    assert isinstance(error, SchemaMismatchError if bad and isinstance(bad[0], int) else DataError)


def test_an_error_that_is_none_of_ours_shows_its_traceback(
    engines: list[Engine], tmp_path: Path
) -> None:
    write_parts(tmp_path / "rows", pa.table({"age": range(200)}), [150], "parquet")
    source = open_source("rows", base=tmp_path, null_values=())
    for engine, kind in zip(engines, (ZeroDivisionError, ClusterError), strict=True):
        count, error = raised(engine.map_blocks(source, {"age": "integer"}, partial(fails_at, 70)))
        assert (count, type(error)) == (4, kind)
        assert "by a test" in str(error)
    assert "fails_at" in str(error)


def test_a_pass_that_is_left_early_ends_and_the_next_one_works(
    engines: list[Engine], tmp_path: Path
) -> None:
    write_parts(tmp_path / "rows", pa.table({"age": range(500)}), [150], "parquet")
    source = open_source("rows", base=tmp_path, null_values=())
    columns = {"age": "integer"}
    by_ray = engines[1]
    results = by_ray.map_blocks(source, columns, table_and_marks)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(list(by_ray.map_blocks(source, columns, table_and_marks))) == 32


def test_a_task_whose_process_is_killed_is_done_again_and_nothing_is_doubled(
    engines: list[Engine], tmp_path: Path
) -> None:
    write_parts(tmp_path / "rows", pa.table({"age": range(500)}), [150], "parquet")
    source = open_source("rows", base=tmp_path, null_values=())
    work = partial(dies_at, 200, 1, tmp_path)
    found = [table for (table,) in engines[1].map_blocks(source, {"age": "integer"}, work)]
    assert (tmp_path / "died-0").exists()
    assert pa.concat_tables(found)["age"].to_pylist() == list(range(500))


@pytest.mark.long
def test_a_task_that_kills_its_process_each_time_ends_in_an_error(
    engines: list[Engine], tmp_path: Path
) -> None:
    write_parts(tmp_path / "rows", pa.table({"age": range(500)}), [150], "parquet")
    source = open_source("rows", base=tmp_path, null_values=())
    work = partial(dies_at, 200, 100, tmp_path)
    with pytest.raises(ClusterError, match="worker died"):
        list(engines[1].map_blocks(source, {"age": "integer"}, work))
    assert len(list(tmp_path.glob("died-*"))) == 1 + RETRIES
