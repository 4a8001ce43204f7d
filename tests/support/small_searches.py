"""Small searches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.tuning.stage import SearchResult
from tests.support.builders import mixed_table, spec_for

__all__ = ["SPACE", "search_spec", "table"]

SPACE = {
    "training.optimizer.lr": {"log_uniform": [1e-3, 1e-1]},
    "model.dropout": {"uniform": [0.0, 0.5]},
}


def search_spec(
    folder: Path, search: Mapping[str, Any], *, epochs: int = 4, **sections: Any
) -> LoadedSpec:
    """A small table and a small network, searched."""
    folder.mkdir()
    loaded = spec_for(
        folder,
        mixed_table(103),
        model={"kind": "mlp", "hidden": [16], "dropout": 0.3},
        training={"epochs": epochs, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.05}},
        **sections,
    )
    text = json.loads(loaded.path.read_text()) | {
        "search": {"space": SPACE, "export": False, **search}
    }
    loaded.path.write_text(json.dumps(text))
    return load_spec(loaded.path)


def table(result: SearchResult) -> bytes:
    """The table as it lies on storage."""
    return result.layout.storage.read(result.layout.table)
