"""Carries out a search on Ray Tune: a trial of Tune is a unit of work, in an actor that stays.

Tune starts the actors, keeps them busy, and starts those anew that were lost. What is tried, what
came of it and what is best is not Tune's to say, and nothing of what it writes is read back.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.session import RaySession, hush_ray_data
from batchtrain.errors import BatchtrainError, ClusterError, InterruptedRunError
from batchtrain.failures import Failure
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.surroundings import ChosenLauncher
from batchtrain.training.launcher import Launcher
from batchtrain.training.ray_board import open_board
from batchtrain.tuning.choice import UnitResources
from batchtrain.tuning.loop import SearchLoop
from batchtrain.tuning.running import GO_ON, UnitRunner, read_outcome
from batchtrain.tuning.work import Member, Unit

__all__ = ["OnTune"]

POLL_SECONDS = 0.3
SAY_SECONDS = 0.3
"""How often an actor says how far it is, and hears whether to stop."""
LOST_ACTORS = 3
"""So often a unit is begun anew whose actor, or its node, was lost."""

SETTINGS = {
    # We write a table of our own, and nothing reads Tune's files.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C asks the units to stop, which save their states.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class OnTune:
    """An `Executor` on Ray Tune.

    Attributes:
        runner: Does the work of a unit; each actor gets a copy.
        session: The connection to Ray.
        resources: What a unit holds; no core where each trial has ranks of its own, which Ray Train
            starts.
    """

    runner: UnitRunner
    session: RaySession
    resources: UnitResources

    def __call__(self, loop: SearchLoop, stop_requested: Callable[[], bool]) -> None:
        """See `Executor`."""
        concurrent = self.resources.concurrent
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        # All actors start at once; by itself Tune starts one after the other.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrent)
        self.session.connect()
        hush_ray_data()
        # Tune keeps an actor only for units that wait for one, so as many wait as are at work.
        # Where a unit holds no core, nothing else keeps more of them from starting.
        most = 2 * concurrent if self.resources.cpus else concurrent
        desk = _Desk(loop, most, stop_requested)
        if desk.is_over():
            return
        board = open_board()
        listener = threading.Thread(target=_listen, args=(board, desk, loop), daemon=True)
        listener.start()
        try:
            self._fit(desk, board)
        finally:
            desk.closed.set()
            listener.join()
            with suppress(Exception):
                ray.kill(board)
        if desk.failure is not None:
            raise desk.failure
        if stop_requested():
            raise InterruptedRunError(f"stopped the search. {GO_ON}")

    def _fit(self, desk: _Desk, board: Any) -> None:
        trainable = tune.with_parameters(
            _UnitTrainable,
            runner=replace(self.runner, rows=None, launcher=None),
            rows=self.runner.rows,
            board=board,
            has_ranks=not self.resources.cpus,
        )
        trainable = tune.with_resources(
            trainable, tune.PlacementGroupFactory([self.resources.bundle()])
        )
        with tempfile.TemporaryDirectory(
            prefix="batchtrain-tune-", ignore_cleanup_errors=True
        ) as folder:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_UnitSearcher(desk), num_samples=-1, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=folder,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=LOST_ACTORS),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            tuner.fit()


class _Desk:
    """Where Tune asks for units and says what became of them; all in the driver's process."""

    def __init__(self, loop: SearchLoop, most: int, stop_requested: Callable[[], bool]) -> None:
        self._loop = loop
        self._most = most
        self._units: dict[str, Unit] = {}
        self.stop_requested = stop_requested
        self.failure: Exception | None = None
        self.closed = threading.Event()
        self._next: Unit | None = None

    def is_over(self) -> bool:
        """Whether there is nothing to start Tune for."""
        self._next = self._loop.next()
        return self._next is None

    def give(self, trial: str) -> Unit | None:
        """A unit for a trial of Tune; None where it is to ask again."""
        if len(self._units) >= self._most:
            return None
        unit, self._next = self._next or self._loop.next(), None
        if unit is not None:
            self._units[trial] = unit
        return unit

    @property
    def is_closing(self) -> bool:
        """Whether no more units are given."""
        if self.stop_requested() or self.failure is not None:
            return True
        return self._next is None and self._loop.is_over()

    def take(self, trial: str, result: Mapping[str, Any] | None) -> None:
        """Hear that a trial of Tune has ended."""
        unit = self._units.pop(trial, None)
        if unit is None:
            return
        try:
            found = (result or {}).get("failed")
            if found:
                self.failure = Failure.from_json(json.loads(found)).to_own_error()
                return
            outcome = read_outcome(self._loop.layout, unit)
            if outcome is not None:
                self._loop.done(unit, outcome)
            elif not (result or {}).get("stopped"):
                self.failure = ClusterError(
                    f"expected the outcome of {unit.title}, found that its process was lost "
                    f"{LOST_ACTORS + 1} times, and that Ray starts it no more. Look for memory "
                    f"that ran out, or lower `search.concurrent`. {GO_ON}"
                )
        except Exception as error:  # noqa: BLE001
            # Tune would only log it, and wait for ever for a unit that nobody is done with.
            self.failure = error


