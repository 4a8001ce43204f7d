"""Owning a run: one writer at a time, and what a fenced one writes does not count."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  # to test that what goes to the ranks survives it
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain import points
from batchtrain.artifacts.claims import Claim, Continues, check_fence, on_chain, read_claims
from batchtrain.artifacts.ownership import HEARTBEAT_LIMIT_SECONDS, MAX_RACES, Ownership, claim_run
from batchtrain.artifacts.process_identity import ProcessIdentity, this_process
from batchtrain.errors import ArtifactDamagedError, FencedError, RunOwnedError, StorageError
from batchtrain.storage import FolderStorage, Storage
from tests.support.builders import MemoryStorage, WatchedStorage

FOLDER = "run/0123456789ab"
NOON = 1_000_000.0
HERE = this_process()
ELSEWHERE = ProcessIdentity("far-away", "another-boot", "pid:[1]", 4321, 77)
DEAD = replace(HERE, started=1)
"""This process's number, but of an earlier process."""
LONG = 60.0
"""Seconds after which a test that waits for an event fails."""


@dataclass
class Clock:
    """A clock that a test sets."""

    time: float = NOON

    def __call__(self) -> float:
        return self.time


AT_NOON = Clock()


def from_the_beginning(claims: Sequence[Claim]) -> None:
    return None


def claim(
    storage: Any,
    *,
    folder: str = FOLDER,
    continues: Callable[[Sequence[Claim]], Continues | None] = from_the_beginning,
    take_over: bool = False,
    now: Callable[[], float] = AT_NOON,
    heartbeat_seconds: float = 3600.0,
) -> Ownership:
    """Claim a run at noon, with a heartbeat that no test waits for."""
    return claim_run(
        storage,
        folder,
        continues=continues,
        take_over=take_over,
        now=now,
        heartbeat_seconds=heartbeat_seconds,
    )


def write_claim(
    storage: Storage,
    epoch: int,
    process: ProcessIdentity,
    *,
    folder: str = FOLDER,
    continues: Continues | None = None,
    at: float = NOON,
) -> Claim:
    """Write the claim of another process, as it would."""
    made = Claim(epoch, f"token-{epoch}", process, continues, at)
    assert storage.create(f"{folder}/owner/{epoch}.json", made.to_bytes())
    return made


def write_heartbeat(storage: Storage, epoch: int, beat: Any) -> None:
    data = beat if isinstance(beat, bytes) else json.dumps(beat).encode()
    storage.write(f"{FOLDER}/owner/{epoch}.heartbeat.json", data)


def read_heartbeat(storage: Storage, epoch: int) -> dict[str, Any]:
    beat: dict[str, Any] = json.loads(storage.read(f"{FOLDER}/owner/{epoch}.heartbeat.json"))
    return beat


def heartbeat_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batchtrain-heartbeat"]


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def passed() -> Iterator[list[str]]:
    """The points passed, in order."""
    names: list[str] = []
    points.listen(names.append)
    yield names
    points.listen(None)


# ----------------------------------------------------------------------------------------------
# The chain


def claims_of(lines: Sequence[Continues | None]) -> tuple[Claim, ...]:
    return tuple(
        Claim(epoch, f"token-{epoch}", HERE, continues)
        for epoch, continues in enumerate(lines, start=1)
    )


STEPS = range(6)


@st.composite
def some_claims(draw: st.DrawFn) -> tuple[Claim, ...]:
    """Up to seven claims, each of which continues any earlier one or begins anew."""
    lines: list[Continues | None] = []
    for epoch in range(1, draw(st.integers(0, 7)) + 1):
        earlier = st.builds(Continues, st.integers(1, epoch - 1), st.sampled_from(STEPS))
        lines.append(draw(st.none() | earlier) if epoch > 1 else None)
    return claims_of(lines)


