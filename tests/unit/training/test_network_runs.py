"""Runs of every built-in network: exact resume, and outputs that are those of the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from pydantic import TypeAdapter

from batchtrain.errors import SpecError
from batchtrain.models.build import build_model, describe_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import activate
from batchtrain.pipeline import RunResult
from batchtrain.preprocessing import FittedPreprocessor, transform
from batchtrain.scoring import CustomCode, Scorer
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import ModelSpec
from tests.support.builders import run, spec_for, train_in_parts

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {
        "kind": "mlp",
        "hidden": [12, 12],
        "normalization": "layer",
        "residual": True,
        "init": "kaiming",
        "activation": "rrelu",  # draws numbers, as dropout does
    },
    "resnet": {"kind": "resnet", "width": 10, "residual_dropout": 0.1, "activation": "prelu"},
    "cnn": {"kind": "cnn", "channels": [4, 8], "hidden": [8]},
    "cnn, a shape": {"kind": "cnn", "shape": [2, 4, 2], "pooling": "none", "hidden": []},
}


def pictures(num_rows: int = 100) -> pa.Table:
    """Sixteen grey values and a category; the class is where the picture is bright."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, num_rows)
    pixels = random.normal(0, 1, (num_rows, 4, 4))
    pixels[:, :, :2] += np.where(label == 0, 1, 0)[:, None, None]
    columns = {f"p{place:02d}": pixels.reshape(num_rows, 16)[:, place] for place in range(16)}
    paper = np.array(["thin", "thick", "grey"])[random.integers(0, 3, num_rows)]
    return pa.table({**columns, "paper": paper, "label": np.array(["left", "right"])[label]})


def spec_in(folder: Path, model: str) -> LoadedSpec:
    folder.mkdir()
    return spec_for(folder, pictures(), model=MODELS[model])


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: str) -> RunResult:
    """A training in one go."""
    return run(spec_in(tmp_path_factory.mktemp("whole") / "run", model), last="train")


def test_p1_every_network_goes_on_where_it_was(
    tmp_path: Path, model: str, whole: RunResult
) -> None:
    broken = train_in_parts(spec_in(tmp_path / "broken", model), [3, 4])
    assert broken.stages[-1].status == "resumed"
    assert broken.trained is not None
    assert whole.trained is not None
    assert broken.trained.content["state_sha256"] == whole.trained.content["state_sha256"]
    files, expected = (each.trained.artifact.manifest.files for each in (broken, whole))
    for name in ("best.safetensors", "last.safetensors", "history.jsonl"):
        assert files[name].sha256 == expected[name].sha256


def test_the_scorer_of_a_trained_model_gives_its_outputs(model: str, whole: RunResult) -> None:
    assert whole.trained is not None
    assert whole.prepared is not None
    artifact = whole.trained.artifact
    fitted = FittedPreprocessor.from_json(whole.prepared.preprocessing_state(), where="here")
    scorer = Scorer.of(artifact, weights="best.safetensors", preprocessor=fitted, code=CustomCode())
    rows = pictures().drop_columns("label")
    features = transform(fitted, rows, row_id=np.arange(100))

    spec: ModelSpec = TypeAdapter(ModelSpec).validate_python(MODELS[model], strict=False)
    inputs = ModelInputs.from_json(artifact.manifest.content["inputs"])
    network = build_model(spec, inputs, seed=7)
    network.load_state_dict(safetensors.torch.load(artifact.read("best.safetensors")))
    with torch.no_grad():
        outputs = network.eval()(
            torch.from_numpy(features.numeric), torch.from_numpy(features.codes)
        )
    expected = activate(outputs, "cross_entropy").numpy()
    np.testing.assert_allclose(scorer.score(rows).outputs, expected, rtol=1e-4, atol=1e-5)
    described = describe_model(network)
    assert json.loads(artifact.read("parameters.json")) == described
    assert [entry["name"] for entry in described] == list(network.state_dict())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "cnn", "shape": [3, 8, 8]}, "3 x 8 x 8 = 192 numeric features.*found 16"),
        ({"kind": "mlp", "hidden": [8, 4], "residual": True}, "to 8 to 4"),
    ],
)
def test_a_network_that_does_not_fit_the_columns_is_an_error_of_the_spec(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        run(spec_for(tmp_path, pictures(), model=keys), last="train")
