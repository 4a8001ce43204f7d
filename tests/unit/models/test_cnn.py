"""The small CNN: the numeric features are the pixels of an image of the shape asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from batchtrain.errors import SpecError
from batchtrain.models.build import build_model
from batchtrain.models.cnn import image_shape
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import CnnModel


def cnn(inputs: ModelInputs, **keys: object) -> nn.Module:
    return build_model(CnnModel(kind="cnn", **{"activation": "relu", **keys}), inputs, seed=1)


def rows(inputs: ModelInputs, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    codes = [torch.randint(n, (count,), generator=generator) for n in inputs.cardinalities]
    codes_BC = torch.stack(codes, 1) if codes else torch.zeros(count, 0, dtype=torch.int64)
    return torch.randn(count, inputs.num_numeric, generator=generator), codes_BC


@pytest.mark.parametrize("pooling", ["none", "max", "mean"])
def test_it_is_convolution_activation_pooling_then_hidden_layers(pooling: str):
    inputs = ModelInputs(2 * 5 * 4, (), 3)
    model = cnn(
        inputs, shape=(2, 5, 4), channels=(3, 4), kernel=5, pooling=pooling, hidden=(6,)
    ).eval()
    weights = iter(model.parameters())
    numeric_BF, codes_BC = rows(inputs)
    # Row, then column, then the next channel.
    images = numeric_BF.reshape(4, 2, 5, 4)
    for _ in range(2):
        images = F.conv2d(F.pad(images, (2, 2, 2, 2)), next(weights), next(weights)).relu()
        if pooling != "none":
            height, width = images.shape[2] // 2 * 2, images.shape[3] // 2 * 2
            parts = images[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
            images = parts.amax((3, 5)) if pooling == "max" else parts.mean((3, 5))
    hidden = F.linear(images.flatten(1), next(weights), next(weights)).relu()
    expected = F.linear(hidden, next(weights), next(weights))
    torch.testing.assert_close(model(numeric_BF, codes_BC), expected)
    assert next(weights, None) is None


def test_a_shifted_image_gives_the_shifted_picture_of_a_convolution():
    inputs = ModelInputs(49, (), 2)
    model = cnn(inputs, channels=(3,))
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 2:4, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    first, again = (model.convolutions[0](each) for each in (image, image.roll((1, 1), (2, 3))))
    torch.testing.assert_close(first.roll((1, 1), (2, 3))[:, :, 1:, 1:], again[:, :, 1:, 1:])


def test_categories_are_embedded_and_join_before_the_head():
    inputs = ModelInputs(16, (5, 3), 2)
    model = cnn(inputs, channels=(2,), embedding_dim=4, hidden=(6,)).eval()
    assert model.layers[0].in_features == 2 * 2 * 2 + 2 * 4
    numeric_BF, codes_BC = rows(inputs)
    other = codes_BC.clone()
    other[:, 1] = (other[:, 1] + 1) % 3
    assert not torch.equal(model(numeric_BF, codes_BC), model(numeric_BF, other))
    # Code 0 stands for a category that training never saw, and is neutral.
    assert bool((model.embedding.weight[[0, 5]] == 0).all())


def test_there_may_be_no_hidden_layer():
    model = cnn(ModelInputs(16, (), 3), hidden=(), channels=(2, 2))
    assert [type(layer) for layer in model.layers] == [nn.Linear]
    assert model.layers[0].in_features == 2


@given(side=st.integers(1, 300))
def test_auto_is_a_square_of_one_channel(side: int):
    assert image_shape(CnnModel(kind="cnn"), side * side) == (1, side, side)


@given(count=st.integers(0, 10_000).filter(lambda n: n == 0 or round(n**0.5) ** 2 != n))
def test_auto_without_a_square_is_an_error_that_names_the_numbers(count: int):
    with pytest.raises(SpecError, match=rf"found {count}\b") as raised:
        image_shape(CnnModel(kind="cnn"), count)
    assert raised.value.problems[0].key == "model.shape"


def test_a_shape_of_other_pixels_is_an_error_that_names_the_numbers():
    with pytest.raises(SpecError, match=r"3 x 8 x 8 = 192 numeric features.*found 64"):
        cnn(ModelInputs(64, (), 2), shape=(3, 8, 8))


def test_more_pooling_than_pixels_is_an_error_that_names_the_numbers():
    with pytest.raises(SpecError, match=r"4 convolutions.*8 x 9 pixels.*at most 3") as raised:
        cnn(ModelInputs(72, (), 2), shape=(1, 8, 9), channels=(2, 2, 2, 2))
    assert raised.value.problems[0].key == "model.channels"
    cnn(ModelInputs(72, (), 2), shape=(1, 8, 9), channels=(2, 2, 2))
    cnn(ModelInputs(72, (), 2), shape=(1, 8, 9), channels=(2, 2, 2, 2), pooling="none")


def test_one_pixel_cannot_be_pooled():
    with pytest.raises(SpecError, match="pooling: none"):
        cnn(ModelInputs(1, (), 2), channels=(2,))
    assert cnn(ModelInputs(1, (), 2), channels=(2,), pooling="none") is not None


def test_the_state_holds_parameters_only():
    model = cnn(ModelInputs(16, (4,), 2))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