def chain_spelled_out(claims: Sequence[Claim]) -> set[tuple[int, int]]:
    """Every checkpoint on the chain, built forwards from the first claim."""
    seen_at_start: dict[int, set[tuple[int, int]]] = {}
    chain: set[tuple[int, int]] = set()
    for one in claims:
        start: set[tuple[int, int]] = set()
        if one.continues is not None:
            epoch, last = one.continues.epoch, one.continues.step
            start = seen_at_start[epoch] | {(epoch, step) for step in STEPS if step <= last}
        seen_at_start[one.epoch] = start
        chain = start | {(one.epoch, step) for step in STEPS}
    return chain


@given(some_claims())
def test_the_chain_is_what_following_it_by_hand_gives(claims: tuple[Claim, ...]) -> None:
    found = {
        (epoch, step)
        for epoch in range(-1, len(claims) + 3)
        for step in STEPS
        if on_chain(claims, epoch, step)
    }
    assert found == chain_spelled_out(claims)


def newest_on_chain(claims: Sequence[Claim], saved: dict[Continues, Any]) -> Continues | None:
    usable = [place for place in saved if on_chain(claims, place.epoch, place.step)]
    return max(usable, key=lambda place: place.step, default=None)


@given(st.lists(st.integers(0, 8), max_size=60))
def test_r33_the_checkpoints_on_the_chain_are_one_history(events: list[int]) -> None:
    """Writers go on after they were fenced; 0 is a new claim, another number a writer's step."""
    claims: list[Claim] = []
    saved: dict[Continues, tuple[Continues, ...]] = {}
    last: dict[int, Continues | None] = {}
    for event in events:
        if event == 0:
            place = newest_on_chain(claims, saved)
            claims.append(Claim(len(claims) + 1, "token", HERE, place))
            last[len(claims)] = place
        elif event <= len(claims):
            before = last[event]
            after = Continues(event, 0 if before is None else before.step + 1)
            saved[after] = (*(() if before is None else saved[before]), after)
            last[event] = after
        usable = [
            history for place, history in saved.items() if on_chain(claims, place.epoch, place.step)
        ]
        usable.sort(key=len)
        longest = usable[-1] if usable else ()
        assert usable == [longest[: index + 1] for index in range(len(usable))]
        if claims and last[len(claims)] is not None:
            assert last[len(claims)] == longest[-1]


def test_a_claim_cannot_continue_itself_or_a_later_one() -> None:
    for epoch in (2, 3):
        with pytest.raises(ValueError, match="earlier"):
            Claim(2, "token", HERE, Continues(epoch, 0))


# ----------------------------------------------------------------------------------------------
# Reading claims


def test_a_claim_read_is_the_claim_written(storage: MemoryStorage) -> None:
    first = write_claim(storage, 1, HERE, at=NOON + 1 / 3)
    second = write_claim(storage, 2, ELSEWHERE, continues=Continues(1, 40))
    assert read_claims(storage, FOLDER) == (first, second)
    assert read_claims(storage, "run/another") == ()


def test_r29_claims_are_found_by_name_where_a_listing_lags(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "list", lambda prefix: [])
    write_claim(storage, 1, DEAD)
    with claim(storage) as ownership:
        assert ownership.epoch == 2


def test_a_torn_claim_is_damage_and_names_its_place(storage: MemoryStorage) -> None:
    write_claim(storage, 1, DEAD)
    key = f"{FOLDER}/owner/1.json"
    whole = storage.files[key]
    for length in range(len(whole.rstrip())):
        storage.files[key] = whole[:length]
        with pytest.raises(ArtifactDamagedError, match=key):
            claim(storage)
    assert storage.list(FOLDER) == [key]


def test_a_flipped_bit_of_a_claim_is_found(storage: MemoryStorage) -> None:
    whole = write_claim(storage, 2, ELSEWHERE, continues=Continues(1, 40))
    data = whole.to_bytes()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            found = Claim.from_bytes(bytes(flipped), epoch=2, where="here")
        except ArtifactDamagedError:
            continue
        assert found == whole


@pytest.mark.parametrize("foreign", [b"", b"null", b"[]", b"3", b'{"sha256": ""}', b"[" * 9999])
def test_something_else_in_place_of_a_claim_is_damage(
    storage: MemoryStorage, foreign: bytes
) -> None:
    storage.files[f"{FOLDER}/owner/1.json"] = foreign
    with pytest.raises(ArtifactDamagedError, match=r"Put the file back"):
        read_claims(storage, FOLDER)


