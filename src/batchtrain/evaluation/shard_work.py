"""Score one shard of prepared rows, in any process: it imports only what that needs.

Shapes: n rows, K columns of output.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.engine import Tables
from batchtrain.engines.shipped import Shipped
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.scoring import CustomCode, Scorer

__all__ = ["Shard", "best_scorer", "score_shard"]

Shard: TypeAlias = tuple[str, int]
"""A split, and the number of one of its shards."""


def best_scorer(trained: TrainedModel, fitted: FittedPreprocessor, code: CustomCode) -> Scorer:
    """The model with its best weights.

    Raises:
        ArtifactError: If it cannot be used.
    """
    return Scorer.of(trained.artifact, weights="best.safetensors", preprocessor=fitted, code=code)


def score_shard(
    prepared: PreparedData, scorer: Shipped[Scorer], with_feature: bool, shard: Shard
) -> Tables:
    """The outputs for one shard, with what they are measured against.

    Args:
        prepared: Where the rows lie.
        scorer: The model.
        with_feature: Whether the first numeric feature comes along.
        shard: Which one.

    Returns:
        One table: the scorer's outputs, target, row_id, and feature float32 where asked.
    """
    rows = prepared.shard(*shard)
    outputs = scorer.get().score_features(rows.numeric, rows.codes)
    columns: dict[str, Any] = {
        "outputs": pa.FixedSizeListArray.from_arrays(
            pa.array(outputs.reshape(-1)), outputs.shape[1]
        ),
        "target": rows.target,
        "row_id": rows.row_id,
    }
    if with_feature:
        columns["feature"] = np.ascontiguousarray(rows.numeric[:, 0])
    return (pa.table(columns),)
