"""Units of a search that are carried out, each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchtrain.spec.load import LoadedSpec
from batchtrain.tuning.goals import goals_of
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.running import UnitRunner
from batchtrain.tuning.work import Member, Outcome, Unit
from tests.support.builders import mixed_table, prepared_for, spec_for, storage_of

__all__ = ["EPOCHS", "LR", "done", "never", "new_spec", "nobody", "runner_for", "unit"]

LR = "training.optimizer.lr"
EPOCHS = 8
SEARCH = {"space": {LR: {"log_uniform": [1e-3, 1e-1]}}}


def nobody(number: int, epoch: int) -> None:
    """Hear of an epoch."""


def never() -> bool:
    return False


def new_spec(folder: Path, **training: Any) -> LoadedSpec:
    settings = {"epochs": EPOCHS, "batch_size": 16, **training}
    return spec_for(folder, mixed_table(60), training=settings, search=SEARCH)


def runner_for(loaded: LoadedSpec, **other: Any) -> UnitRunner:
    assert loaded.spec.search is not None
    goals = goals_of(loaded.spec.search, loaded.spec.training)
    layout = SearchLayout(storage_of(loaded), "small", "0123456789ab")
    return UnitRunner(loaded, prepared_for(loaded), layout, goals, **other)


def unit(
    values: Mapping[str, Any], first: int = 0, last: int = EPOCHS, *, is_pack: bool = False
) -> Unit:
    return Unit((Member(0, dict(values)),), first, last, EPOCHS, is_pack)


def done(runner: UnitRunner, work: Unit) -> Outcome:
    return runner.run(work, nobody, never)
