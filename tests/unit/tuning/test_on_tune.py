"""What the driver of a search on Ray does about errors; Ray itself is not started."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.progress import Progress
from batchtrain.storage import FolderStorage
from batchtrain.tuning import on_tune
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.loop import SearchLoop
from batchtrain.tuning.on_tune import _Desk, _listen
from batchtrain.tuning.search import Search
from batchtrain.tuning.standing import SearchWatch
from batchtrain.tuning.work import Outcome, Unit
from tests.support.searches import EPOCHS, GOAL, Fate, outcome_of, rules_for

FATES = [Fate(shape="alone")] * 2


@pytest.fixture
def loop(tmp_path: Path) -> SearchLoop:
    layout = SearchLayout(FolderStorage(tmp_path), "made-up", "0123456789ab")
    watch = SearchWatch([GOAL], trials=len(FATES), trial_rows=1)
    return SearchLoop(Search(rules_for(FATES)), layout, watch, Progress(), dict)


def never() -> bool:
    return False


def publish(loop: SearchLoop, unit: Unit) -> None:
    members = [replace(each, scores={}) for each in outcome_of(unit, FATES).members]
    outcome = canonical_json(Outcome(tuple(members)).to_json())
    loop.layout.storage.write(loop.layout.outcome(unit.key), outcome)


def given(desk: _Desk, trial: str) -> Unit:
    unit = desk.give(trial)
    assert unit is not None
    return unit


def fails(*_: Any) -> Any:
    raise RuntimeError("it broke")


def test_any_error_while_an_outcome_is_taken_ends_the_search(
    loop: SearchLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = _Desk(loop, 2, never)
    publish(loop, given(desk, "a"))
    monkeypatch.setattr(loop, "done", fails)
    desk.take("a", {"done": True})
    assert str(desk.failure) == "it broke"
    assert desk.is_closing
    # Tune tells of the end of a trial once more where it takes it for a failed one.
    desk.take("a", None)
    assert str(desk.failure) == "it broke"


def test_what_tune_tells_twice_counts_once(loop: SearchLoop) -> None:
    desk = _Desk(loop, 2, never)
    for name in ("a", "b"):
        publish(loop, given(desk, name))
        desk.take(name, {"done": True})
        desk.take(name, {"done": True})
    assert desk.failure is None
    assert desk.is_closing
    assert [each.state for each in loop.search.trials()] == ["finished"] * 2


class MadeUpBoard:
    """A board at hand: each call is answered by what it was given."""

    def __init__(self, take: Callable[[int], Any], order: Callable[[str], None]) -> None:
        self.take = SimpleNamespace(remote=take)
        self.order = SimpleNamespace(remote=order)


def test_whoever_fails_to_hear_how_far_a_unit_is_still_passes_a_stop_on(
    loop: SearchLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_tune, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(on_tune, "ray", SimpleNamespace(get=lambda answer, timeout: answer))
    monkeypatch.setattr(loop, "tell", fails)
    desk = _Desk(loop, 2, lambda: desk.failure is not None)
    asked, ordered = list[int](), list[str]()

    def take(num_known: int) -> list[tuple[int, str]]:
        asked.append(num_known)
        if len(asked) == 1:
            raise GetTimeoutError("the board is slow")
        return [(0, json.dumps([0, EPOCHS]))] if num_known == 0 else []

    def order(name: str) -> None:
        ordered.append(name)
        desk.closed.set()

    _listen(MadeUpBoard(take, order), desk, loop)
    assert str(desk.failure) == "it broke"
    assert (asked, ordered) == ([0, 0, 1], ["stop"])
