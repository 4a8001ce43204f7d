"""How far a search is, for whoever watches it. Nothing of this goes into a table or an outcome."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from batchtrain.progress import SearchStanding, SeenTrial
from batchtrain.tuning.trials import Goal, TrialRecord, ranked

__all__ = ["SHOWN_TRIALS", "SearchWatch"]

SHOWN_TRIALS = 5
"""The best so many are told of."""


class SearchWatch:
    """Turns the records of a search into what is shown of it.

    What an earlier call has done counts as done, and not for the pace.
    """

    def __init__(
        self,
        goals: Sequence[Goal],
        *,
        trials: int | None,
        trial_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to measure time.

        Args:
            goals: What the search makes as good as it can.
            trials: How many there are at most; None where nobody knows.
            trial_rows: The rows that one trial trains over all of its epochs, at most.
            clock: Seconds that never go back.
        """
        self._goals = goals
        self._trials = trials
        self._trial_rows = trial_rows
        self._clock = clock
        self._began = clock()
        self._first: tuple[int, int] | None = None

    def standing(
        self, records: Sequence[TrialRecord], running: Sequence[str] = (), *, running_rows: int = 0
    ) -> SearchStanding:
        """How far it is now.

        Args:
            records: One of each trial that something is known of.
            running: What is at work, each in a few words.
            running_rows: The rows that this work has trained so far; no record counts them yet.
        """
        counts = Counter[str](each.state for each in records)
        over = [each for each in records if each.is_over]
        rows = sum(each.rows for each in records) + running_rows
        if self._first is None:
            self._first = (len(over), rows)
        seconds = self._clock() - self._began
        here, trained = len(over) - self._first[0], rows - self._first[1]
        total = self._total_rows(over)
        left = None
        if total is not None and trained > 0 and seconds > 0:
            left = max(0, total - rows) * seconds / trained
        return SearchStanding(
            trials=self._trials,
            counts=dict(counts),
            best=tuple(_seen(each) for each in ranked(records, self._goals)[:SHOWN_TRIALS]),
            running=tuple(running),
            rows=rows,
            total_rows=total,
            seconds=seconds,
            trials_per_minute=60 * here / seconds if here > 0 and seconds > 0 else None,
            seconds_left=left,
        )

    def _total_rows(self, over: Sequence[TrialRecord]) -> int | None:
        """What the trials that are over took, and all that the others may take."""
        if self._trials is None:
            return None
        others = max(0, self._trials - len(over))
        return sum(each.rows for each in over) + others * self._trial_rows


def _seen(record: TrialRecord) -> SeenTrial:
    return SeenTrial(
        number=record.number,
        state=record.state,
        epochs=record.epochs,
        scores=dict(record.scores),
        values=dict(record.values),
    )
