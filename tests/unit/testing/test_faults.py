"""A fault strikes at the call that it is meant for, and nowhere else."""

from __future__ import annotations

import os
import pickle  # noqa: TID251  # to test that a plan of faults crosses process borders
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchtrain
from batchtrain import points
from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.storage import FolderStorage, RetryingStorage
from batchtrain.testing.faults import (
    Call,
    Fault,
    FaultStorage,
    PointFault,
    PointFaults,
)

KEY = "a/key"
WHOLE = b"0123456789"
USES: dict[str, Callable[[Any], object]] = {
    "create": lambda storage: storage.create(KEY, WHOLE),
    "write": lambda storage: storage.write(KEY, WHOLE),
    "read": lambda storage: storage.read(KEY),
    "size": lambda storage: storage.size(KEY),
    "modified": lambda storage: storage.modified(KEY),
    "list": lambda storage: storage.list("a"),
    "leftovers": lambda storage: storage.leftovers(),
    "delete": lambda storage: storage.delete(KEY),
}
"""Every call that a storage knows; the first makes the key."""


def use(storage: Any) -> list[object]:
    return [call(storage) for call in USES.values()]


def test_every_call_is_handed_on_and_recorded(tmp_path: Path) -> None:
    plain = FolderStorage(tmp_path)
    (*answers, modified, listed, leftovers, deleted) = use(storage := FaultStorage(plain))
    assert answers == [True, None, WHOLE, len(WHOLE)]
    assert isinstance(modified, float)
    assert (listed, leftovers, deleted) == ([KEY], [], None)
    assert storage.url(KEY) == plain.url(KEY)
    keys = {"list": "a", "leftovers": ""}
    assert storage.calls == [Call(verb, keys.get(verb, KEY)) for verb in USES]


@pytest.mark.parametrize("place", range(1, len(USES) + 1))
@pytest.mark.parametrize("action", ["fail", "unavailable", "full"])
def test_the_call_with_the_number_is_refused_and_no_other(
    tmp_path: Path, place: int, action: Any
) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(place, action)])
    storage.inner.write(KEY, b"old")
    errors = {}
    for verb, call in USES.items():
        try:
            call(storage)
        except StorageError as error:
            errors[verb] = error
    ((verb, error),) = errors.items()
    assert verb == list(USES)[place - 1]
    assert isinstance(error, StorageUnavailableError) == (action == "unavailable")
    assert ("No space left" in str(error)) == (action == "full")
    assert len(storage.calls) == len(USES)


def test_the_calls_of_one_verb_can_be_counted_alone(tmp_path: Path) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(2, "fail", verb="write")])
    storage.write("one", b"")
    storage.size("one")
    with pytest.raises(StorageError, match=r"write .*two, call 3"):
        storage.write("two", b"")
    storage.write("two", b"")
    assert storage.list("") == ["one", "two"]


def test_a_lasting_fault_meets_all_later_calls_of_its_verb(tmp_path: Path) -> None:
    full = Fault(2, "full", verb="write", lasting=True)
    storage = FaultStorage(FolderStorage(tmp_path), [full])
    storage.write("one", b"")
    for name in ("two", "three"):
        with pytest.raises(StorageError, match="No space left"):
            storage.write(name, b"")
    storage.delete("one")
    assert storage.list("") == []


@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_cut_write_leaves_the_first_half(tmp_path: Path, verb: Any) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(1, "cut", verb=verb)])
    with pytest.raises(StorageError):
        USES[verb](storage)
    assert storage.read(KEY) == WHOLE[:5]


def test_a_cut_create_never_touches_what_is_there(tmp_path: Path) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(1, "cut")])
    storage.inner.write(KEY, b"old")
    with pytest.raises(StorageError):
        storage.create(KEY, WHOLE)
    assert storage.read(KEY) == b"old"


def test_a_lost_reply_is_one_of_a_call_that_was_done(tmp_path: Path) -> None:
    faults = [Fault(1, "lost_reply"), Fault(2, "lost_reply")]
    storage = FaultStorage(FolderStorage(tmp_path), faults)
    with pytest.raises(StorageUnavailableError):
        storage.create(KEY, WHOLE)
    assert storage.inner.read(KEY) == WHOLE
    with pytest.raises(StorageUnavailableError):
        storage.delete(KEY)
    assert storage.inner.size(KEY) is None


def test_a_delayed_call_is_done(tmp_path: Path) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(1, "delay", seconds=0.001)])
    assert storage.create(KEY, WHOLE)
    assert storage.read(KEY) == WHOLE


def test_r28_retries_over_faults_find_their_own_commit(tmp_path: Path) -> None:
    faults = [Fault(1, "lost_reply", verb="create"), Fault(1, "unavailable", verb="read")]
    flaky = FaultStorage(FolderStorage(tmp_path), faults)
    storage = RetryingStorage(flaky, sleep=lambda seconds: None)
    assert storage.create(KEY, WHOLE)
    assert not storage.create(KEY, b"another's")
    assert storage.read(KEY) == WHOLE