class _UnitSearcher(Searcher):
    """What Tune takes for a search algorithm."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(metric="done", mode="max")
        self._desk = desk

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a copy of what it was given, which nobody reads."""
        return (Searcher, ())

    def suggest(self, trial_id: str) -> Any:
        """See `Searcher.suggest`."""
        if self._desk.is_closing:
            return Searcher.FINISHED
        unit = self._desk.give(trial_id)
        # As text, since Tune looks for spaces of its own in whatever else it is given.
        return None if unit is None else {"unit": json.dumps(asdict(unit))}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See `Searcher.on_trial_complete`."""
        self._desk.take(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing that Tune keeps is used; it wants a file all the same."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _UnitTrainable(tune.Trainable):
    """One process that runs units, one after the other."""

    def setup(  # type: ignore[override]  # `tune.with_parameters` gives the rest
        self,
        config: dict[str, Any],
        *,
        runner: UnitRunner,
        rows: Mapping[str, Sequence[SplitRows]] | None = None,
        board: Any = None,
        has_ranks: bool = False,
    ) -> None:
        """See `Trainable.setup`."""
        self._runner = replace(runner, rows=rows, launcher=_ranks_launcher if has_ranks else None)
        self._board = board
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See `Trainable.reset_config`."""
        document = json.loads(new_config["unit"])
        members = tuple(Member(**each) for each in document.pop("members"))
        self._unit = Unit(members, **document)
        return True

    def step(self) -> dict[str, Any]:
        """Run the unit; see `Trainable.step`."""
        teller = _BoardTeller(self._board)
        try:
            self._runner.run(self._unit, teller, teller.stop_requested)
        except InterruptedRunError:
            return {"done": True, "stopped": True}
        except BatchtrainError as error:
            return {"done": True, "failed": json.dumps(Failure.of(error).to_json())}
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what is worth keeping is published by then."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a unit that is begun anew finds what was published of it."""


class _BoardTeller:
    """Says on the board how far a unit is, and hears there whether it is to stop."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._said_at = 0.0
        self._reply: Any = None
        self._stop = False

    def __call__(self, number: int, epoch: int) -> None:
        """See `Teller`."""
        self._exchange([json.dumps([number, epoch])])

    def stop_requested(self) -> bool:
        """Whether the driver has asked for a stop, as the last reply has it."""
        self._exchange([])
        return self._stop

    def _exchange(self, messages: list[str]) -> None:
        """Say something and hear the reply to what was said before, now and then."""
        now = time.monotonic()
        if now - self._said_at < SAY_SECONDS:
            return
        self._said_at = now
        with suppress(RayError):
            if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
                self._stop = bool(ray.get(self._reply).get("stop"))
            self._reply = self._board.say.remote(0, messages)


def _ranks_launcher(loaded: LoadedSpec, prepared: PreparedData) -> Launcher:
    """What starts the ranks of a trial from within an actor, which is connected already."""
    return ChosenLauncher(loaded, prepared, RaySession(), Progress(), engine=EmbeddedEngine())


def _listen(board: Any, desk: _Desk, loop: SearchLoop) -> None:
    """Hear what the units say, and pass on that they are to stop."""
    num_taken, has_ordered = 0, False
    while not desk.closed.wait(POLL_SECONDS):
        try:
            said = ray.get(board.take.remote(num_taken), timeout=10)
            num_taken += len(said)
            for _, text in said:
                loop.tell(*json.loads(text))
            if desk.stop_requested() and not has_ordered:
                has_ordered = True
                ray.get(board.order.remote("stop"), timeout=10)
        except RayError:
            continue
        except Exception as error:  # noqa: BLE001
            # Nobody would hear of it, and whoever asks for a stop would not be heard either.
            desk.failure = error
