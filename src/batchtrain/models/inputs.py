"""What a model is told about its inputs, and the batch of tensors that it is fed.

Shapes: B rows of a batch, N rows of a split, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchtrain.errors import ArtifactError, DataError, TrainingError

__all__ = ["Batch", "ModelInputs", "check_codes", "code_offsets"]

_FIELDS = ("num_numeric", "cardinalities", "num_outputs")


@dataclass(frozen=True)
class ModelInputs:
    """The widths that a model is built for.

    Attributes:
        num_numeric: F, the numeric features of a row.
        cardinalities: The number of codes of each categorical column, code 0 (unknown) included.
        num_outputs: K, the outputs of a row.

    Raises:
        TrainingError: If a width is impossible or the model would have no feature at all.
    """

    num_numeric: int
    cardinalities: tuple[int, ...]
    num_outputs: int

    def __post_init__(self) -> None:
        """Refuse widths that no model can have."""
        wrong = (
            self.num_numeric < 0
            or self.num_outputs < 1
            or any(cardinality < 1 for cardinality in self.cardinalities)
            or self.num_numeric + len(self.cardinalities) == 0
        )
        if wrong:
            raise TrainingError(
                "a model needs at least one feature, at least one output and at least one code in "
                f"each categorical column, found {self!r}. Look at which columns the data section "
                "leaves for the model."
            )

    def to_json(self) -> dict[str, Any]:
        """Give the widths as a JSON object."""
        return {
            "num_numeric": self.num_numeric,
            "cardinalities": list(self.cardinalities),
            "num_outputs": self.num_outputs,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelInputs:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: If a key is missing, unknown or of another type.
        """
        cardinalities = document.get("cardinalities")
        valid = (
            set(document) == set(_FIELDS)
            and isinstance(cardinalities, list)
            and all(
                type(width) is int
                for width in (document["num_numeric"], document["num_outputs"], *cardinalities)
            )
        )
        if not valid:
            raise ArtifactError(
                f"model inputs: expected integers for {', '.join(_FIELDS)} (cardinalities as a "
                f"list), found {dict(document)!r}. The artifact was not written by this version; "
                "build it again."
            )
        return cls(
            num_numeric=document["num_numeric"],
            cardinalities=tuple(document["cardinalities"]),
            num_outputs=document["num_outputs"],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows, as tensors on one device.

    Attributes:
        numeric_BF: float32 [B, F]; F may be 0.
        codes_BC: int64 [B, C], each code below its column's cardinality; C may be 0.
        target_B: The class as int64 [B], or the value as float32 [B].
        weight_B: float32 [B], or None where every row weighs 1.
    """

    numeric_BF: Tensor
    codes_BC: Tensor
    target_B: Tensor
    weight_B: Tensor | None = None


def code_offsets(cardinalities: Sequence[int]) -> Tensor:
    """Where each column's rows begin in a table that holds all columns: int64 [C]."""
    widths_C = torch.tensor(cardinalities, dtype=torch.int64)
    return widths_C.cumsum(0) - widths_C


def check_codes(codes_NC: Tensor, inputs: ModelInputs) -> None:
    """Make sure that every code belongs to its column.

    The columns share one table of weights, so a code past its column's end would read a row of
    the next column without an error. A forward pass must not wait for the device, so this is for
    whoever loads the data, once.

    Raises:
        DataError: If a code is negative or not below its column's cardinality.
    """
    cardinalities = codes_NC.new_tensor(inputs.cardinalities)
    if codes_NC.ndim != 2 or codes_NC.shape[1] != len(inputs.cardinalities):
        raise DataError(
            f"category codes: expected {len(inputs.cardinalities)} columns, found a tensor of "
            f"shape {list(codes_NC.shape)}. Prepare the data again."
        )
    wrong_NC = (codes_NC < 0) | (codes_NC >= cardinalities)
    if bool(wrong_NC.any()):
        row, column = (int(index) for index in wrong_NC.nonzero()[0])
        raise DataError(
            f"category codes: expected 0 to {inputs.cardinalities[column] - 1} in categorical "
            f"column {column}, found {int(codes_NC[row, column])} in row {row}. The data was "
            "prepared for another model; prepare it again."
        )
