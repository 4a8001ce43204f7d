"""What counts as progress of a rank."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from batchtrain import points
from batchtrain.training.watch import PointCounter


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_r21_points_of_other_threads_are_counted_apart() -> None:
    counter = PointCounter()
    counter("step.forward")
    in_thread(lambda: counter("storage.written"))
    counter("step.backward")
    in_thread(lambda: counter("storage.synced"))
    in_thread(lambda: counter("checkpoint.published"))
    # The last point is that of the training: what a checkpoint does says not where a rank stands.
    assert counter.standing() == {"passed": 2, "last": "step.backward", "beside": 3}


def test_r21_a_training_outside_the_main_thread_is_counted_where_it_runs() -> None:
    found: list[PointCounter] = []

    def train() -> None:
        counter = PointCounter(threading.current_thread())
        counter("step.forward")
        found.append(counter)

    in_thread(train)
    (counter,) = found
    counter("test.main")
    assert counter.standing() == {"passed": 1, "last": "step.forward", "beside": 1}


def test_nothing_is_passed_at_first() -> None:
    assert PointCounter().standing() == {"passed": 0, "last": "", "beside": 0}


@pytest.fixture
def no_listener() -> object:
    yield
    points.listen(None)


@pytest.mark.usefixtures("no_listener")
def test_a_counter_can_listen() -> None:
    counter = PointCounter()
    points.listen(counter)
    points.passed("a")
    points.passed("b")
    assert (counter.passed, counter.last) == (2, "b")
