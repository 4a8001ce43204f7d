"""The whole way: stages in order, what is published stays, what is told agrees with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import batchtrain
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.errors import ArtifactDamagedError, StorageError
from batchtrain.pipeline import STAGES, run_spec
from batchtrain.progress import Progress
from tests.support.builders import all_files, layout_for, mixed_table, run, spec_for, storage_of


class Told(Progress):
    """Remembers the order of the stages."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.epochs: list[int] = []

    def stage_started(self, name: str) -> None:
        self.events.append(("started", name))

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        assert detail
        assert seconds >= 0
        self.events.append((status, name))

    def epoch_finished(self, record: Any, epochs: int) -> None:
        assert epochs == 3
        self.epochs.append(record["epoch"])


def test_stages_run_in_order_once_and_the_second_time_not_at_all(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    for status in ("built", "reused"):
        told = Told()
        before = {
            name: (tmp_path / "runs" / name).stat().st_mtime_ns
            for name in all_files(tmp_path / "runs")
        }
        result = run_spec(loaded, progress=told)
        assert told.events == [
            event for name in STAGES for event in (("started", name), (status, name))
        ]
        assert told.epochs == ([0, 1, 2, 3] if status == "built" else [])
        assert [stage.status for stage in result.stages] == [status] * 4
        for name, time in before.items():
            if "files/" in name or name.endswith(MANIFEST):
                assert (tmp_path / "runs" / name).stat().st_mtime_ns == time, name


def test_a_classifier_that_gives_one_class_alone_is_told_and_reported(tmp_path: Path) -> None:
    class Notes(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    table = mixed_table(200)
    rare = pa.array(["yes" if row % 40 == 0 else "no" for row in range(200)])
    table = table.set_column(table.column_names.index("label"), "label", rare)
    loaded = spec_for(tmp_path, table)
    for _again in range(2):
        told = Notes()
        result = run_spec(loaded, progress=told, last="evaluate")
        assert result.report is not None
        (note,) = result.report.notes
        assert "test rows were predicted as 'no', which" in note
        assert told.notes == [f"note      {note}"]
        assert note.split("'no'")[1] in result.report.page().decode()


@pytest.mark.parametrize("last", STAGES)
def test_a_run_ends_with_the_stage_that_was_asked_for(tmp_path: Path, last: Any) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    result = run(loaded, last=last)
    assert [stage.name for stage in result.stages] == list(STAGES[: STAGES.index(last) + 1])
    made = (result.prepared, result.trained, result.report, result.bundle)
    assert [each is not None for each in made] == [
        STAGES.index(last) >= place for place in range(4)
    ]
    json.dumps(result.to_json(), allow_nan=False)


def test_the_library_tells_what_the_command_prints(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    told = batchtrain.run(loaded.path, ["training.epochs=2"])
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert Path(told["report"]).is_file()
    for name in ("prepared", "bundle"):
        assert (Path(told[name]) / MANIFEST).is_file()
    assert Path(told["run_dir"]).is_dir()
    assert told["run"].startswith("small/")
    assert [stage["name"] for stage in told["stages"]] == list(STAGES)
    model = batchtrain.load_bundle(told["bundle"])
    assert len(model.predict(mixed_table(5))) == 5


def test_p5_what_is_published_is_used_by_every_later_spec_that_needs_it(tmp_path: Path) -> None:
    table = mixed_table(60)
    first = run(spec_for(tmp_path, table))
    longer = run(spec_for(tmp_path, training={"epochs": 4, "batch_size": 16}))
    assert [stage.status for stage in longer.stages] == ["reused", "built", "built", "built"]
    assert longer.run != first.run
    renamed = run(spec_for(tmp_path, name="other"))
    assert renamed.run.startswith("other/")
    assert renamed.prepared is not None
    assert first.prepared is not None
    assert renamed.prepared.artifact.key == first.prepared.artifact.key
    assert renamed.stages[0].status == "reused"
    for elsewhere in (
        {"resources": {"cpus_per_worker": 1, "device": "cpu"}},
        {"engine": "embedded"},
    ):
        again = run(spec_for(tmp_path, **elsewhere))
        assert [stage.status for stage in again.stages] == ["reused"] * 4


def test_p4_a_stage_that_fails_leaves_the_earlier_ones_and_no_part_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))

    def refuse(*arguments: object) -> str:
        raise StorageError("no space")

    monkeypatch.setattr("batchtrain.evaluation.evaluate.render_report", refuse)
    with pytest.raises(StorageError):
        run(loaded)
    monkeypatch.undo()
    layout = layout_for(loaded)
    assert layout.storage.list(f"{layout.root}/reports") == []
    result = run(loaded)
    assert [stage.status for stage in result.stages] == ["reused", "reused", "built", "built"]


def test_a_damaged_artifact_is_named_and_not_used(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    result = run(loaded, last="train")
    assert result.trained is not None
    artifact = result.trained.artifact
    path = storage_of(loaded).root / artifact.key / artifact.manifest.files["best.safetensors"].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactDamagedError, match=r"best\.safetensors"):
        run(loaded)
    layout = layout_for(loaded)
    assert layout.storage.list(f"{layout.root}/reports") == []


def test_a_file_where_the_storage_should_be_is_refused(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), storage="rows.parquet")
    before = all_files(tmp_path)
    with pytest.raises(StorageError, match="Choose another `storage`"):
        run(loaded)
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("log", [b"", b"{", b"[]", b'{"train": 1}', b'{"train": {}}'])
def test_a_damaged_log_of_stages_is_begun_anew(tmp_path: Path, log: bytes) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    run(loaded, last="train")
    (storage_of(loaded).root / layout_for(loaded).stage_log).write_bytes(log)
    assert run(loaded).stages[-1].status == "built"
