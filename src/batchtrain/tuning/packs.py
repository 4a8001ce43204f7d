"""Carry out a unit that is a pack: its trials in one program, or where that cannot be, in parts.

What is wrong with one trial, or too much for the memory of this machine, is found out by halves,
down to a single trial. The unit, its states and its outcome are one whatever the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import (
    ArtifactDamagedError,
    ArtifactError,
    InterruptedRunError,
    RankMemoryError,
)
from batchtrain.points import passed
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.training.machine import choose_machine
from batchtrain.training.micro_batches import free_memory, memory_told
from batchtrain.training.packed.member import Member as TrainedMember
from batchtrain.training.packed.states import MemberState, states_from_bytes, states_to_bytes
from batchtrain.training.packed.training import PackedTraining
from batchtrain.tuning.setting import GO_ON, OF_THE_TRIAL, Setting, Teller, shortened
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = ["AloneRunner", "PackRunner"]

AloneRunner = Callable[[Member], tuple[MemberOutcome, Sequence[Mapping[str, Any]]]]
"""Trains one trial of the unit as a run of its own; gives its history too."""


@dataclass(frozen=True)
class _Part:
    """What came of some trials of a pack.

    Attributes:
        outcomes: One for each, in their order.
        histories: Their epochs, by number.
        states: What they go on from, by number; of a trial that could not begin there is none.
    """

    outcomes: tuple[MemberOutcome, ...]
    histories: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    states: Mapping[int, MemberState] = field(default_factory=dict)

    def joined(self, other: _Part) -> _Part:
        """Both, one after the other."""
        return _Part(
            (*self.outcomes, *other.outcomes),
            {**self.histories, **other.histories},
            {**self.states, **other.states},
        )


@dataclass(frozen=True)
class PackRunner:
    """Trains the trials of one pack.

    Attributes:
        setting: What all trials share.
        unit: The pack.
        alone: Trains a trial that is too large for a pack of one, where it can be a run of its own.
        tell: Hears of epochs.
        stop_requested: Whether somebody asked for a stop.
    """

    setting: Setting
    unit: Unit
    alone: AloneRunner
    tell: Teller
    stop_requested: Callable[[], bool]

    def run(self) -> Outcome:
        """Train all members; their states are published before the outcome is given.

        Raises:
            InterruptedRunError: If a stop was requested.
            ArtifactDamagedError: If a state that a trial goes on from cannot be read.
            TrainingError: If this machine has not what the spec asks for.
        """
        # That is no fault of a trial, and would look like one from inside.
        choose_machine(self.setting.loaded.spec.resources)
        part = self._train(self.unit.members)
        if not self._is_last:
            layout = self.setting.layout
            layout.storage.write(layout.states(self.unit.key), states_to_bytes(part.states))
            passed("pack.saved")
        return Outcome(part.outcomes, part.histories)

    @property
    def _is_last(self) -> bool:
        return self.unit.last_epoch >= self.unit.full_epochs

    def _train(self, members: Sequence[Member]) -> _Part:
        """Train some of the members together, or else each half of them by itself."""
        try:
            with memory_told():
                return self._together(members)
        except OF_THE_TRIAL as error:
            # A run of its own may take fewer rows at once, but gives no state to go on from.
            is_whole = self._is_last and self.unit.first_epoch == 0
            may_go_alone = is_whole and isinstance(error, RankMemoryError)
            if len(members) == 1 and not may_go_alone:
                (member,) = members
                failed = self.setting.failed(member, self.unit, error)
                return _Part((failed,), {member.number: ()})
        # Only here is what was tried no longer held by its error.
        free_memory()
        if len(members) == 1:
            outcome, history = self.alone(members[0])
            return _Part((outcome,), {outcome.number: history})
        middle = len(members) // 2
        return self._train(members[:middle]).joined(self._train(members[middle:]))

    def _together(self, members: Sequence[Member]) -> _Part:
        """Train some of the members in one program."""
        setting, unit = self.setting, self.unit
        specs = [with_values(setting.loaded, member.values) for member in members]
        prepared = setting.prepared_for(specs[0])
        training = PackedTraining(
            specs,
            prepared,
            states=self._states(members),
            threads=setting.loaded.spec.resources.cpus_per_worker,
            device=setting.loaded.spec.resources.device,
            shards=setting.shards_of(prepared),
        )
        first = members[0].number
        done = training.train_to(
            specs[0].spec.training.epochs if self._is_last else unit.last_epoch,
            on_epoch=lambda epoch, _rows: self.tell(first, epoch),
            stop_requested=self.stop_requested,
        )
        if not done:
            raise InterruptedRunError(f"stopped within a {unit.title}. {GO_ON}")
        passed("pack.trained")
        numbers = [member.number for member in members]
        outcomes = (
            self._outcome(number, loaded, prepared, found)
            for number, loaded, found in zip(numbers, specs, training.members, strict=True)
        )
        states = [] if self._is_last else zip(numbers, training.states(), strict=True)
        histories = (found.history for found in training.members)
        return _Part(tuple(outcomes), dict(zip(numbers, histories, strict=True)), dict(states))

    def _outcome(
        self, number: int, loaded: LoadedSpec, prepared: PreparedData, found: TrainedMember
    ) -> MemberOutcome:
        scores = self.setting.scores
        is_over = found.is_over or self._is_last
        return MemberOutcome(
            number,
            "failed" if found.error else "finished" if is_over else "paused",
            epochs=int(found.history[-1]["epoch"]) if found.history else 0,
            best_epoch=found.best_epoch,
            scores={} if found.error else scores(loaded, prepared, found.history, found.best_epoch),
            rows=found.rows,
            ended_by=found.ended_by,
            error=shortened(found.error),
            latest={} if found.error else scores(loaded, prepared, found.history),
        )

    def _states(self, members: Sequence[Member]) -> list[MemberState | None]:
        """The state that each member goes on from; None for a start."""
        sources = sorted({member.source for member in members if member.source})
        found = {source: self._states_of(source) for source in sources}
        return [
            found[member.source][member.parent] if member.source else None for member in members
        ]

    def _states_of(self, source: str) -> Mapping[int, MemberState]:
        layout = self.setting.layout
        key, url = layout.states(source), layout.storage.url
        try:
            return states_from_bytes(layout.storage.read(key), where=url(key))
        except (FileNotFoundError, ArtifactError) as error:
            raise ArtifactDamagedError(
                f"expected the trials of the pack {source} in {url(key)}, found "
                f"{'nothing' if isinstance(error, FileNotFoundError) else 'something else'}. "
                f"Delete {url(layout.outcome(source))}; they are then trained again"
            ) from error