def test_the_claim_of_another_number_is_damage(storage: MemoryStorage) -> None:
    data = Claim(1, "token", HERE, None).to_bytes()
    storage.files[f"{FOLDER}/owner/1.json"] = data
    storage.files[f"{FOLDER}/owner/2.json"] = data
    with pytest.raises(ArtifactDamagedError, match=r"it is claim 1"):
        read_claims(storage, FOLDER)


# ----------------------------------------------------------------------------------------------
# Who may claim


def test_the_first_claim_is_number_one_and_a_released_run_is_free(storage: MemoryStorage) -> None:
    with claim(storage) as first:
        assert (first.epoch, first.is_fenced) == (1, False)
        assert first.claims == read_claims(storage, FOLDER)
        first.check()
    with claim(storage, continues=lambda claims: Continues(1, 7)) as second:
        assert second.epoch == 2
        assert [one.continues for one in second.claims] == [None, Continues(1, 7)]


def test_a_run_of_this_very_process_is_owned_until_it_is_released(storage: MemoryStorage) -> None:
    with claim(storage), pytest.raises(RunOwnedError, match=rf"process {HERE.pid} on .*--take-ov"):
        claim(storage)
    claim(storage).release()


def test_the_owner_died_here(storage: MemoryStorage) -> None:
    write_claim(storage, 1, DEAD)
    write_heartbeat(storage, 1, {"token": "token-1", "at": NOON, "released": False})
    claim(storage).release()


@pytest.mark.parametrize(
    ("age", "is_free"),
    [
        (0.0, False),
        (HEARTBEAT_LIMIT_SECONDS, False),
        (HEARTBEAT_LIMIT_SECONDS + 0.5, True),
        (-3600.0, False),  # the clock here was set back, or the one there is ahead
    ],
)
@pytest.mark.parametrize("has_heartbeat", [True, False])
def test_r32_an_owner_elsewhere_is_known_by_its_heartbeat(
    storage: MemoryStorage, age: float, is_free: bool, has_heartbeat: bool
) -> None:
    at = NOON - age
    write_claim(storage, 1, ELSEWHERE, at=at - 10_000 if has_heartbeat else at)
    if has_heartbeat:
        write_heartbeat(storage, 1, {"token": "token-1", "at": at, "released": False})
    if is_free:
        claim(storage).release()
    else:
        with pytest.raises(RunOwnedError, match=r"process 4321 on 'far-away'.*heartbeat \d+ s "):
            claim(storage)


def test_a_silent_owner_here_may_be_taken_over_although_its_process_exists(
    storage: MemoryStorage,
) -> None:
    write_claim(storage, 1, HERE, at=NOON - HEARTBEAT_LIMIT_SECONDS - 1)
    claim(storage).release()


@pytest.mark.parametrize(
    "beat",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"at"',
        b"\xff",
        {},
        {"token": "token-1"},
        {"token": "token-1", "at": "soon"},
        {"token": "token-1", "at": float("nan")},
        {"token": "token-1", "at": float("inf")},
        {"token": "token-1", "at": 10**400},
        {"token": "another", "at": NOON, "released": True},
    ],
)
def test_a_torn_or_foreign_heartbeat_leaves_the_time_of_the_claim(
    storage: MemoryStorage, beat: Any
) -> None:
    write_claim(storage, 1, ELSEWHERE, at=NOON - 50)
    write_heartbeat(storage, 1, beat)
    with pytest.raises(RunOwnedError, match=r"heartbeat 50 s ago"):
        claim(storage)
    claim(storage, now=Clock(NOON + 11)).release()


def test_a_release_elsewhere_frees_the_run_at_once(storage: MemoryStorage) -> None:
    write_claim(storage, 1, ELSEWHERE)
    write_heartbeat(storage, 1, {"token": "token-1", "at": NOON, "released": True})
    claim(storage).release()


