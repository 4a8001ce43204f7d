"""A search gone through with results that are made up, to see what it would come to.

The code of the search itself proposes, packs and decides, so that a plan cannot differ from what is
done, but for what follows from the true results: whom ASHA stops, and what TPE tries next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchtrain.tuning.search import Search, SearchRules
from batchtrain.tuning.trials import Goal, TrialRecord
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit

__all__ = ["MOST_TRIALS", "Rehearsal", "rehearse"]

MOST_TRIALS = 512
"""So many trials tell what a larger search is like; it takes about a second."""

GOLDEN = 0.6180339887498949
"""The fractions of its multiples are spread evenly, whatever their number (Weyl, 1916), so that of
any first so many trials the best quarter is a quarter of them, nearly."""


@dataclass(frozen=True)
class Rehearsal:
    """What was gone through.

    Attributes:
        state: The search at its end.
        units: All of its units, in their order.
    """

    state: Search
    units: Sequence[Unit]

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return self.state.trials()


def rehearse(rules: SearchRules) -> Rehearsal:
    """Go through a search in which no trial fails or ends by itself.

    Each trial is as good at all of its rungs, and no better or worse for its values.

    Args:
        rules: Of the search; of more than `MOST_TRIALS` trials the first so many are gone through,
            with those that they are compared with.

    Raises:
        SpecError: If a trial cannot be trained as the search has it.
    """
    state, units = Search(replace(rules, trials=min(MOST_TRIALS, rules.trials))), []
    while (unit := state.next_unit()) is not None:
        units.append(unit)
        members = tuple(_made_up(member, unit, rules) for member in unit.members)
        state.finished(unit, Outcome(members))
    return Rehearsal(state, units)


def _made_up(member: Member, unit: Unit, rules: SearchRules) -> MemberOutcome:
    cost = GOLDEN * (member.number + 1) % 1.0
    return MemberOutcome(
        member.number,
        "finished" if unit.last_epoch == unit.full_epochs else "paused",
        epochs=unit.last_epoch,
        best_epoch=unit.last_epoch,
        scores={goal.metric: _score(goal, cost) for goal in rules.goals},
        rows=rules.rows(member.values) * unit.last_epoch // unit.full_epochs,
    )


def _score(goal: Goal, cost: float) -> float:
    return cost if goal.mode == "min" else -cost
