"""A row has the same last bits at any place of a block, in every network (P9)."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.preprocessing import FittedPreprocessor, FittedTarget
from batchtrain.scoring import SCORE_ROWS, Scorer
from batchtrain.spec.model import ActivationName, CnnModel, MlpModel, ModelSpec, ResNetModel

NOTHING = FittedPreprocessor((), FittedTarget("y", "regression"))

WIDTHS = st.sampled_from([1, 3, 8, 10, 16, 17, 33, 64, 65])
ACTIVATIONS = st.sampled_from(get_args(ActivationName))
CATEGORIES = st.sampled_from([(), (4,), (7, 300)])
OUTPUTS = st.integers(1, 5)


@st.composite
def tables(draw: st.DrawFn) -> tuple[ModelSpec, ModelInputs]:
    """An mlp with every new key, or a resnet."""
    inputs = ModelInputs(draw(WIDTHS), draw(CATEGORIES), draw(OUTPUTS))
    if draw(st.booleans()):
        width, factor = draw(WIDTHS), draw(st.sampled_from([0.5, 1.3, 2.0]))
        activation, blocks = draw(ACTIVATIONS), draw(st.integers(1, 3))
        return ResNetModel(
            kind="resnet", width=width, hidden_factor=factor, blocks=blocks, activation=activation
        ), inputs
    width = draw(WIDTHS)
    return MlpModel(
        kind="mlp",
        hidden=(width, width),
        normalization="layer",
        residual=True,
        activation=draw(ACTIVATIONS),
    ), inputs


@st.composite
def images(draw: st.DrawFn) -> tuple[ModelSpec, ModelInputs]:
    """A cnn on images of awkward sizes."""
    shape = draw(st.sampled_from([(1, 1, 1), (1, 4, 4), (3, 5, 3), (1, 8, 8), (2, 7, 9)]))
    pooling = draw(st.sampled_from(["none", "max", "mean"])) if shape[1] > 1 else "none"
    channels = tuple(draw(st.lists(st.sampled_from([1, 3, 8, 16, 17]), min_size=1, max_size=2)))
    if shape == (3, 5, 3) and pooling != "none":
        channels = channels[:1]
    spec = CnnModel(
        kind="cnn",
        shape=shape,
        channels=channels,
        kernel=draw(st.sampled_from([1, 3, 5])),
        pooling=pooling,
        hidden=draw(st.sampled_from([(), (9,), (32,)])),
        activation=draw(ACTIVATIONS),
    )
    return spec, ModelInputs(shape[0] * shape[1] * shape[2], draw(CATEGORIES), draw(OUTPUTS))


def check_places(spec: ModelSpec, inputs: ModelInputs, seed: int) -> None:
    """Score rows once in their order, then some of them in another order and number."""
    model = build_model(spec, inputs, seed=1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Also the weights that begin as zero or one take part.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
    scorer = Scorer(NOTHING, model, "cross_entropy")
    random = np.random.default_rng(seed)
    count = SCORE_ROWS + 100
    numeric = random.standard_normal((count, inputs.num_numeric)).astype(np.float32)
    numeric *= np.exp(2 * random.standard_normal(numeric.shape)).astype(np.float32)
    codes = np.stack(
        [random.integers(0, n, count) for n in inputs.cardinalities] or [np.zeros(count)], 1
    ).astype(np.int64)[:, : len(inputs.cardinalities)]
    expected = scorer.score_features(numeric, codes).view(np.int32)
    for size in (count, 1):
        chosen = random.permutation(count)[:size]
        found = scorer.score_features(numeric[chosen], codes[chosen]).view(np.int32)
        different = (found != expected[chosen]).any(axis=1).sum()
        assert different == 0, f"{different} of {size} rows have other last bits"


@settings(max_examples=25)
@given(network=tables(), seed=st.integers(0, 2**16))
def test_layer_norm_and_residuals_do_not_see_the_place_of_a_row(
    network: tuple[ModelSpec, ModelInputs], seed: int
) -> None:
    check_places(*network, seed)


@settings(max_examples=25)
@given(network=images(), seed=st.integers(0, 2**16))
def test_convolutions_and_pooling_do_not_see_the_place_of_a_row(
    network: tuple[ModelSpec, ModelInputs], seed: int
) -> None:
    check_places(*network, seed)
