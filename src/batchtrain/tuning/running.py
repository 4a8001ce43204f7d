"""Carry out one unit of work and publish what came of it; the same here and in a Ray actor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.claims import read_claims, who
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.errors import (
    ArtifactDamagedError,
    FencedError,
    InterruptedRunError,
    PausedRunError,
    RunOwnedError,
)
from batchtrain.points import passed
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.storage import Storage
from batchtrain.training.deciding import Watched
from batchtrain.training.launcher import Launcher, LauncherAround
from batchtrain.training.micro_batches import memory_told
from batchtrain.training.plan import make_plan, row_order
from batchtrain.training.stage import run_layout, train
from batchtrain.training.standing import RunStanding, run_standing
from batchtrain.training.train import OneProcess
from batchtrain.tuning.held import HeldShards
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.packs import PackRunner
from batchtrain.tuning.setting import GO_ON, NOT_OF_THE_TRIAL, OF_THE_TRIAL, Setting, Teller
from batchtrain.tuning.trials import Goal
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = ["GO_ON", "UnitRunner", "read_outcome"]


@dataclass
class UnitRunner:
    """Runs units, one after the other, and keeps what they share.

    Attributes:
        loaded: The spec of the search.
        prepared: Its data.
        layout: Where the search lies.
        goals: What is measured of each trial.
        allow_code: Packages whose code a custom model may run.
        own_data: Whether trials may need other data than these, since the space says so.
        rows: The shards of `prepared`, where they are in memory.
        launcher: Makes what runs the ranks of one trial; left out, this process does.
    """

    loaded: LoadedSpec
    prepared: PreparedData
    layout: SearchLayout
    goals: Sequence[Goal]
    allow_code: Sequence[str] = ()
    own_data: bool = False
    rows: Mapping[str, Sequence[SplitRows]] | None = None
    launcher: Callable[[LoadedSpec, PreparedData], Launcher] | None = None
    _setting: Setting = field(init=False)

    def __post_init__(self) -> None:
        self._setting = Setting(
            self.loaded,
            self.prepared,
            self.layout,
            self.goals,
            self.allow_code,
            self.own_data,
            shards=None if self.rows is None else HeldShards(self.rows),
        )

    @property
    def storage(self) -> Storage:
        """Where everything lies."""
        return self.layout.storage

    def run(self, unit: Unit, tell: Teller, stop_requested: Callable[[], bool]) -> Outcome:
        """Do the work of a unit and publish its outcome, unless somebody has already.

        Raises:
            InterruptedRunError: If a stop was requested; nothing is published then.
            BatchtrainError: If something else than a trial failed.
        """
        published = read_outcome(self.layout, unit)
        if published is not None:
            return published
        outcome = (self._pack if unit.is_pack else self._alone)(unit, tell, stop_requested)
        passed("unit.done")
        self.storage.create(self.layout.outcome(unit.key), canonical_json(outcome.to_json()))
        passed("unit.published")
        # Whoever was first counts; it is the same bytes, or the work of another machine.
        return read_outcome(self.layout, unit) or outcome

    def _pack(self, unit: Unit, tell: Teller, stop_requested: Callable[[], bool]) -> Outcome:
        def alone(member: Member) -> tuple[MemberOutcome, Sequence[Mapping[str, Any]]]:
            return self._trial(member, unit, tell, stop_requested)

        return PackRunner(self._setting, unit, alone, tell, stop_requested).run()

    def _alone(self, unit: Unit, tell: Teller, stop_requested: Callable[[], bool]) -> Outcome:
        found = []
        for member in unit.members:
            if stop_requested():
                raise InterruptedRunError(f"stopped between two trials. {GO_ON}")
            found.append(self._trial(member, unit, tell, stop_requested))
        return Outcome(
            tuple(outcome for outcome, _ in found),
            {outcome.number: history for outcome, history in found},
        )

    def _trial(
        self, member: Member, unit: Unit, tell: Teller, stop_requested: Callable[[], bool]
    ) -> tuple[MemberOutcome, Sequence[Mapping[str, Any]]]:
        """Train one trial as an ordinary run, up to the unit's last epoch."""
        try:
            # Also where memory runs out before the first step.
            with memory_told():
                loaded = with_values(self.loaded, member.values)
                prepared = self._setting.prepared_for(loaded)
                layout = run_layout(loaded, prepared, self.storage)
                standing = run_standing(layout, Progress())
                is_last = unit.last_epoch >= unit.full_epochs
                if not standing.is_finished and (is_last or standing.epochs < unit.last_epoch):
                    self._train(loaded, prepared, layout, member, unit, tell, stop_requested)
                    standing = run_standing(layout, Progress())
        except NOT_OF_THE_TRIAL:
            raise
        except OF_THE_TRIAL as error:
            return self._setting.failed(member, unit, error), ()
        standing = _as_of(standing, unit, loaded)
        return self._outcome(member.number, loaded, prepared, standing), standing.history

    def _train(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        layout: RunLayout,
        member: Member,
        unit: Unit,
        tell: Teller,
        stop_requested: Callable[[], bool],
    ) -> None:
        # A trial may have fewer epochs than the others; it is not to pause where it ends.
        epochs = min(unit.full_epochs, loaded.spec.training.epochs)
        launcher = self.launcher(loaded, prepared) if self.launcher else None
        if launcher is None:
            launcher = OneProcess(self._setting.shards_of(prepared))
        try:
            train(
                loaded,
                prepared,
                layout,
                _TrialProgress(member.number, tell),
                allow_code=self.allow_code,
                launcher=_Stopping(launcher, stop_requested),
                # Whoever wrote it was a unit of this search that is no more.
                take_over=True,
                pause_after=unit.last_epoch if unit.last_epoch < epochs else None,
            )
        except PausedRunError:
            return
        except (RunOwnedError, FencedError) as error:
            raise type(error)(_two_writers(member.number, layout)) from error

    def _outcome(
        self, number: int, loaded: LoadedSpec, prepared: PreparedData, standing: RunStanding
    ) -> MemberOutcome:
        order = row_order(prepared, seed=loaded.spec.seed)
        plan = make_plan(loaded.spec.training, order)
        step = standing.history[-1]["step"] if standing.history else 0
        return MemberOutcome(
            number,
            "finished" if standing.is_finished or standing.ended_by else "paused",
            epochs=standing.epochs,
            best_epoch=standing.best_epoch,
            scores=self._setting.scores(loaded, prepared, standing.history, standing.best_epoch),
            rows=plan.rows_before(int(step)),
            ended_by="" if standing.ended_by == "epochs" else standing.ended_by,
        )


