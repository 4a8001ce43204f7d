"""A costly value that other processes make for themselves, once."""

from __future__ import annotations

import pickle  # noqa: TID251  # to test what is sent between processes

import pytest

from batchtrain.engines import shipped
from batchtrain.engines.shipped import KEPT, Shipped

MADE: list[str] = []


class Costly:
    """For tests: cannot be pickled."""

    def __reduce__(self) -> str:
        raise AssertionError("it was sent")


def make() -> Costly:
    MADE.append("one")
    return Costly()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    shipped._made.clear()


def test_a_value_at_hand_is_used_and_never_sent() -> None:
    value = Costly()
    sent = Shipped("a", make, value)
    assert sent.get() is value
    copy = pickle.loads(pickle.dumps(sent))
    assert MADE == []
    assert copy.get() is not value
    assert MADE == ["one"]


def test_it_is_made_once_in_a_process_however_often_it_arrives() -> None:
    sent = pickle.dumps(Shipped("a", make))
    values = [pickle.loads(sent).get() for _ in range(3)]
    assert MADE == ["one"]
    assert values[0] is values[1] is values[2]


def test_other_keys_are_other_values_and_only_a_few_are_kept() -> None:
    keys = [str(number) for number in range(KEPT + 2)]
    arrived = [pickle.loads(pickle.dumps(Shipped(key, make))) for key in keys]
    assert len({id(value) for value in [each.get() for each in arrived]}) == len(keys)
    assert list(shipped._made) == keys[-KEPT:]


def test_the_process_that_asks_for_the_work_makes_its_own_each_time() -> None:
    first, second = Shipped("a", make), Shipped("a", make)
    assert first.get() is first.get()
    assert first.get() is not second.get()
    assert MADE == ["one", "one"]
    assert not shipped._made
