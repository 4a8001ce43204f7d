"""Export: only an accepted model, only if it proves itself, and never with code in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from typer.testing import CliRunner

from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.artifacts.manifest import FileEntry, Manifest
from batchtrain.artifacts.parquet_bytes import parquet_bytes
from batchtrain.cli.app import app
from batchtrain.errors import (
    ArtifactError,
    BatchtrainError,
    ModelRejectedError,
    SpecError,
    VerificationError,
)
from batchtrain.export.verify import verify
from batchtrain.prediction.loaded import load_bundle
from batchtrain.scoring import CustomCode
from batchtrain.spec.load import LoadedSpec
from tests.support.builders import layout_for, mixed_table, quantity_table, run, spec_for

CUSTOM = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, hidden=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.num_numeric, hidden), nn.Tanh(), nn.Linear(hidden, inputs.num_outputs)
        )

    def forward(self, numeric, codes):
        return self.layers(numeric)


class Nosy(Net):
    def forward(self, numeric, codes):
        return self.layers(numeric) + numeric.mean()
"""


def custom_spec(folder: Path, module: str, name: str = "Net", rows: int = 400) -> LoadedSpec:
    (folder / f"{module}.py").write_text(CUSTOM)
    return spec_for(
        folder,
        quantity_table(rows, features=5),
        target="y",
        model={"kind": "custom", "target": f"{module}:{name}", "params": {"hidden": 7}},
    )


@pytest.mark.parametrize("threshold", ["<= 0", "<= 1e-9", "< 0.001"])
def test_a_model_that_misses_a_threshold_is_reported_but_not_exported(
    tmp_path: Path, threshold: str
) -> None:
    loaded = spec_for(
        tmp_path,
        mixed_table(90),
        evaluation={"require": {"log_loss": threshold, "f1_macro": ">= 0"}},
    )
    for _again in range(2):
        with pytest.raises(ModelRejectedError, match=r"log_loss: expected") as caught:
            run(loaded)
        assert threshold in str(caught.value)
        assert "f1_macro" not in str(caught.value)
    layout = layout_for(loaded)
    assert layout.storage.list(f"{layout.root}/bundles") == []
    reported = run(loaded, last="evaluate")
    assert reported.report is not None
    assert len(reported.report.failures) == 1
    assert reported.report_page is not None
    assert Path(reported.report_page).is_file()
    assert f"report, {reported.report_page}, and" in str(caught.value)


def test_the_command_of_a_card_works_with_the_folder_that_it_names(tmp_path: Path) -> None:
    table = mixed_table(90)
    result = run(spec_for(tmp_path, table))
    assert result.bundle is not None
    lies = next(Path(result.bundle.artifact.url).rglob("MODEL_CARD.md"))
    card = lies.read_text()
    bundle = lies.parent.parent.parent
    assert "this card lies two folders below it" in card
    assert (bundle / "manifest.json").is_file()

    command = next(line for line in card.splitlines() if line.startswith("batchtrain predict"))
    pa_csv.write_csv(table, tmp_path / "new.csv")
    places = {"BUNDLE": bundle, "new.csv": tmp_path / "new.csv"}
    places["predictions.parquet"] = tmp_path / "predictions.parquet"
    arguments = [str(places.get(word, word)) for word in command.split()[1:]]
    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, done.output
    assert (tmp_path / "predictions.parquet").is_file()


def test_an_accepted_model_is_exported_once(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), evaluation={"require": {"accuracy": ">= 0"}})
    first = run(loaded)
    again = run(loaded)
    assert [stage.status for stage in again.stages] == ["reused"] * 4
    assert first.bundle is not None
    assert again.bundle is not None
    assert first.bundle.artifact.manifest == again.bundle.artifact.manifest
    # A built-in model gives raw rows what evaluation got, to the last bit.
    assert first.bundle.content["golden_difference"] == 0
    assert first.bundle.num_golden == len(first.bundle.golden()[1]) > 0


def test_a_bundle_verifies_and_says_how_exactly(finished: Any) -> None:
    found = verify(finished.result.bundle)
    assert found.exact
    assert found.rows == 64
    assert found.files == len(finished.result.bundle.artifact.manifest.files)


def republished(bundle: ModelBundle, folder: Path, files: dict[str, bytes]) -> ModelBundle:
    """A bundle with other files and a manifest that agrees with them."""
    shutil.copytree(bundle.artifact.url, folder)
    entries = dict(bundle.artifact.manifest.files)
    for name, data in files.items():
        (folder / entries[name].path).write_bytes(data)
        entries[name] = FileEntry.of(entries[name].path, data)
    old = bundle.artifact.manifest
    manifest = Manifest(old.kind, old.format, old.fingerprint, old.inputs, old.content, entries)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return ModelBundle.open(folder)


