"""The widths of a model survive JSON, and impossible ones and stray codes are refused."""

from __future__ import annotations

import json

import pytest
import torch

from batchtrain.errors import ArtifactError, DataError, TrainingError
from batchtrain.models.inputs import ModelInputs, check_codes, code_offsets


def test_widths_come_back_from_json():
    inputs = ModelInputs(num_numeric=3, cardinalities=(4, 2), num_outputs=5)
    assert ModelInputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"num_numeric": "3"},
        {"num_numeric": True},
        {"cardinalities": 4},
        {"cardinalities": [4.0]},
        {"num_outputs": None},
    ],
)
def test_a_document_of_another_form_is_refused(change):
    document = ModelInputs(num_numeric=3, cardinalities=(4,), num_outputs=5).to_json()
    with pytest.raises(ArtifactError, match="num_outputs"):
        ModelInputs.from_json({**document, **change})


def test_a_document_without_a_key_is_refused():
    with pytest.raises(ArtifactError):
        ModelInputs.from_json({"num_numeric": 1, "cardinalities": []})


@pytest.mark.parametrize("widths", [(0, (), 1), (-1, (2,), 1), (1, (0,), 1), (1, (), 0)])
def test_widths_that_no_model_can_have_are_refused(widths):
    with pytest.raises(TrainingError, match="at least one"):
        ModelInputs(*widths)


def test_offsets_put_the_columns_one_after_the_other():
    assert code_offsets([3, 1, 5]).tolist() == [0, 3, 4]


@pytest.mark.parametrize(("code", "column"), [(-1, 0), (3, 0), (2, 1)])
def test_a_code_that_would_read_another_columns_weights_is_refused(code, column):
    inputs = ModelInputs(num_numeric=0, cardinalities=(3, 2), num_outputs=1)
    codes = torch.zeros(4, 2, dtype=torch.int64)
    check_codes(codes, inputs)
    codes[2, column] = code
    with pytest.raises(DataError, match=f"column {column}, found {code} in row 2"):
        check_codes(codes, inputs)


def test_codes_of_another_width_are_refused():
    inputs = ModelInputs(num_numeric=1, cardinalities=(3, 2), num_outputs=1)
    with pytest.raises(DataError, match="2 columns"):
        check_codes(torch.zeros(4, 3, dtype=torch.int64), inputs)
    check_codes(
        torch.zeros(4, 0, dtype=torch.int64),
        ModelInputs(num_numeric=1, cardinalities=(), num_outputs=1),
    )
