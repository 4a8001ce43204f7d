"""The one way to score: a row's outputs are its own, wherever it stands (P9)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import ArtifactError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import activate
from batchtrain.preprocessing import FittedColumn, FittedPreprocessor, FittedTarget
from batchtrain.scoring import (
    SCORE_ROWS,
    CustomCode,
    Scorer,
    largest_difference,
    place_free,
    prediction_table,
)
from batchtrain.spec.model import LinearModel, MlpModel
from tests.support.builders import mixed_table, run, spec_for

NOTHING = FittedPreprocessor((), FittedTarget("y", "regression"))

Bits = np.ndarray[Any, np.dtype[np.int32 | np.int64]]


def model_of(kind: str, inputs: ModelInputs, hidden: tuple[int, ...], activation: str) -> nn.Module:
    spec = (
        LinearModel(kind="linear")
        if kind == "linear"
        else MlpModel(kind="mlp", hidden=hidden, activation=activation)
    )
    model = build_model(spec, inputs, seed=1)
    with torch.no_grad():
        # Also the weights that begin as zero take part.
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def rows_of(count: int, inputs: ModelInputs, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    spread = np.exp(2 * random.standard_normal((count, inputs.num_numeric)))
    numeric = (random.standard_normal((count, inputs.num_numeric)) * spread).astype(np.float32)
    codes = np.empty((count, len(inputs.cardinalities)), dtype=np.int64)
    for place, cardinality in enumerate(inputs.cardinalities):
        codes[:, place] = random.integers(0, cardinality, count)
    return numeric, codes


def bits(outputs: np.ndarray) -> Bits:
    return outputs.view(np.int32 if outputs.dtype == np.float32 else np.int64)


# MKL's products depend on the place of a row for 1 in 3 of such shapes, if nothing is done.
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu")
HIDDEN = ((1,), (3,), (8,), (17, 31), (128, 64), (65,), (33, 7, 5), (100,), (63,), (200, 10))
SHAPES = [
    pytest.param(
        kind,
        ModelInputs(features, cards, outputs),
        loss,
        HIDDEN[(features * 7 + outputs) % len(HIDDEN)],
        ACTIVATIONS[(features + outputs) % len(ACTIVATIONS)],
        id=f"{kind}-{features}-{len(cards)}-{outputs}-{loss}",
    )
    for features in (0, 1, 2, 3, 5, 7, 9, 10, 13, 16, 17, 31, 33, 48, 63, 64, 65, 70)
    for outputs, loss in ((1, "mse"), (1, "bce"), (2, "cross_entropy"), (5, "cross_entropy"))
    for kind, cards in (("linear", ()), ("mlp", (4, 7, 300)), ("linear", (4, 7)), ("mlp", ()))
    if features + len(cards) and (features + outputs + len(cards)) % 2
]


@pytest.mark.parametrize(("kind", "inputs", "loss", "hidden", "activation"), SHAPES)
def test_a_rows_outputs_do_not_depend_on_its_place_or_its_neighbours(
    kind: str, inputs: ModelInputs, loss: Any, hidden: tuple[int, ...], activation: str
) -> None:
    scorer = Scorer(NOTHING, model_of(kind, inputs, hidden, activation), loss)
    count = SCORE_ROWS + 300
    numeric, codes = rows_of(count, inputs, seed=3)
    expected = bits(scorer.score_features(numeric, codes))
    random = np.random.default_rng(4)
    for size in (count, 700, 1):
        chosen = random.permutation(count)[:size]
        found = bits(scorer.score_features(numeric[chosen], codes[chosen]))
        different = np.flatnonzero((found != expected[chosen]).any(axis=1))
        assert len(different) == 0, f"{len(different)} of {size} rows have other last bits"


def test_outputs_are_those_of_the_plain_network() -> None:
    inputs = ModelInputs(9, (4,), 3)
    model = model_of("mlp", inputs, (33, 7), "silu").eval()
    numeric, codes = rows_of(50, inputs, seed=0)
    with torch.no_grad():
        logits = model(torch.from_numpy(numeric), torch.from_numpy(codes))
    expected = activate(logits, "cross_entropy").numpy()
    found = Scorer(NOTHING, model, "cross_entropy").score_features(numeric, codes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("count", [0, 1, SCORE_ROWS, SCORE_ROWS + 1])
def test_every_row_has_one_line_of_outputs(count: int) -> None:
    inputs = ModelInputs(3, (), 5)
    scorer = Scorer(NOTHING, model_of("linear", inputs, (), ""), "cross_entropy")
    outputs = scorer.score_features(*rows_of(count, inputs, seed=1))
    assert outputs.shape == (count, 5)
    assert np.isfinite(outputs).all()


class OddNet(nn.Module):
    """What custom networks do with linear layers: read, share, tie and nest them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.again = self.first
        self.nested = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(6, 5, bias=False)])})
        self.encoder = nn.TransformerEncoderLayer(6, 2, dim_feedforward=7, batch_first=True)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        hidden = self.again(numeric_BF)
        hidden = self.encoder(hidden[:, None])[:, 0]
        back = self.nested["a"][0](hidden) + hidden @ self.first.weight
        return back @ self.first.weight[:1].T + self.first.bias[0] * self.first.in_features


