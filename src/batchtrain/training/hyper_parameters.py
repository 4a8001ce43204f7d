"""What a run is trained with, flat and by dotted key, as trackers compare runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.spec.data import SPLITS
from batchtrain.spec.resolved import resolved_document
from batchtrain.spec.run import RunSpec
from batchtrain.training.run_log import HyperParameter

__all__ = ["flat", "hyper_parameters"]

PLAIN_KEY = re.compile(r"[A-Za-z0-9_]+")

DATA_KEYS = ("task", "target", "split")
"""What of the data a person compares runs by; columns and spellings are the same in most."""


def hyper_parameters(
    spec: RunSpec,
    prepared: PreparedData,
    *,
    batch_rows: int,
    loss: str,
    device: str,
    workers: int,
) -> dict[str, HyperParameter]:
    """The resolved values of seed, data, model and training, and the number of rows.

    Args:
        spec: As it was written.
        prepared: The rows.
        batch_rows: The global batch.
        loss: Its name.
        device: Where the model trains.
        workers: On how many ranks.
    """
    document = resolved_document(
        spec,
        data=prepared.profile()["data"],
        batch_rows=batch_rows,
        loss=loss,
        metrics=(),
        device=device,
        workers=workers,
    )
    # When the state is saved changes nothing.
    document["training"].pop("checkpoint")
    if not spec.training.changes:
        del document["training"]["changes"]
    document["data"] = {name: document["data"][name] for name in DATA_KEYS}
    sections = {
        name: document[name] for name in ("seed", "determinism", "model", "data", "training")
    }
    resources = {name: document["resources"][name] for name in ("device", "workers")}
    rows = {split: prepared.num_rows(split) for split in SPLITS}
    return dict(flat({**sections, "resources": resources, "rows": rows}))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, HyperParameter]]:
    """Every value that is set, by dotted key; a list, or a table of names of the user, as text.

    Example:
        >>> dict(flat({"hidden": [8, 4], "ema": None, "lr": 0.1, "weights": {"a b": 1}}))
        {'hidden': '8-4', 'lr': 0.1, 'weights': '{"a b": 1}'}
    """
    if isinstance(value, Mapping) and all(PLAIN_KEY.fullmatch(str(name)) for name in value):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and all(isinstance(item, int | str) for item in value):
        yield key, "-".join(str(item) for item in value)
    elif isinstance(value, Mapping | list):
        yield key, json.dumps(value, ensure_ascii=False)
    elif value is not None:
        yield key, value