def test_only_the_newest_claim_counts(storage: MemoryStorage) -> None:
    write_claim(storage, 1, HERE)
    write_claim(storage, 2, DEAD)
    claim(storage).release()


# ----------------------------------------------------------------------------------------------
# Races


@pytest.mark.parametrize("after_a_dead_owner", [False, True])
def test_r34_of_two_claimants_at_once_exactly_one_owns_and_the_loser_leaves_nothing(
    tmp_path: Path, after_a_dead_owner: bool
) -> None:
    storage = FolderStorage(tmp_path)
    for number in range(25):
        folder = f"run/{number}"
        if after_a_dead_owner:
            write_claim(storage, 1, DEAD, folder=folder)
        barrier = threading.Barrier(2)
        outcomes: list[Ownership | BaseException] = []

        def attempt(
            folder: str = folder,
            barrier: threading.Barrier = barrier,
            outcomes: list[Ownership | BaseException] = outcomes,
        ) -> None:
            def together(claims: Sequence[Claim]) -> None:
                barrier.wait(LONG)

            try:
                outcomes.append(claim(storage, folder=folder, continues=together))
            except BaseException as error:  # noqa: BLE001  # looked at below
                outcomes.append(error)

        threads = [threading.Thread(target=attempt) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owners = [outcome for outcome in outcomes if isinstance(outcome, Ownership)]
        assert len(owners) == 1, outcomes
        assert [type(outcome) for outcome in outcomes if outcome not in owners] == [RunOwnedError]
        names = ["1.json", "2.json"] if after_a_dead_owner else ["1.json"]
        assert sorted(path.name for path in (tmp_path / folder / "owner").iterdir()) == names
        owners[0].check()
        owners[0].release()
    assert heartbeat_threads() == []


def test_a_race_lost_to_a_process_that_died_is_run_again(storage: MemoryStorage) -> None:
    seen: list[int] = []

    def slow(claims: Sequence[Claim]) -> Continues | None:
        seen.append(len(claims))
        if not claims:
            write_claim(storage, 1, DEAD)
        return Continues(len(claims), 5) if claims else None

    with claim(storage, continues=slow) as ownership:
        assert (ownership.epoch, seen) == (2, [0, 1])
        assert ownership.claims[-1].continues == Continues(1, 5)


def test_races_are_not_run_for_ever(storage: MemoryStorage) -> None:
    def too_slow(claims: Sequence[Claim]) -> None:
        write_claim(storage, len(claims) + 1, DEAD)

    with pytest.raises(RunOwnedError, match="one place"):
        claim(storage, continues=too_slow)
    assert len(read_claims(storage, FOLDER)) == MAX_RACES


def test_of_two_that_take_over_at_once_the_loser_does_not_fence_the_winner(
    storage: MemoryStorage,
) -> None:
    write_claim(storage, 1, HERE)
    winners: list[Ownership] = []

    def slow(claims: Sequence[Claim]) -> None:
        winners.append(claim(storage, take_over=True))

    with pytest.raises(RunOwnedError):
        claim(storage, take_over=True, continues=slow)
    assert len(winners) == 1
    winners[0].check()
    winners[0].release()


# ----------------------------------------------------------------------------------------------
# The fence


def test_r33_the_old_owner_is_refused_on_its_first_check(storage: MemoryStorage) -> None:
    with claim(storage) as old:
        old.check()
        with claim(storage, take_over=True) as new:
            with pytest.raises(FencedError, match=r"found claim 2 after it"):
                old.check()
            assert old.is_fenced
            new.check()
        with pytest.raises(FencedError):  # also after the new owner has ended
            old.check()
    assert f"{FOLDER}/owner/1.heartbeat.json" not in storage.files


def test_r33_a_rank_is_refused_as_its_driver_is(storage: MemoryStorage) -> None:
    with claim(storage) as old:
        epoch, token, claims = pickle.loads(pickle.dumps((old.epoch, old.token, old.claims)))
        assert claims == old.claims
        check_fence(storage, FOLDER, epoch, token)
        with claim(storage, take_over=True) as new:
            with pytest.raises(FencedError):
                check_fence(storage, FOLDER, epoch, token)
            check_fence(storage, FOLDER, new.epoch, new.token)


def test_an_owner_whose_claim_is_gone_or_anothers_is_fenced(storage: MemoryStorage) -> None:
    with claim(storage) as old:
        storage.delete(f"{FOLDER}/owner/1.json")
        with pytest.raises(FencedError, match="no such claim"):
            old.check()
        write_claim(storage, 1, ELSEWHERE)
        with pytest.raises(FencedError, match="process 4321 on 'far-away'"):
            old.check()
    # The release of the old one is not taken for one of the new one.
    assert f"{FOLDER}/owner/1.heartbeat.json" not in storage.files
    with pytest.raises(RunOwnedError):
        claim(storage)


OWNER = """
import sys
from pathlib import Path
from batchtrain.artifacts.ownership import FencedError, claim_run
from batchtrain.storage import FolderStorage

ownership = claim_run(FolderStorage(Path(sys.argv[1])), sys.argv[2], continues=lambda claims: None)
print("claimed", flush=True)
for line in sys.stdin:
    try:
        ownership.check()
        print("owner", flush=True)
    except FencedError:
        print("fenced", flush=True)
        break
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the run, and answers each line with what its check says."""
    command = [sys.executable, "-c", OWNER, str(tmp_path), FOLDER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert answer(process) == "claimed"
        yield process
        process.kill()


def answer(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_r33_a_stopped_process_that_wakes_after_a_take_over_is_fenced(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    storage = FolderStorage(tmp_path)
    assert answer(other, "check") == "owner"
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(RunOwnedError, match=rf"process {other.pid} "):
        claim_run(storage, FOLDER, continues=from_the_beginning)
    with claim_run(storage, FOLDER, continues=from_the_beginning, take_over=True) as new:
        other.send_signal(signal.SIGCONT)
        assert answer(other, "check") == "fenced"
        new.check()
        assert other.wait(LONG) == 0  # it has not released anything, and ends


def test_a_killed_owner_is_replaced_without_waiting(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait(LONG)
    with claim_run(FolderStorage(tmp_path), FOLDER, continues=from_the_beginning) as new:
        assert [one.process.pid for one in new.claims] == [other.pid, HERE.pid]


FORKING = """
import os, sys
from pathlib import Path
from batchtrain.artifacts.ownership import RunOwnedError, claim_run
from batchtrain.storage import FolderStorage

storage = FolderStorage(Path(sys.argv[1]))
ownership = claim_run(storage, sys.argv[2], continues=lambda claims: None, heartbeat_seconds=0.001)
child = os.fork()
if child == 0:
    ownership.release()
    os._exit(0)
os.waitpid(child, 0)
try:
    claim_run(storage, sys.argv[2], continues=lambda claims: None)
except RunOwnedError:
    print("still owned")
"""


def test_a_forked_child_does_not_release_and_a_forgotten_owner_can_end(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(tmp_path), FOLDER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    assert done.stdout.split() == ["still", "owned"]
    claim(FolderStorage(tmp_path), now=Clock(0.0)).release()


# ----------------------------------------------------------------------------------------------
# The heartbeat


def beats(storage: MemoryStorage, act: Callable[[int], None]) -> WatchedStorage:
    """A storage that calls `act` before each heartbeat with its number, from 1."""
    count = 0

    def before(verb: str, key: str) -> None:
        nonlocal count
        if key.endswith(".heartbeat.json"):
            count += 1
            act(count)

    return WatchedStorage(storage, before=before)


def test_r32_the_heartbeat_goes_with_the_clock_and_never_back(storage: MemoryStorage) -> None:
    clock = Clock()
    seen: list[float] = []
    done = threading.Event()

    def act(number: int) -> None:
        # The file still holds the beat before this one.
        if number > 1:
            seen.append(read_heartbeat(storage, 1)["at"])
        clock.time = NOON + 500 if number == 1 else NOON - 3600
        if number == 3:
            done.set()

    with claim(beats(storage, act), now=clock, heartbeat_seconds=0.001):
        assert done.wait(LONG)
    assert seen[0] >= NOON
    assert seen[1] == NOON + 500
    assert read_heartbeat(storage, 1)["at"] >= NOON  # not an hour ago, as this clock says


def test_a_failing_heartbeat_is_remembered_and_tried_again(storage: MemoryStorage) -> None:
    remembered: list[Exception | None] = []
    done = threading.Event()
    failure = StorageError("no space")

    def act(number: int) -> None:
        if number in (2, 3, 4):
            remembered.append(ownership.heartbeat_error)
        if number == 4:
            done.set()
        if number < 3:
            raise failure

    watched = beats(storage, act)
    ownership = claim(watched, heartbeat_seconds=0.001)
    assert done.wait(LONG)
    ownership.check()
    ownership.release()
    assert remembered == [failure, failure, None]
    assert read_heartbeat(storage, 1)["released"] is True


def test_the_heartbeat_finds_a_newer_claim_and_ends(storage: MemoryStorage) -> None:
    go_on, arrived = threading.Event(), threading.Event()

    def act(number: int) -> None:
        arrived.set()
        assert go_on.wait(LONG)

    with claim(beats(storage, act), heartbeat_seconds=0.001) as old:
        assert arrived.wait(LONG)
        (thread,) = heartbeat_threads()
        write_claim(storage, 2, ELSEWHERE)
        assert not old.is_fenced
        go_on.set()
        thread.join(LONG)
        assert not thread.is_alive()
        assert old.is_fenced
        before = dict(storage.files)
    assert storage.files == before
    assert heartbeat_threads() == []


def test_release_ends_the_thread_and_has_the_last_word(storage: MemoryStorage) -> None:
    for _ in range(20):
        arrived = threading.Event()
        watched = beats(storage, lambda number, arrived=arrived: arrived.set())  # type: ignore[misc]
        ownership = claim(watched, heartbeat_seconds=0.0001)
        assert arrived.wait(LONG)
        ownership.release()
        ownership.release()
        assert heartbeat_threads() == []
        assert read_heartbeat(storage, ownership.epoch)["released"] is True


@pytest.mark.parametrize("failure", [StorageError("gone"), OSError(5, "EIO"), KeyError("x")])
def test_a_release_that_storage_refuses_does_not_hide_why_the_run_ended(
    storage: MemoryStorage, failure: Exception
) -> None:
    def refuse(number: int) -> None:
        raise failure

    with pytest.raises(ZeroDivisionError), claim(beats(storage, refuse)) as ownership:
        _ = 1 / 0
    assert ownership.heartbeat_error is failure
    assert heartbeat_threads() == []


# ----------------------------------------------------------------------------------------------
# Interrupted claims


def test_a_run_passes_its_points_in_order(storage: MemoryStorage, passed: list[str]) -> None:
    with claim(storage) as ownership:
        assert passed == ["owner.read", "owner.claiming", "owner.claimed"]
        ownership.release()
    assert passed[3:] == ["owner.released"]  # once, although the context released it again


@pytest.mark.parametrize("point", ["owner.read", "owner.claiming", "owner.claimed"])
def test_a_claim_that_is_interrupted_does_not_block_the_next(
    storage: MemoryStorage, point: str
) -> None:
    def interrupt(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    points.listen(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            claim(storage)
    finally:
        points.listen(None)
    claim(storage).release()


def test_r28_a_claim_whose_reply_was_lost_does_not_block_the_next(storage: MemoryStorage) -> None:
    def lose(verb: str, key: str) -> None:
        if key.endswith("owner/1.json"):
            raise StorageError("timeout")

    watched = WatchedStorage(storage, after=lose)
    with pytest.raises(StorageError, match="timeout"):
        claim(watched)
    with claim(watched) as ownership:
        assert ownership.epoch == 2


def test_r28_a_claim_that_a_retry_found_made_is_known_by_its_token() -> None:
    class Retrying(MemoryStorage):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return False

    with claim(Retrying()) as ownership:
        assert ownership.epoch == 1
        ownership.check()