def test_a_custom_network_may_read_its_layers_weights() -> None:
    torch.manual_seed(0)
    model = OddNet().eval()
    numeric = torch.randn(20, 5)
    codes = torch.empty(20, 0, dtype=torch.int64)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(numeric, codes)
        found = place_free(model)(numeric, codes)
    assert torch.allclose(found, expected, atol=1e-5)
    after = model.state_dict()
    assert set(after) == set(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_scoring_leaves_torchs_threads_and_generator_alone() -> None:
    inputs = ModelInputs(3, (), 2)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        scorer = Scorer(NOTHING, model_of("mlp", inputs, (8,), "relu"), "cross_entropy")
        scorer.score_features(*rows_of(5, inputs, seed=0))
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), generator)
    finally:
        torch.set_num_threads(threads)


def test_threads_that_score_at_once_get_the_same_outputs() -> None:
    inputs = ModelInputs(9, (), 3)
    scorer = Scorer(NOTHING, model_of("mlp", inputs, (17,), "relu"), "cross_entropy")
    rows = rows_of(3000, inputs, seed=0)
    expected = bits(scorer.score_features(*rows))
    found: list[Bits] = []
    threads = [
        threading.Thread(target=lambda: found.append(bits(scorer.score_features(*rows))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(each, expected) for each in found)


def test_a_row_that_is_not_usable_has_no_outputs_and_the_others_keep_theirs() -> None:
    fitted = FittedPreprocessor((FittedColumn("x", "numeric", "drop"),), NOTHING.target)
    model = model_of("linear", ModelInputs(1, (), 1), (), "")
    scorer = Scorer(fitted, model, "mse")
    scored = scorer.score(pa.table({"x": [1.0, None, 3.0]}))
    assert np.isnan(scored.outputs[:, 0]).tolist() == [False, True, False]
    alone = scorer.score(pa.table({"x": [3.0]}))
    assert bits(alone.outputs)[0] == bits(scored.outputs)[2]


def test_predictions_have_names_and_probabilities_and_nulls_where_there_is_none() -> None:
    target = FittedTarget("y", "classification", ("no", "yes"))
    outputs = np.array([[0.25, 0.75], [np.nan, np.nan], [0.5, 0.5]], dtype=np.float32)
    table = prediction_table(target, np.array([7, 8, 9]), outputs)
    assert table.to_pydict() == {
        "row_id": [7, 8, 9],
        "prediction": ["yes", None, "no"],
        "probability_no": [0.25, None, 0.5],
        "probability_yes": [0.75, None, 0.5],
    }
    numbers = outputs[:2, :1].astype(np.float64)
    values = prediction_table(NOTHING.target, np.array([1, 2]), numbers)
    assert values.to_pydict() == {"row_id": [1, 2], "prediction": [0.25, None]}
    assert values["prediction"].type == pa.float64()


def test_how_far_two_tables_of_predictions_are_apart() -> None:
    def table(*values: float | None) -> pa.Table:
        return pa.table({"prediction": pa.array(values, pa.float32())})

    assert largest_difference(table(1.0, None), table(1.0, None)) == 0
    assert largest_difference(table(0.5), table(0.25)) == 0.25
    assert largest_difference(table(100.0), table(200.0)) == 0.5
    assert largest_difference(table(1e-9), table(None)) == float("inf")
    assert largest_difference(table(None), table(1e-9)) == float("inf")
    assert largest_difference(table(1.0), table(1.0, 2.0)) == float("inf")
    assert largest_difference(table(1.0), pa.table({"other": [1.0]})) == float("inf")


def test_an_artifact_whose_parts_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    result = run(spec_for(tmp_path, mixed_table(60)), last="train")
    assert result.trained is not None
    assert result.prepared is not None
    fitted = FittedPreprocessor.from_json(result.prepared.preprocessing_state(), where="here")
    fewer = FittedPreprocessor(fitted.columns[1:], fitted.target)
    with pytest.raises(ArtifactError, match="widths"):
        Scorer.of(
            result.trained.artifact,
            weights="best.safetensors",
            preprocessor=fewer,
            code=CustomCode(),
        )