def read_outcome(layout: SearchLayout, unit: Unit) -> Outcome | None:
    """What came of a unit; None where nothing of it is on storage.

    Raises:
        ArtifactDamagedError: If it is there and cannot be read.
    """
    key = layout.outcome(unit.key)
    try:
        return Outcome.from_json(json.loads(layout.storage.read(key)))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactDamagedError(
            f"expected the outcome of {unit.title} in {layout.storage.url(key)}, found something "
            f"else ({error}). Delete the file; its trials are then trained again"
        ) from error


def _as_of(standing: RunStanding, unit: Unit, loaded: LoadedSpec) -> RunStanding:
    """A run at the end of a unit, where it has gone further: others may have trained it already."""
    if unit.last_epoch >= unit.full_epochs or standing.epochs <= unit.last_epoch:
        return standing
    history = [each for each in standing.history if each["epoch"] <= unit.last_epoch]
    watched = Watched.of(loaded.spec.training)
    best: Mapping[str, Any] | None = None
    for record in history[1:]:
        value, lowest = record.get(watched.name), best.get(watched.name) if best else None
        # As a training itself has it: without a validation split the last is the best.
        if value is None or watched.is_better(value, lowest):
            best = record
    return RunStanding(history, unit.last_epoch, int(best["epoch"]) if best else 0)


def _two_writers(number: int, layout: RunLayout) -> str:
    """What is said where another process takes over the run of a trial."""
    claims = read_claims(layout.storage, layout.root)
    found = f"that {who(claims[-1])} writes it too" if claims else "that its claim is gone"
    return (
        f"expected this search alone to write trial {number} in "
        f"{layout.storage.url(layout.root)}, found {found}. Another search or run trains the "
        "same values: wait for it or end it, and run the same command again to go on"
    )


class _TrialProgress(Progress):
    """Tells of a trial's epochs and of nothing else."""

    def __init__(self, number: int, tell: Teller) -> None:
        self._number = number
        self._tell = tell

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        self._tell(self._number, int(record["epoch"]))


class _Stopping(LauncherAround):
    """A launcher that stops also where the search is asked to."""

    def __init__(self, inner: Launcher, stop_requested: Callable[[], bool]) -> None:
        super().__init__(inner)
        self._stop_requested = stop_requested

    def __call__(self, task: Any, progress: Progress, stop_requested: Callable[[], bool]) -> Any:
        """See `Launcher`."""

        def stop() -> bool:
            return stop_requested() or self._stop_requested()

        return self.inner(task, progress, stop)