def test_a_bundle_that_computes_otherwise_does_not_verify(finished: Any, tmp_path: Path) -> None:
    bundle = finished.result.bundle
    state = bundle.preprocessing_state()
    state["columns"][0]["offset"] += 1.0
    changed = {"preprocess.json": json.dumps(state).encode()}
    with pytest.raises(VerificationError, match="golden"):
        verify(republished(bundle, tmp_path / "offset", changed))
    renamed = bundle.preprocessing_state()
    renamed["target"]["classes"] = ["a", "b", "z"]
    changed = {"preprocess.json": json.dumps(renamed).encode()}
    with pytest.raises(VerificationError):
        verify(republished(bundle, tmp_path / "classes", changed))


def test_a_bundle_whose_golden_predictions_are_float32_verifies(tmp_path: Path) -> None:
    bundle = run(spec_for(tmp_path, quantity_table(60), target="y")).bundle
    assert bundle is not None
    _rows, _row_id, expected = bundle.golden()
    schema = pa.schema([("row_id", pa.int64()), ("prediction", pa.float32())])
    recorded = parquet_bytes(expected.cast(schema))
    files = {"golden_predictions.parquet": recorded}
    assert verify(republished(bundle, tmp_path / "earlier", files)).exact


def test_x08_weights_of_another_shape_are_refused(finished: Any, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    bundle = finished.result.bundle
    weights = safetensors.torch.load(bundle.artifact.read("model.safetensors"))
    first = next(iter(weights))
    attempts = {
        "other": {**weights, first: torch.zeros(2, 2)},
        "fewer": {name: value for name, value in weights.items() if name != first},
        "more": {**weights, "../../etc/x": torch.zeros(1)},
    }
    for name, tensors in attempts.items():
        data = safetensors.torch.save(tensors)
        with pytest.raises(ArtifactError):
            verify(republished(bundle, tmp_path / name, {"model.safetensors": data}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x04N.", id="pickle"),
        pytest.param(b"PK\x03\x04", id="zip"),
        pytest.param(b"\xff" * 64, id="huge header"),
        pytest.param(b'\x08\0\0\0\0\0\0\0{"a":1}}', id="other header"),
    ],
)
def test_x06_weights_that_are_no_safetensors_are_a_typed_error(
    finished: Any, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(BatchtrainError):
        verify(republished(finished.result.bundle, tmp_path / "b", {"model.safetensors": data}))


def test_a_custom_model_goes_all_the_way_with_the_operators_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = custom_spec(tmp_path, "unit_net_one")
    result = run(loaded, allow_code=["unit_net_one"])
    assert [stage.status for stage in result.stages] == ["built"] * 4
    assert result.bundle is not None
    folder = Path(result.bundle.artifact.url)
    for path in folder.rglob("*"):
        if path.suffix in {".json", ".safetensors", ".parquet"}:
            assert b"unit_net_one" not in path.read_bytes(), path.name

    with pytest.raises(ArtifactError, match="--allow-code"):
        load_bundle(folder)
    with pytest.raises(ArtifactError, match="--allow-code"):
        verify(result.bundle)
    with pytest.raises(SpecError, match="not allowed"):
        load_bundle(folder, model="unit_net_one:Net")

    monkeypatch.chdir(tmp_path)
    model = load_bundle(folder, model="unit_net_one:Net", allow_code=["unit_net_one"])
    table = quantity_table(400, features=5)
    found = model.predict_table(table)[0]["prediction"].to_numpy()
    assert np.isfinite(found).all()
    code = CustomCode("unit_net_one:Net", ["unit_net_one"], tmp_path)
    assert verify(result.bundle, code).exact


def test_a_custom_model_without_the_operators_word_runs_no_code(tmp_path: Path) -> None:
    loaded = custom_spec(tmp_path, "unit_net_two")
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n{CUSTOM}"
    (tmp_path / "unit_net_two.py").write_text(code)
    with pytest.raises(SpecError, match="--allow-code unit_net_two"):
        run(loaded)
    assert not canary.exists()


def test_edited_code_is_another_run(tmp_path: Path) -> None:
    loaded = custom_spec(tmp_path, "unit_net_three", rows=60)
    before = layout_for(loaded).run_id
    with (tmp_path / "unit_net_three.py").open("a") as file:
        file.write("# a remark\n")
    assert layout_for(loaded).run_id != before


def test_a_custom_model_that_looks_at_other_rows_is_not_exported(tmp_path: Path) -> None:
    loaded = custom_spec(tmp_path, "unit_net_four", "Nosy")
    with pytest.raises(VerificationError, match="other rows"):
        run(loaded, allow_code=["unit_net_four"])
    layout = layout_for(loaded)
    assert layout.storage.list(f"{layout.root}/bundles") == []


def test_a_bundle_says_what_it_needs_and_what_it_reached(finished: Any) -> None:
    content = finished.result.bundle.content
    assert content["target"] == "label"
    assert content["classes"] == ["a", "b", "c"]
    assert list(content["columns"]) == finished.table.column_names[:-1]
    assert content["metrics"] == finished.result.report.metrics
    rows, row_id, expected = finished.result.bundle.golden()
    assert rows.num_rows == len(row_id) == expected.num_rows == 64
    assert rows.column_names == list(content["columns"])
    raw = finished.table.take(pa.array(row_id)).select(rows.column_names)
    assert rows.cast(raw.schema).equals(raw.combine_chunks())