def test_faults_cross_process_borders_and_count_on(tmp_path: Path) -> None:
    storage = FaultStorage(FolderStorage(tmp_path), [Fault(2, "fail")])
    storage.size(KEY)
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.calls, copy.faults) == (storage.calls, storage.faults)
    with pytest.raises(StorageError):
        copy.size(KEY)
    listener = PointFaults.parse("step.done:2:raise")
    listener("step.done")
    with pytest.raises(RuntimeError, match=r"step\.done:2:raise"):
        pickle.loads(pickle.dumps(listener))("step.done")


@pytest.mark.parametrize(
    "wrong",
    [{"call": 0}, {"action": "explode"}, {"verb": "rename"}, {"seconds": -1.0}],
)
def test_a_fault_that_could_never_strike_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(Fault(1, "fail"), **wrong)


# ----------------------------------------------------------------------------------------------
# Kills are real, so each needs a process.

WRITER = """
import sys
from pathlib import Path
from batchtrain import points
from batchtrain.storage import FolderStorage
from batchtrain.testing.faults import Fault, FaultStorage, PointFaults

points.listen(PointFaults.parse(sys.argv[3]))
faults = [Fault(2, sys.argv[2])] if sys.argv[2] else []
storage = FaultStorage(FolderStorage(Path(sys.argv[1])), faults)
storage.write("one", b"0123456789")
storage.write("two", b"0123456789")
storage.write("three", b"0123456789")
"""


def write_three(folder: Path, action: str = "", point: str = "") -> subprocess.Popen[bytes]:
    source = Path(batchtrain.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), action, point],
        env={**os.environ, "PYTHONPATH": str(source)},
    )


@pytest.mark.fault
@pytest.mark.parametrize(
    ("action", "left"),
    [
        ("kill_before", {"one": 10}),
        ("kill_after", {"one": 10, "two": 10}),
        ("cut_kill", {"one": 10, "two": 5}),
    ],
)
def test_a_kill_ends_the_process_at_the_call(
    tmp_path: Path, action: str, left: dict[str, int]
) -> None:
    assert write_three(tmp_path, action).wait() == -signal.SIGKILL
    storage = FolderStorage(tmp_path)
    assert {key: storage.size(key) for key in storage.list("")} == left


@pytest.mark.fault
def test_a_kill_ends_the_process_at_the_pass_of_a_point(tmp_path: Path) -> None:
    assert write_three(tmp_path, point="storage.half:3:kill").wait() == -signal.SIGKILL
    storage = FolderStorage(tmp_path)
    assert storage.list("") == ["one", "two"]
    (half,) = storage.leftovers()
    assert storage.size(half) == 5


@pytest.mark.fault
def test_a_stopped_process_goes_on_when_it_is_continued(tmp_path: Path) -> None:
    process = write_three(tmp_path, point="storage.done:1:stop")
    _pid, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert FolderStorage(tmp_path).list("") == ["one"]
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert FolderStorage(tmp_path).list("") == ["one", "three", "two"]


# ----------------------------------------------------------------------------------------------
# Points


def test_points_are_counted_and_struck_by_number() -> None:
    listener = PointFaults.parse("b:2:raise, c:1:delay=0.001")
    points.listen(listener)
    try:
        for name in ("a", "b", "c", "a"):
            points.passed(name)
        with pytest.raises(RuntimeError, match="b:2:raise"):
            points.passed("b")
        points.passed("b")
    finally:
        points.listen(None)
    points.passed("a")
    assert listener.passed == {"a": 2, "b": 3, "c": 1}


point_faults = st.builds(
    PointFault,
    point=st.text(
        st.characters(exclude_characters=":,", exclude_categories=["Z", "C"]), min_size=1
    ),
    count=st.integers(1, 10**6),
    action=st.sampled_from(["kill", "raise", "stop"]),
) | st.builds(
    PointFault,
    point=st.sampled_from(["storage.half", "step.backward"]),
    count=st.integers(1, 9),
    action=st.just("delay"),
    seconds=st.floats(0, 3599),
)


@given(st.lists(point_faults, max_size=4))
def test_faults_at_points_are_printed_as_they_are_read(faults: list[PointFault]) -> None:
    listener = PointFaults(faults)
    assert PointFaults.parse(str(listener)).faults == tuple(faults)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:1",
        "a:0:kill",
        "a:-1:kill",
        "a:x:kill",
        ":1:kill",
        "a:1:run",
        "a:1:delay=x",
        "a:1:kill=2",
    ],
)
def test_a_text_that_is_no_fault_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected point:count:action.*storage\.half:3:kill"):
        PointFault.parse(text)
