"""Retries end, are counted, and know their own work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.storage import RetryingStorage
from batchtrain.storage.retrying import ATTEMPTS, LIMIT_S, LONGEST_PAUSE_S
from tests.support.builders import MemoryStorage
from tests.unit.storage.conftest import Clock, Memory, Unreliable

Make = Callable[..., tuple[RetryingStorage, Unreliable]]

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("read", ("there",)),
    ("size", ("there",)),
    ("modified", ("there",)),
    ("write", ("new", b"data")),
    ("create", ("new", b"data")),
    ("list", ("",)),
    ("leftovers", ()),
    ("delete", ("there",)),
]


@pytest.mark.parametrize(("verb", "arguments"), CALLS)
@pytest.mark.parametrize("outcome", ["fails", "loses"])
def test_r27_every_operation_is_tried_again_with_growing_pauses(
    unreliable: Make, clock: Clock, verb: str, arguments: tuple[Any, ...], outcome: str
) -> None:
    storage, inner = unreliable(**{verb: [outcome] * 3})
    plain = MemoryStorage({"there": b"1"})
    inner.inner.files["there"] = b"1"
    assert getattr(storage, verb)(*arguments) == getattr(plain, verb)(*arguments)
    assert inner.inner.files == plain.files
    if (verb, outcome) == ("create", "loses"):
        assert clock.pauses == []  # the first answer was lost, and then its data were found
    else:
        assert clock.pauses == [0.5, 1.5, 4.5]
    assert storage.retried == len(clock.pauses)


@pytest.mark.parametrize(("verb", "arguments"), CALLS)
def test_r27_an_operation_that_never_works_ends_with_how_often_and_how_long(
    unreliable: Make, clock: Clock, verb: str, arguments: tuple[Any, ...]
) -> None:
    storage, inner = unreliable(**{verb: ["fails"] * 99})
    with pytest.raises(StorageUnavailableError) as caught:
        getattr(storage, verb)(*arguments)
    assert inner.calls.count(verb) == ATTEMPTS
    assert "the connection was reset" in str(caught.value)
    assert f"tried {ATTEMPTS} times in 16 s" in str(caught.value)
    assert "run the command again" in str(caught.value)
    assert storage.retried == ATTEMPTS - 1
    assert inner.inner.files == {}


@pytest.mark.parametrize("latency", [5.0, 40.0, 1000.0])
def test_r27_a_slow_storage_ends_within_the_limit_and_one_call(
    unreliable: Make, clock: Clock, latency: float
) -> None:
    storage, inner = unreliable(latency=latency, write=["fails"] * 99)
    with pytest.raises(StorageUnavailableError, match="tried"):
        storage.write("key", b"data")
    assert clock.now <= LIMIT_S + latency
    assert len(inner.calls) == {5.0: ATTEMPTS, 40.0: 3, 1000.0: 1}[latency]


def test_r27_a_slow_storage_that_works_is_just_slow(unreliable: Make, clock: Clock) -> None:
    storage, _ = unreliable(latency=5.0)
    storage.write("key", b"data")
    assert storage.read("key") == b"data"
    assert clock.now == 10.0
    assert storage.retried == 0


@pytest.mark.parametrize("error", [StorageError("read-only"), FileNotFoundError("key")])
@pytest.mark.parametrize(("verb", "arguments"), CALLS)
def test_what_stays_is_never_tried_again(
    clock: Clock, verb: str, arguments: tuple[Any, ...], error: Exception
) -> None:
    calls = []

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            def refuse(*arguments: Any) -> None:
                calls.append(name)
                raise error

            return refuse

    with pytest.raises(type(error)) as caught:
        getattr(RetryingStorage(Refusing(), sleep=clock.sleep), verb)(*arguments)
    assert caught.value is error
    assert calls == [verb]
    assert clock.pauses == []


def test_r28_a_create_whose_reply_was_lost_is_known_by_its_data(unreliable: Make) -> None:
    storage, inner = unreliable(create=["loses"])
    assert storage.create("key", b"mine") is True
    assert inner.inner.files == {"key": b"mine"}


def test_r28_a_create_that_failed_and_found_the_data_of_another_has_lost(unreliable: Make) -> None:
    storage, inner = unreliable(create=["fails"])
    inner.inner.files["key"] = b"theirs"
    assert storage.create("key", b"mine") is False
    assert inner.inner.files == {"key": b"theirs"}


def test_r28_a_commit_that_shows_late_is_still_known(clock: Clock) -> None:
    # The first call's put is on its way: not there when asked for, but there before the next put.
    class Late(MemoryStorage):
        def create(self, key: str, data: bytes) -> bool:
            if clock.pauses:
                self.files[key] = b"mine"
                return False
            raise StorageUnavailableError("timeout")

    assert RetryingStorage(Late(), sleep=clock.sleep).create("key", b"mine") is True


def test_r28_the_last_attempt_is_read_back_too(unreliable: Make) -> None:
    storage, inner = unreliable(create=[*["fails"] * (ATTEMPTS - 1), "loses"])
    assert storage.create("key", b"mine") is True
    assert inner.inner.files == {"key": b"mine"}


def test_r28_reading_back_may_fail_as_well(unreliable: Make) -> None:
    storage, inner = unreliable(create=["loses"], read=["fails", "fails"])
    assert storage.create("key", b"mine") is True
    assert inner.calls == ["create", "read", "create", "read", "create", "read"]


def test_the_first_refusal_is_not_read_back(unreliable: Make) -> None:
    storage, inner = unreliable()
    assert storage.create("key", b"one")
    assert not storage.create("key", b"two")
    assert inner.calls == ["create", "create"]


@given(
    first=st.lists(st.sampled_from(["works", "fails", "loses"]), max_size=7),
    second=st.lists(st.sampled_from(["works", "fails", "loses"]), max_size=7),
    reads=st.lists(st.sampled_from(["works", "fails"]), max_size=7),
)
def test_r28_whatever_is_lost_there_is_one_winner_and_it_knows(
    first: list[Any], second: list[Any], reads: list[Any]
) -> None:
    shared, clock = Memory(), Clock()
    answers = {}
    for data, script in ((b"first", first), (b"second", second)):
        inner = Unreliable(shared, {"create": list(script), "read": reads}, clock)
        storage = RetryingStorage(inner, sleep=clock.sleep, clock=clock)
        try:
            answers[data] = storage.create("key", data)
        except StorageUnavailableError:
            answers[data] = None  # it does not know; its caller reads back later
    won = [data for data, answer in answers.items() if answer]
    assert len(won) <= 1
    if won:
        assert shared.files == {"key": won[0]}
    for data, answer in answers.items():
        if answer is False:
            assert shared.files["key"] != data
    assert all(pause <= LONGEST_PAUSE_S for pause in clock.pauses)
