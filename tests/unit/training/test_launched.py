"""What a rank says of its training, and the state that it leaves, for whoever launched it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from batchtrain import points
from batchtrain.artifacts import remove_artifacts
from batchtrain.errors import ArtifactMissingError, InterruptedRunError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.training.launched import SentProgress, hear_progress, last_state
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import OneRank
from batchtrain.training.train import OneProcess
from tests.support.builders import mixed_table, spec_for
from tests.support.ranks import Told


def test_what_a_rank_says_of_its_training_arrives_as_it_was() -> None:
    working: list[tuple[str, int, int | None]] = []

    class Working(Told):
        def working(self, what: str, done: int, total: int | None) -> None:
            working.append((what, done, total))

    told = Working()
    sent = SentProgress(lambda value: hear_progress(json.loads(json.dumps(value)), told))
    sent.note("an odd column")
    sent.working("rows trained", 7, None)
    sent.epoch_finished({"epoch": 2, "valid_loss": 0.1 + 0.2}, 3)
    assert told.notes == ["an odd column"]
    assert working == [("rows trained", 7, None)]
    assert told.records == [{"epoch": 2, "valid_loss": 0.1 + 0.2}]


@dataclass
class Keeping(OneProcess):
    """Trains here, as a rank does that another process launched, and remembers its task."""

    tasks: list[TrainTask] = field(default_factory=list)

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> Any:
        """See `Launcher`."""
        self.tasks.append(task)
        state = train_rank(task, OneRank(), progress, stop_requested, save_last=True)
        found = last_state(task)
        assert found.snapshot().sha256() == state.snapshot().sha256()
        with pytest.raises(ArtifactMissingError, match="no checkpoint of this attempt"):
            last_state(replace(task, claim=task.claim + 1))
        remove_artifacts(task.layout.storage, task.layout.checkpoints)
        with pytest.raises(ArtifactMissingError, match="no checkpoint of this attempt"):
            last_state(task)
        return state


def test_the_last_state_is_that_of_this_attempt_or_an_error(tmp_path: Path) -> None:
    launcher = Keeping()
    run_spec(spec_for(tmp_path, mixed_table(60)), last="train", launcher=launcher)
    assert len(launcher.tasks) == 1


class Waiting(OneRank):
    """Remembers when the ranks waited for each other, as `gather(None)` is for."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks.gather`."""
        if value is None:
            self._events.append("all ranks are here")
        return super().gather(value)


@dataclass
class Stopped(OneProcess):
    """Is stopped after its first step."""

    events: list[str] = field(default_factory=list)

    def __call__(self, task: TrainTask, progress: Progress, _stop: Callable[[], bool]) -> Any:
        """See `Launcher`."""
        points.listen(lambda name: name == "checkpoint.published" and self.events.append(name))
        try:
            return train_rank(task, Waiting(self.events), progress, lambda: True, save_last=True)
        finally:
            points.listen(None)


def test_r20_no_rank_says_that_it_stopped_before_rank_0_has_saved(tmp_path: Path) -> None:
    # Whoever hears the first of them ends all the others.
    launcher = Stopped()
    with pytest.raises(InterruptedRunError, match="stopped after step 1"):
        run_spec(spec_for(tmp_path, mixed_table(60)), last="train", launcher=launcher)
    assert launcher.events == ["checkpoint.published", "all ranks are here"]
