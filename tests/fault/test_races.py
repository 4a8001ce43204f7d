"""Two processes publish one name at once: one wins, and nobody ever sees a mixture."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchtrain.artifacts import find_artifact
from batchtrain.artifacts.garbage import find_garbage
from batchtrain.storage import Storage
from tests.fault.racing import KIND, Racer, held_by, opened, racers

pytestmark = pytest.mark.fault

FOLDER_RACES = 200
S3_RACES = 40

PLACES = [
    pytest.param("folder", FOLDER_RACES, id="folder"),
    pytest.param("s3", S3_RACES, id="s3", marks=pytest.mark.s3),
]


class Reader(threading.Thread):
    """Looks at the name that is raced for, over and over.

    Attributes:
        key: The name.
        seen: Each name and whose artifact it was, every time that it was there.
        errors: What a reader should never see.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(daemon=True)
        self.key = "races/none"
        self.seen: set[tuple[str, str]] = set()
        self.errors: list[BaseException] = []
        self._storage = storage
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.is_set() and not self.errors:
            key = self.key
            try:
                found = find_artifact(self._storage, key, KIND)
                if found is not None:
                    self.seen.add((key, held_by(found)))
            except BaseException as error:  # noqa: BLE001  # shown by the test's own thread
                self.errors.append(error)

    def stop(self) -> None:
        """Look no more; raises what it saw and should not have."""
        self._is_over.set()
        self.join()
        if self.errors:
            raise self.errors[0]


@contextmanager
def reading(storage: Storage) -> Iterator[Reader]:
    reader = Reader(storage)
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()


@pytest.fixture
def place(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where to race."""
    if kind == "folder":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue('s3_address')}/{tmp_path.name}"


def race(both: list[Racer], number: int, *, inputs: list[str], waits: bool) -> list[dict[str, str]]:
    """One race, which each of the two begins in turn; their answers.

    Those that wait come to the commit together, with all files written; else the later one may
    come at any moment of the other's work.
    """
    order = both if number % 2 else both[::-1]
    for racer in order:
        racer.start(f"races/{number}", inputs[both.index(racer)], waits=waits)
    if waits:
        for racer in both:
            racer.wait_until_ready()
        for racer in order:
            racer.go_on()
    return [racer.answer() for racer in both]


@pytest.mark.parametrize(("kind", "races"), PLACES)
def test_d27_of_two_writers_one_publishes_and_the_other_returns_that(
    place: str, kind: str, races: int
) -> None:
    storage = opened(place)
    winners = {}
    with racers(place) as both, reading(storage) as reader:
        for number in range(races):
            reader.key = f"races/{number}"
            answers = race(both, number, inputs=["same", "same"], waits=number % 4 < 2)
            assert sorted(answer["status"] for answer in answers) == ["built", "reused"], number
            (winner,) = {answer["held"] for answer in answers}
            assert answers[[racer.writer for racer in both].index(winner)]["status"] == "built"
            winners[f"races/{number}"] = winner
    assert reader.seen <= set(winners.items())
    check_nothing_left(storage, winners)


@pytest.mark.parametrize(("kind", "races"), PLACES)
def test_r34_of_two_runs_with_one_name_one_wins_and_the_other_leaves_no_files(
    place: str, kind: str, races: int
) -> None:
    storage = opened(place)
    winners = {}
    with racers(place) as both, reading(storage) as reader:
        for number in range(races):
            reader.key = f"races/{number}"
            answers = race(both, number, inputs=["one", "another"], waits=True)
            assert sorted(answer["status"] for answer in answers) == ["built", "refused"], number
            winner, loser = sorted(
                zip(answers, both, strict=True), key=lambda each: each[0]["status"]
            )
            assert winner[0]["held"] == winner[1].writer
            assert "expected fingerprint" in loser[0]["error"]
            assert "Use another storage or name" in loser[0]["error"]
            winners[f"races/{number}"] = winner[1].writer
    assert reader.seen <= set(winners.items())
    check_nothing_left(storage, winners)


def check_nothing_left(storage: Storage, winners: dict[str, str]) -> None:
    """Only the winners' files are there."""
    found = {key: find_artifact(storage, key, KIND) for key in winners}
    assert {key: held_by(artifact) for key, artifact in found.items() if artifact} == winners
    assert len(storage.list("")) == 4 * len(winners)
    assert storage.leftovers() == []
    assert find_garbage(storage, older_than_seconds=0, now=math.inf) == []
