"""Searches of which nothing is trained: what comes of a unit is made up, and the same each time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.spec.search import Distribution, SearchSpec
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.search import Search, SearchRules, Shape
from batchtrain.tuning.table import table_document
from batchtrain.tuning.trials import Goal, TrialRecord
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = [
    "EPOCHS",
    "EPOCH_ROWS",
    "GOAL",
    "LR",
    "SPACE",
    "Fate",
    "Proposes",
    "Searched",
    "SpecRules",
    "outcome_of",
    "rules_for",
    "searched",
    "share_of",
]

GOAL = Goal("valid_loss", "min")
EPOCHS = 9
EPOCH_ROWS = 10
LR = "training.optimizer.lr"
SPACE = {LR: Distribution(log_uniform=(1e-4, 1.0))}

SHAPES = {
    "packed": Shape("packed", 3, is_pack=True),
    "large": Shape("large", 1, is_pack=True),
    "alone": Shape("alone", 1, is_pack=False, why_alone="it is what this trial wants"),
}
CHUNKS = replace(SHAPES["alone"], size=2)


@dataclass(frozen=True)
class Fate:
    """What becomes of a trial beside its scores: it may fail, or end by itself, in an epoch."""

    fails_in: int | None = None
    ends_in: int | None = None
    shape: str = "packed"


@dataclass
class Proposes:
    """Values that depend on the number, and with a wave on all that is known of earlier waves.

    Where there are few distinct ones, trials have the same values again and again.
    """

    fates: Sequence[Fate]
    wave: int | None = None
    total: int | None = None
    distinct: int | None = None
    asked: list[range] = field(default_factory=list)

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        self.asked.append(numbers)
        return [self._values(number, known) for number in numbers]

    def _values(self, number: int, known: Sequence[TrialRecord]) -> dict[str, Any]:
        shape = self.fates[number % len(self.fates)].shape
        usual = {LR: self._rate(number, known)}
        return usual if shape == "packed" else {**usual, "shape": shape}

    def _rate(self, number: int, known: Sequence[TrialRecord]) -> float:
        seen = ""
        if self.wave is not None:
            first = number - number % self.wave
            earlier = [each for each in known if each.number < first]
            assert [each.number for each in earlier] == list(range(min(first, len(known))))
            assert all(each.is_over for each in earlier)
            seen = json.dumps([each.to_json() for each in earlier])
        if self.distinct is not None:
            number %= self.distinct
        return 1e-4 + share_of(number, seen) * 0.9


def share_of(*parts: Any) -> float:
    """A number of [0, 1) that belongs to some others."""
    return hashlib.sha256(repr(parts).encode()).digest()[0] / 256


@dataclass(frozen=True, kw_only=True)
class SpecRules(SearchRules):
    """Rules, and the section of a spec that they are of."""

    spec: SearchSpec


def rules_for(
    fates: Sequence[Fate],
    scheduler: Any = "none",
    *,
    trials: int | None = None,
    wave: int | None = None,
    max_rows: int | None = None,
    chunks: bool = False,
    distinct: int | None = None,
) -> SpecRules:
    """The rules of a search over so many trials as there are fates, if nothing else is said."""
    count = len(fates) if trials is None else trials
    spec = SearchSpec(space=SPACE, scheduler=scheduler)

    def shape(values: Mapping[str, Any]) -> Shape:
        found = SHAPES[values.get("shape", "packed")]
        return CHUNKS if chunks and found.key == "alone" else found

    return SpecRules(
        spec=spec,
        goals=(GOAL,),
        proposer=Proposes(fates, wave, count, distinct),
        cohorts=cohorts_of(spec, epochs=EPOCHS, trials=count, goal=GOAL, seed=3),
        shape=shape,
        rows=lambda _values: EPOCHS * EPOCH_ROWS,
        trials=count,
        max_rows=max_rows,
    )


def outcome_of(unit: Unit, fates: Sequence[Fate]) -> Outcome:
    """What comes of a unit: a function of what it is, as for a real one."""
    return Outcome(tuple(member_outcome(unit, each, fates) for each in unit.members))


def member_outcome(unit: Unit, member: Member, fates: Sequence[Fate]) -> MemberOutcome:
    fate = fates[member.number % len(fates)]
    # What a copy of another trial took over has got beyond where its own was to end.
    ends = [
        (epoch, state)
        for epoch, state in ((fate.fails_in, "failed"), (fate.ends_in, "finished"))
        if epoch is not None and unit.first_epoch < epoch <= unit.last_epoch
    ]
    epochs, state = min(ends, default=(unit.last_epoch, ""))
    if state == "failed":
        rows = (epochs - 1) * EPOCH_ROWS
        return MemberOutcome(member.number, "failed", epochs - 1, rows=rows, error="it broke")
    shown = [share_of(member.number, member.values[LR], each) for each in range(1, epochs + 1)]
    is_over = bool(state) or unit.last_epoch == unit.full_epochs
    # Few values, so that there are ties; now and then one that is no number.
    cost = math.nan if shown[-1] < 0.05 else round(min(shown) * 8) / 8
    return MemberOutcome(
        member.number,
        "finished" if is_over else "paused",
        epochs,
        best_epoch=shown.index(min(shown)) + 1,
        scores={"valid_loss": cost},
        rows=epochs * EPOCH_ROWS,
        ended_by="early_stopping" if state else "",
    )


@dataclass
class Searched:
    """A search that is over, and the units that it took, in the order in which they were given."""

    spec: SearchSpec
    search: Search
    units: list[Unit]

    @property
    def table(self) -> bytes:
        """The whole table as it is written."""
        return canonical_json(self.document)

    @property
    def document(self) -> dict[str, Any]:
        return table_document("made up", self.spec, self.search.rules.goals, self.search)

    @property
    def keys(self) -> set[str]:
        return {each.key for each in self.units}


def no_run_is_shared(units: Sequence[Unit]) -> bool:
    """Whether no two of some units have a trial alone with the same values."""
    alone = [unit for unit in units if not unit.is_pack]
    runs = [{canonical_json(dict(each.values)) for each in unit.members} for unit in alone]
    return all(one.isdisjoint(other) for one, other in combinations(runs, 2))


def searched(
    rules: SpecRules,
    fates: Sequence[Fate],
    *,
    picks: Sequence[int] = (),
    hands: int = 1,
    skipped_from: int | None = None,
) -> Searched:
    """Carry a search out with several hands, of which any may be the next that is done."""
    search, given, at_work = Search(rules), list[Unit](), list[Unit]()
    turns = iter(picks)
    while True:
        while len(at_work) < hands and (unit := search.next_unit()) is not None:
            if skipped_from is not None and not unit.first_epoch and len(given) >= skipped_from:
                search.skip(unit)
                continue
            given.append(unit)
            at_work.append(unit)
        assert sorted(each.key for each in search.at_work) == sorted(each.key for each in at_work)
        if not at_work:
            break
        assert not search.is_over()
        assert no_run_is_shared(at_work)
        unit = at_work.pop(next(turns, 0) % len(at_work))
        search.finished(unit, outcome_of(unit, fates))
        assert len(given) < 1000, "it does not end"
    assert search.is_over()
    assert len({each.key for each in given}) == len(given), "a unit was given twice"
    assert all(each.is_over for each in search.trials())
    return Searched(rules.spec, search, given)
