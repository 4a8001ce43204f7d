"""A search as a state machine: it is told what came of units of work, and says what is next.

All that it decides follows from the rules and from the outcomes, never from the order in which
these arrive: a search that was killed is made again from the outcomes that are on storage, and
goes on with the same trials.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from batchtrain.tuning.cohorts import Cohorts, Heir
from batchtrain.tuning.proposals import Proposer
from batchtrain.tuning.trials import Goal, TrialRecord
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = ["Search", "SearchRules", "Shape"]

STRIPE = 256
"""Trials that are dealt to packs together, where nothing else divides them: a search with more
trials then begins with the same packs."""
BUDGET_STRIPE = 32
"""The same where a budget of rows says how many more there may be."""


@dataclass(frozen=True)
class Shape:
    """How trials with some values are trained.

    Attributes:
        key: Trials with the same key may share a unit.
        size: How many do at most.
        is_pack: Whether one program trains them.
        why_alone: Why they are not packed, as a sentence; empty where they are.
    """

    key: str
    size: int
    is_pack: bool
    why_alone: str = ""


@dataclass(frozen=True)
class SearchRules:
    """What a search goes by.

    Attributes:
        goals: What is to become best.
        proposer: Gives the values of trials.
        cohorts: Say at each rung who goes on, and as what.
        shape: How trials with some values are trained.
        rows: How many rows a whole training with some values takes.
        trials: How many there are at most, such as the points of a grid.
        max_rows: How many rows may be trained in all; None without end.
    """

    goals: Sequence[Goal]
    proposer: Proposer
    cohorts: Cohorts
    shape: Callable[[Mapping[str, Any]], Shape]
    rows: Callable[[Mapping[str, Any]], int]
    trials: int
    max_rows: int | None = None


@dataclass
class _Batch:
    """Trials of one shape that were sent to the same rung together, and are dealt anew after it."""

    numbers: tuple[int, ...]
    rung: int
    shape: Shape
    at_work: set[str] = field(default_factory=set)


class Search:
    """What is known of all trials, and the units that are ready."""

    def __init__(self, rules: SearchRules) -> None:
        self.rules = rules
        self.records: dict[int, TrialRecord] = {}
        self.shapes: dict[int, Shape] = {}
        self.initial: dict[int, Mapping[str, Any]] = {}
        self.descent: dict[int, list[Heir]] = {}
        self._ready: deque[Unit] = deque()
        self._at_work: dict[str, Unit] = {}
        self._busy: set[str] = set()
        self._batches: list[_Batch] = []
        self._states: dict[int, str] = {}
        self._time_is_up = False
        self._all_proposed = False

    def is_over(self) -> bool:
        """Whether nothing is left to do, or to wait for."""
        return not self._ready and not self._at_work and not self._advance()

    def trials(self) -> list[TrialRecord]:
        """All trials that were proposed, in the order of their numbers."""
        return [self.records[number] for number in sorted(self.records)]

    @property
    def at_work(self) -> Sequence[Unit]:
        """The units that somebody works on."""
        return tuple(self._at_work.values())

    def next_unit(self) -> Unit | None:
        """A unit that is ready; None where there is none before others are finished."""
        place = self._next_place()
        if place is None and self._advance():
            place = self._next_place()
        if place is None:
            return None
        unit = self._ready[place]
        del self._ready[place]
        self._at_work[unit.key] = unit
        self._busy |= _runs_of(unit)
        for number in unit.numbers:
            self.records[number] = replace(self.records[number], state="running")
        return unit

    def finished(self, unit: Unit, outcome: Outcome) -> None:
        """Take what came of a unit."""
        self._put_away(unit)
        for member, found in zip(unit.members, outcome.members, strict=True):
            record = self.records[member.number]
            has_failed = found.state == "failed"
            self.records[member.number] = replace(
                record,
                state=found.state,
                # Of a run of its own that failed nothing is known but why.
                epochs=max(found.epochs, record.epochs) if has_failed else found.epochs,
                best_epoch=found.best_epoch,
                scores=found.scores,
                rungs={**record.rungs, unit.last_epoch: self._at_rung(found)},
                rows=max(found.rows, record.rows) if has_failed else found.rows,
                ended_by=found.ended_by,
                error=found.error,
            )
            self._states[member.number] = unit.key if unit.is_pack else ""
            if unit.is_pack and not record.pack:
                first = replace(self.records[member.number], pack=unit.key.split("-")[0])
                self.records[member.number] = first

    def _at_rung(self, found: MemberOutcome) -> Mapping[str, float | None]:
        """What a trial is compared by: the best that it was, or in a population what it is.

        There a copy takes its parent's past over, and would be as good as it for ever.
        """
        if self.rules.cohorts.compares_latest and found.latest:
            return found.latest
        return found.scores

    def skip(self, unit: Unit) -> None:
        """Leave out a unit that nobody has begun, and begin no more trials from now on."""
        self._time_is_up = True
        self._put_away(unit)
        for number in unit.numbers:
            self.records[number] = replace(self.records[number], state="skipped")

    def _put_away(self, unit: Unit) -> None:
        del self._at_work[unit.key]
        self._busy -= _runs_of(unit)
        for batch in self._batches:
            batch.at_work.discard(unit.key)

    def _next_place(self) -> int | None:
        """Where the first unit is that is ready, and shares no run with one that is at work.

        Only one at a time may write a run. Whoever waits here is ready again once the other is
        done, and finds what that has trained.
        """
        units = enumerate(self._ready)
        return next((place for place, each in units if self._busy.isdisjoint(_runs_of(each))), None)

    def _advance(self) -> bool:
        """Make units ready where the outcomes so far allow it; whether there are any now."""
        before = None
        while self._next_place() is None and before != (before := self._standing()):
            for batch in list(self._batches):
                if not batch.at_work:
                    self._promote(batch)
            if not self._ready:
                self._propose()
        return bool(self._ready)

    def _standing(self) -> tuple[int, ...]:
        over = sum(each.is_over for each in self.records.values())
        return len(self.records), over, len(self._batches), len(self._ready)

    # ---- from one rung to the next

    def _promote(self, batch: _Batch) -> None:
        """Decide who of a batch goes on, and as what, where all of that is known."""
        rungs = self.rules.cohorts.rungs_of(batch.numbers[0])
        if batch.rung == len(rungs) - 1:
            self._batches.remove(batch)
            return
        epochs = rungs[batch.rung]
        verdicts = {
            number: self.rules.cohorts.decide(number, epochs, self.records)
            for number in batch.numbers
        }
        if None in verdicts.values():
            return
        self._batches.remove(batch)
        going_on = [
            number
            for number in batch.numbers
            if self._goes_on(number, epochs, is_wanted=verdicts[number] == "go on")
        ]
        self._deal(going_on, batch.rung + 1, batch.shape)

    def _goes_on(self, number: int, epochs: int, *, is_wanted: bool) -> bool:
        """Whether a trial trains beyond a rung; its record says with which values or why not."""
        record = self.records[number]
        if record.state == "skipped":
            return False
        heir = self.rules.cohorts.heir(number, epochs, self.records) if is_wanted else None
        if heir is not None:
            self.descent.setdefault(number, []).append(heir)
            self.records[number] = replace(
                record, state="paused", values=heir.values, parent=heir.parent, error=""
            )
            return True
        if record.state == "paused" and not is_wanted:
            self.records[number] = replace(record, state="stopped", ended_by="scheduler")
        return record.state == "paused" and is_wanted

    def _deal(self, numbers: Sequence[int], rung: int, shape: Shape) -> None:
        """Send trials of one shape to a rung, in units as large as the shape allows.

        Those of a shape that is packed are dealt anew after the rung, so that packs stay full;
        runs of their own need not wait for each other.
        """
        if not numbers:
            return
        parts = [
            numbers[first : first + shape.size] for first in range(0, len(numbers), shape.size)
        ]
        groups = [[part] for part in parts] if shape.size == 1 else [parts]
        for group in groups:
            batch = _Batch(tuple(chain.from_iterable(group)), rung, shape)
            self._batches.append(batch)
            for part in group:
                self._send(batch, part, rung)

    def _send(self, batch: _Batch, numbers: Iterable[int], rung: int) -> None:
        members = tuple(self._member(number, batch.shape) for number in numbers)
        rungs = self.rules.cohorts.rungs_of(members[0].number)
        unit = Unit(
            members,
            first_epoch=rungs[rung - 1] if rung else 0,
            last_epoch=rungs[rung],
            full_epochs=rungs[-1],
            is_pack=batch.shape.is_pack,
        )
        batch.at_work.add(unit.key)
        self._ready.append(unit)

    def _member(self, number: int, shape: Shape) -> Member:
        record = self.records[number]
        parent = number if record.parent is None else record.parent
        source = self._states.get(parent, "") if shape.is_pack else ""
        return Member(number, record.values, source, parent if source else -1)

    # ---- new trials

    def _propose(self) -> None:
        """Take the next trials from the proposer, where what they depend on is known."""
        numbers = self._next_numbers()
        if self._all_proposed or self._time_is_up or not numbers:
            return
        known = self.trials()
        found = self.rules.proposer.propose(numbers, known)
        found = found[: self._affordable(numbers, found)]
        self._all_proposed = not found
        for number, values in zip(numbers, found, strict=False):
            self.records[number] = TrialRecord(number, values=values)
            self.initial[number] = values
            self.shapes[number] = self.rules.shape(values)
        begun = [number for number in numbers if number in self.records]
        for shape, members in self._by_shape(begun):
            self._deal(members, 0, shape)

    def _next_numbers(self) -> range:
        """Of the trials that are proposed next; none while they depend on what is not known."""
        first = len(self.records)
        if first >= self.rules.trials:
            return range(0)
        waits = self.rules.proposer.wave is not None or self.rules.max_rows is not None
        if waits and not all(each.is_over for each in self.records.values()):
            return range(0)
        size = self.rules.proposer.wave or (BUDGET_STRIPE if waits else STRIPE)
        end = min((first // size + 1) * size, self.rules.trials)
        # Those that are compared with each other must all be there.
        return range(first, max(end, self.rules.cohorts.together(end - 1).stop))

    def _affordable(self, numbers: range, found: Sequence[Mapping[str, Any]]) -> int:
        """How many of some trials the budget of rows allows, were each to train to its end."""
        if self.rules.max_rows is None:
            return len(found)
        left = self.rules.max_rows - sum(each.rows for each in self.records.values())
        count = 0
        for number, values in zip(numbers, found, strict=False):
            left -= self.rules.rows(values)
            if left < 0:
                # Those that are compared with it are left out with it.
                return min(count, self.rules.cohorts.together(number).start - numbers.start)
            count += 1
        return count

    def _by_shape(self, numbers: Iterable[int]) -> list[tuple[Shape, list[int]]]:
        """Trials that may share a unit, each with their shape; in the order of their numbers."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for number in numbers:
            # Trials that are compared with others may be looked at after other epochs.
            rungs = self.rules.cohorts.rungs_of(number)
            key = (self.shapes[number].key, rungs)
            found.setdefault(key, []).append(number)
        return [(self.shapes[members[0]], members) for members in found.values()]


def _runs_of(unit: Unit) -> frozenset[str]:
    """The runs that a unit writes: trials alone with the same values are one, a pack has none."""
    if unit.is_pack:
        return frozenset()
    return frozenset(json.dumps(each.values, sort_keys=True) for each in unit.members)
