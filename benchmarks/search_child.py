"""One search of drug200 in a process of its own, timed once everything is warm.

Usage: `python -m benchmarks.search_child WAY TRIALS EPOCHS FOLDER`; the last line that it prints
is what it found, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["BARE", "HERE", "PACKED", "PACKED_TUNE", "TUNE", "WAYS", "main", "spec_text", "timed"]

BARE = "a Tune actor per trial"
TUNE = "Ray Tune, reused actors"
HERE = "this process"
PACKED_TUNE = "packed, Ray Tune"
PACKED = "packed, this process"

WAYS: Mapping[str, Sequence[str] | None] = {
    BARE: None,
    TUNE: ("engine=ray", "search.pack=1"),
    HERE: ("engine=embedded", "search.pack=1"),
    PACKED_TUNE: ("engine=ray",),
    PACKED: ("engine=embedded",),
}
"""What of `batchtrain tune` is set for each; None for the bare `Tuner`."""

WARM_TRIALS, WARM_EPOCHS = 8, 2


def spec_text(trials: int, epochs: int) -> str:
    """The spec of the search; a bare `Tuner` trains the same network for as long."""
    return f"""version: 1
name: drug200
seed: 42
data:
  source: sample:drug200
  target: Drug
  split: {{kind: stratified, fractions: {{train: 0.7, valid: 0.1, test: 0.2}}}}
model: {{kind: mlp, hidden: [128, 64], activation: relu, dropout: 0.3}}
training:
  epochs: {epochs}
  batch_size: 32
  loss: cross_entropy
  optimizer: {{kind: adam, lr: 1e-3}}
storage: runs
search:
  space:
    training.optimizer.lr: {{log_uniform: [1e-4, 1e-1]}}
    training.optimizer.weight_decay: {{log_uniform: [1e-6, 1e-2]}}
    model.dropout: {{uniform: [0.0, 0.5]}}
  trials: {trials}
  export: false
"""


def timed(way: str, trials: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Search once to warm up, and once more with the clock running.

    Warm are: Ray with its prestarted workers, the modules of this process, and the table, which is
    prepared anew all the same. Actors are not: they come and go with their search.
    """
    search = _bare(folder) if WAYS[way] is None else _ours(WAYS[way] or (), folder)
    search(WARM_TRIALS, WARM_EPOCHS)
    before = time.perf_counter()
    loss = search(trials, epochs)
    return {"seconds": time.perf_counter() - before, "trials": trials, "loss": loss}


def _bare(folder: Path) -> Callable[[int, int], float]:
    import ray

    from batchtrain.tables.samples import write_sample
    from benchmarks.bare_tune import read_rows, search

    csv = folder / "drug200.csv"
    write_sample("drug200", csv)
    ray.init(log_to_driver=False)
    return lambda trials, epochs: search(read_rows(csv), trials, epochs, folder)


def _ours(settings: Sequence[str], folder: Path) -> Callable[[int, int], float]:
    import torch

    from batchtrain.engines.session import RaySession
    from batchtrain.spec.load import load_spec
    from batchtrain.tuning.stage import tune_spec

    torch.set_num_threads(1)
    if "engine=ray" in settings:
        RaySession("local").connect()

    def search(trials: int, epochs: int) -> float:
        spec = folder / f"{trials}-{epochs}" / "spec.yaml"
        spec.parent.mkdir()
        spec.write_text(spec_text(trials, epochs), encoding="utf-8")
        found = tune_spec(load_spec(spec, settings))
        if found.best is None or len(found.document["trials"]) != trials:
            raise RuntimeError(f"expected {trials} trials and a best one, found {found.document}")
        return float(found.best.scores["valid_loss"] or 0.0)

    return search


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one way, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_child", description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("trials", type=int)
    parser.add_argument("epochs", type=int)
    parser.add_argument("folder", type=Path, help="empty; where everything is written")
    asked = parser.parse_args(arguments)
    print(json.dumps(timed(asked.way, asked.trials, asked.epochs, asked.folder.resolve())))


if __name__ == "__main__":
    main()
