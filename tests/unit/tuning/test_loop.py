"""What is shown of a search while it runs: each trial soon, in a small part of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchtrain.progress import Progress, SearchStanding
from batchtrain.storage import FolderStorage
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.loop import SHOWN_SHARE, SearchLoop
from batchtrain.tuning.search import Search
from batchtrain.tuning.standing import SearchWatch
from tests.support.searches import EPOCH_ROWS, EPOCHS, GOAL, Fate, outcome_of, rules_for


class Showing(Progress):
    """Keeps what is shown, which takes some time by a clock that nothing else moves."""

    def __init__(self, seconds_each: float = 0.0) -> None:
        self.now = 0.0
        self.shown: list[Mapping[str, int]] = []
        self._seconds_each = seconds_each

    def clock(self) -> float:
        """The time."""
        return self.now

    def searching(self, standing: SearchStanding) -> None:
        """See `Progress.searching`; the more trials there are, the longer it takes."""
        self.shown.append(dict(standing.counts))
        self.now += self._seconds_each * sum(standing.counts.values())

    @property
    def finished(self) -> Sequence[int]:
        """How many trials had finished each time."""
        return [counts.get("finished", 0) for counts in self.shown]


@pytest.fixture
def layout(tmp_path: Path) -> SearchLayout:
    return SearchLayout(FolderStorage(tmp_path), "made-up", "0123456789ab")


def go_through(
    layout: SearchLayout, showing: Showing, *, trials: int, unit_seconds: float, **other: Any
) -> SearchLoop:
    """A search of trials alone, each of which says that its last epoch is over."""
    fates = [Fate(shape="alone")] * trials
    loop = SearchLoop(
        Search(rules_for(fates)),
        layout,
        SearchWatch([GOAL], trials=trials, trial_rows=EPOCHS * EPOCH_ROWS, clock=showing.clock),
        showing,
        dict,
        clock=showing.clock,
        **other,
    )
    while (unit := loop.next()) is not None:
        showing.now += unit_seconds
        loop.tell(unit.numbers[0], EPOCHS)
        loop.done(unit, outcome_of(unit, fates))
    return loop


def test_of_many_short_trials_few_are_shown(layout: SearchLayout) -> None:
    showing = Showing(seconds_each=1e-5)
    go_through(layout, showing, trials=300, unit_seconds=0.01)
    work, longest = 300 * 0.01, 300 * 1e-5
    assert showing.now - work <= SHOWN_SHARE * showing.now + longest
    assert 10 < len(showing.shown) < 100


def test_of_long_trials_each_is_shown_as_soon_as_it_is_over(layout: SearchLayout) -> None:
    showing = Showing(seconds_each=1e-3)
    go_through(layout, showing, trials=5, unit_seconds=10.0)
    assert {1, 2, 3, 4, 5} <= set(showing.finished)


def test_at_the_end_all_is_shown_however_short_the_trials_were(layout: SearchLayout) -> None:
    showing = Showing(seconds_each=1.0)
    loop = go_through(layout, showing, trials=9, unit_seconds=0.0)
    assert showing.finished[-1] < 9
    loop.close()
    assert showing.shown[-1] == {"finished": 9}
    assert layout.storage.read(layout.table) == b"{}\n"


def test_what_the_time_is_up_for_is_shown_at_the_end(layout: SearchLayout) -> None:
    showing = Showing()
    loop = go_through(layout, showing, trials=4, unit_seconds=1.0, max_seconds=2.0)
    loop.close()
    assert showing.shown[-1] == {"finished": 2, "skipped": 2}
