"""Carry out one unit of work and publish what came of it; the same here and in a Ray actor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.errors import (
    ArtifactDamagedError,
    ArtifactError,
    DataError,
    InterruptedRunError,
    LauncherLostError,
    PausedRunError,
    SpecError,
    TrainingError,
)
from batchtrain.models.assets import read_assets
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import num_outputs, resolve_loss
from batchtrain.points import passed
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.storage import Storage
from batchtrain.training.deciding import Watched
from batchtrain.training.launcher import Launcher, LauncherAround
from batchtrain.training.packed.states import MemberState, states_from_bytes, states_to_bytes
from batchtrain.training.packed.training import PackedTraining
from batchtrain.training.plan import make_plan, row_order
from batchtrain.training.stage import run_layout, train
from batchtrain.training.standing import RunStanding, run_standing
from batchtrain.training.train import OneProcess
from batchtrain.tuning.held import HeldShards
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.trials import Goal
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = ["Teller", "UnitRunner", "read_outcome"]

ERROR_CHARACTERS = 500
GO_ON = "Run the same command again to go on from there"

OF_THE_TRIAL = (DataError, SpecError, TrainingError)
"""What a trial's values, its rows or its network bring about, lost ranks among them; all else, and
a lost launcher, is no fault of the trial, and ends the search before anything is recorded."""


class Teller(Protocol):
    """Hears how far a unit is."""

    def __call__(self, number: int, epoch: int) -> None:
        """So many epochs of a trial are over; of a pack its first trial stands for all."""
        ...


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
    _shards: HeldShards | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.rows is not None:
            self._shards = HeldShards(self.rows)

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

    # ---- runs of their own

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
        standing = RunStanding()
        try:
            loaded = with_values(self.loaded, member.values)
            prepared = self._prepared(loaded)
            layout = run_layout(loaded, prepared, self.storage)
            standing = run_standing(layout, Progress())
            is_last = unit.last_epoch >= unit.full_epochs
            if not standing.is_finished and (is_last or standing.epochs < unit.last_epoch):
                self._train(loaded, prepared, layout, member, unit, tell, stop_requested)
                standing = run_standing(layout, Progress())
        except LauncherLostError:
            raise
        except OF_THE_TRIAL as error:
            return MemberOutcome(member.number, "failed", error=_shortened(str(error))), ()
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
            shards = self._shards if prepared.artifact.url == self.prepared.artifact.url else None
            launcher = OneProcess(shards)
        with suppress(PausedRunError):
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
            scores=self._scores(loaded, prepared, standing.history, standing.best_epoch),
            rows=plan.rows_before(int(step)),
            ended_by="" if standing.ended_by == "epochs" else standing.ended_by,
        )

    def _prepared(self, loaded: LoadedSpec) -> PreparedData:
        """The data of a trial: those of the search, unless the space changes them."""
        if not self.own_data:
            return self.prepared
        return prepare(loaded, self.storage, Progress(), allow_code=self.allow_code)[0]

    # ---- packs

    def _pack(self, unit: Unit, tell: Teller, stop_requested: Callable[[], bool]) -> Outcome:
        """Train all members in one program; their states are published before the outcome."""
        specs = [with_values(self.loaded, member.values) for member in unit.members]
        prepared = self._prepared(specs[0])
        is_own = prepared.artifact.url == self.prepared.artifact.url
        training = PackedTraining(
            specs,
            prepared,
            states=self._states(unit),
            threads=self.loaded.spec.resources.cpus_per_worker,
            device=self.loaded.spec.resources.device,
            shards=self._shards if is_own else None,
        )
        first = unit.members[0].number
        is_last = unit.last_epoch >= unit.full_epochs
        done = training.train_to(
            specs[0].spec.training.epochs if is_last else unit.last_epoch,
            on_epoch=lambda epoch, _rows: tell(first, epoch),
            stop_requested=stop_requested,
        )
        if not done:
            raise InterruptedRunError(f"stopped within a {unit.title}. {GO_ON}")
        passed("pack.trained")
        if not is_last:
            states = dict(zip(unit.numbers, training.states(), strict=True))
            self.storage.write(self.layout.states(unit.key), states_to_bytes(states))
            passed("pack.saved")
        outcomes, histories = [], {}
        for member, loaded, found in zip(unit.members, specs, training.members, strict=True):
            is_over = found.is_over or is_last
            histories[member.number] = found.history
            outcomes.append(
                MemberOutcome(
                    member.number,
                    "failed" if found.error else "finished" if is_over else "paused",
                    epochs=int(found.history[-1]["epoch"]) if found.history else 0,
                    best_epoch=found.best_epoch,
                    scores={}
                    if found.error
                    else self._scores(loaded, prepared, found.history, found.best_epoch),
                    rows=found.rows,
                    ended_by=found.ended_by,
                    error=_shortened(found.error),
                    latest={} if found.error else self._scores(loaded, prepared, found.history),
                )
            )
        return Outcome(tuple(outcomes), histories)

    def _states(self, unit: Unit) -> list[MemberState | None]:
        """The state that each member goes on from; None for a start."""
        sources = sorted({member.source for member in unit.members if member.source})
        found = {source: self._states_of(source) for source in sources}
        return [
            found[member.source][member.parent] if member.source else None
            for member in unit.members
        ]

    def _states_of(self, source: str) -> Mapping[int, MemberState]:
        key = self.layout.states(source)
        try:
            return states_from_bytes(self.storage.read(key), where=self.storage.url(key))
        except (FileNotFoundError, ArtifactError) as error:
            raise ArtifactDamagedError(
                f"expected the trials of the pack {source} in {self.storage.url(key)}, found "
                f"{'nothing' if isinstance(error, FileNotFoundError) else 'something else'}. "
                f"Delete {self.storage.url(self.layout.outcome(source))}; they are then trained "
                "again"
            ) from error

    def _scores(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        history: Sequence[Mapping[str, Any]],
        epoch: int | None = None,
    ) -> dict[str, float | None]:
        """Each goal's metric after an epoch, or after the last."""
        found = (each for each in reversed(history) if epoch is None or each["epoch"] == epoch)
        record: Mapping[str, Any] = next(found, {})
        return {
            goal.metric: float(_num_parameters(loaded, prepared, self.allow_code))
            if goal.metric == "parameters"
            else record.get(goal.metric)
            for goal in self.goals
        }


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


def _num_parameters(loaded: LoadedSpec, prepared: PreparedData, allow_code: Sequence[str]) -> int:
    """How many numbers the model of a trial learns."""
    spec = loaded.spec
    loss = resolve_loss(spec.training.loss, prepared.task)
    inputs = ModelInputs(
        num_numeric=prepared.num_numeric,
        cardinalities=prepared.cardinalities,
        num_outputs=num_outputs(loss, prepared.task, prepared.num_classes),
    )
    model = build_model(
        spec.model,
        inputs,
        seed=spec.seed,
        allow_code=allow_code,
        search=loaded.path.parent,
        assets=read_assets(loaded),
    )
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def _shortened(error: str) -> str:
    """The first line of an error: what is below it names places of this attempt."""
    line = next(iter(error.splitlines()), "")
    return line if len(line) <= ERROR_CHARACTERS else f"{line[:ERROR_CHARACTERS]}..."
