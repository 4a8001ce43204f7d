"""Several ranks pause after the same step, and a kill right after that changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import PausedRunError, RankLostError
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.testing.training import GlooWorker
from batchtrain.training.stage import train
from batchtrain.training.standing import run_standing
from tests.support.builders import layout_for, mixed_table, prepared_for, spec_for
from tests.support.ranks import compared

pytestmark = pytest.mark.fault

EPOCHS = 7
SELDOM = {"every_seconds": 1e6}


def trained(
    loaded: LoadedSpec, size: int, pause_after: int | None = None, fault: str = ""
) -> TrainedModel:
    return train(
        loaded,
        prepared_for(loaded),
        layout_for(loaded),
        Progress(),
        launcher=GlooWorker(size, faults={0: fault} if fault else {}),
        pause_after=pause_after,
    )[0]


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 3])
def test_ranks_paused_or_killed_while_they_pause_end_with_the_bytes_of_an_unbroken_run(
    tmp_path: Path, size: int
) -> None:
    found = []
    for name in ("whole", "paused"):
        (tmp_path / name).mkdir()
        loaded = spec_for(
            tmp_path / name,
            mixed_table(90),
            training={"epochs": EPOCHS, "batch_size": 16, "checkpoint": SELDOM},
        )
        if name == "paused":
            with pytest.raises(PausedRunError):
                trained(loaded, size, 2)
            # The only checkpoint of this attempt is the one with which it pauses.
            with pytest.raises(RankLostError):
                trained(loaded, size, 5, "checkpoint.named:1:kill")
            standing = run_standing(layout_for(loaded), Progress())
            assert (standing.epochs, standing.is_finished) == (5, False)
        found.append(trained(loaded, size))
    whole, paused = found
    assert whole.content["epochs"] == EPOCHS
    assert compared(paused) == compared(whole)
