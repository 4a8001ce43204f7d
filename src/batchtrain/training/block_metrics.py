"""Metrics that early stopping follows: of each block, as JSON, and merged in the order of blocks.

Apart from `measuring`, since it brings torchmetrics, whose import takes long.

Shapes: B rows of a block, K outputs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchtrain.errors import DivergedError, TrainingError
from batchtrain.metrics.compute import MetricSet, build_metrics
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, activate

__all__ = ["merged_metrics", "packed_metrics"]


def packed_metrics(
    outputs_BK: Tensor, batch: Batch, loss: Loss, names: Sequence[str]
) -> dict[str, Any] | None:
    """The states of the metrics of one block, as JSON to the last bit.

    They are in the target's own units, and count each row once, as an evaluation's are.

    Returns:
        None where an output is not finite, which all ranks have to hear of.
    """
    outputs_BK = outputs_BK.float()
    if not bool(outputs_BK.isfinite().all()):
        return None
    if not batch.target_B.is_floating_point():
        probabilities_BK = activate(outputs_BK, loss.name)
        found = build_metrics(names, "classification", probabilities_BK.shape[1])
        found.update(probabilities_BK, batch.target_B)
        return _packed(found)
    predicted_B, target_B = outputs_BK[:, 0].cpu().double(), batch.target_B.cpu().double()
    if loss.target_scale is not None:
        scale = loss.target_scale
        predicted_B = predicted_B * scale.deviation + scale.mean
        target_B = target_B * scale.deviation + scale.mean
    found = build_metrics(names, "regression", 0)
    found.update(predicted_B, target_B)
    return _packed(found)


def merged_metrics(blocks: Sequence[Mapping[str, Any] | None], split: str) -> dict[str, float]:
    """The metrics of all blocks, merged one after the other.

    Args:
        blocks: What `packed_metrics` gave, in the order of the blocks.
        split: Their split, for messages.

    Raises:
        DivergedError: If a block has an output that is not finite.
        TrainingError: If a metric is not defined for the rows.
    """
    total: MetricSet | None = None
    for packed in blocks:
        if packed is None:
            raise DivergedError(
                f"expected finite outputs on the {split} split, found NaN or infinity. Lower "
                "`training.optimizer.lr`, or look for extreme values in the data"
            )
        found = _unpacked(packed)
        if total is None:
            total = found
        else:
            total.merge(found)
    if total is None:
        raise TrainingError(f"expected rows in the {split} split, found none. Give it a share")
    result = total.compute()
    for name, reason in result.notes.items():
        raise TrainingError(
            f"expected a value of {name} for the {split} split, which "
            f"`training.early_stopping.metric` follows, found none: {reason}. Choose another "
            f"metric, or give the {split} split other rows"
        )
    return {name: value for name, value in result.values.items() if value is not None}


def _packed(found: MetricSet) -> dict[str, Any]:
    return {
        "names": list(found.names),
        "task": found.task,
        "num_classes": found.num_classes,
        "num_rows": found.num_rows,
        "states": {
            name: {key: _as_text(value) for key, value in state.metric_state.items()}
            for name, state in found.states.items()
        },
    }


def _unpacked(packed: Mapping[str, Any]) -> MetricSet:
    found = MetricSet(packed["names"], packed["task"], packed["num_classes"])
    found.num_rows = packed["num_rows"]
    for name, values in packed["states"].items():
        state = found.states[name]
        for key, value in values.items():
            setattr(state, key, _from_text(value))
        # What torchmetrics counts by itself when rows come; without it `compute` warns.
        state._update_count = 1
    return found


def _as_text(value: Tensor | list[Tensor]) -> Any:
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    array = value.cpu().numpy()
    text = base64.b64encode(array.tobytes()).decode()
    return {"type": array.dtype.name, "shape": list(array.shape), "data": text}


def _from_text(value: Any) -> Tensor | list[Tensor]:
    if isinstance(value, list):
        return [_tensor(each) for each in value]
    return _tensor(value)


def _tensor(value: Mapping[str, Any]) -> Tensor:
    data = np.frombuffer(bytearray(base64.b64decode(value["data"])), dtype=value["type"])
    return torch.from_numpy(data.reshape(value["shape"]))
