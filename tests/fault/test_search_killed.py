"""A search that is killed anywhere and started again ends with the table of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchtrain import points
from batchtrain.cli.app import app
from batchtrain.testing.trials import Kill, Seen, plan_trials
from tests.fault.forking import Forks
from tests.fault.scenarios import SEARCH
from tests.support.builders import mixed_table, spec_for

pytestmark = pytest.mark.fault

KINDS: dict[str, dict[str, Any]] = {
    "packs": {"pack": 3},
    "runs of their own": {"pack": 1},
}
SPACE = {
    "training.optimizer.lr": {"log_uniform": [1e-3, 1e-1]},
    "model.dropout": {"uniform": [0, 0.5]},
}
KILLS = 10
SEEN_FILES = ("table.json", "search.html", "best.yaml")


@dataclass
class Place:
    """Where the search of one spec is killed over and over; its storage lies there each time.

    A new folder for each would show in `best.yaml`, which says where it came from.
    """

    folder: Path
    killer: Forks

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def told(self) -> Path:
        return self.folder / "told.txt"

    def clear(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)
        self.told.unlink(missing_ok=True)

    def attempt(self, kill: Kill | None = None) -> bool:
        """Search, or go on; whether the kill came to pass."""
        faults = f"{kill.point}:{kill.count}:kill" if kill else ""
        ended_by, _ = self.killer.run(
            SEARCH.name, self.runs, self.folder, point_faults=faults, told=self.told
        )
        assert ended_by in {0, signal.SIGKILL}
        return ended_by == signal.SIGKILL

    def passed(self) -> Counter[str]:
        """How often each point was passed since `clear`."""
        return Counter(self.told.read_text().splitlines())

    def results(self) -> dict[str, bytes]:
        """What people look at, and the model that it comes to."""
        (root,) = self.runs.glob("small/search-*")
        found = {name: (root / name).read_bytes() for name in SEEN_FILES}
        # A killed writer may leave a file that no reader takes for a key.
        units = sorted((root / "units").glob("[0-9]*.json"))
        found |= {f"units/{each.name}": each.read_bytes() for each in units}
        best = json.loads(found["table.json"])["best_run"]["links"]["bundle"]
        manifest = json.loads((root / best / "manifest.json").read_bytes())
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return found | {"bundle": files["model.safetensors"].encode()}

    @property
    def num_units(self) -> int:
        return len(list(self.runs.glob("small/search-*/units/[0-9]*.json")))


@dataclass
class Quiet:
    """What a search gives that nobody disturbs."""

    place: Place
    results: dict[str, bytes]
    counts: Counter[str]
    resumed: Counter[str]


@pytest.fixture(scope="module", params=KINDS)
def quiet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, killer: Forks
) -> Quiet:
    folder = tmp_path_factory.mktemp("searched")
    spec_for(
        folder,
        mixed_table(60),
        training={
            "epochs": 4,
            "batch_size": 16,
            "checkpoint": {"every_steps": 3, "every_seconds": None},
        },
        search={
            "space": SPACE,
            "trials": 8,
            "scheduler": {"kind": "asha", "factor": 2},
            **KINDS[request.param],
        },
    )
    # The hash of a file that may still be changing is not kept, which costs a call later.
    os.utime(folder / "rows.parquet", (0, 0))
    place = Place(folder, killer)
    assert place.attempt(Kill(0, "checkpoint.named", 1))
    place.told.unlink()
    assert not place.attempt()
    resumed = place.passed()
    place.clear()
    assert not place.attempt()
    return Quiet(place, place.results(), place.passed(), resumed)


def kill_and_compare(quiet: Quiet, *, seed: int, number: int) -> None:
    place = quiet.place
    seen = {1: Seen([quiet.counts], [quiet.resumed])}
    for trial in plan_trials(seed, number, seen):
        place.clear()
        kills = sum(place.attempt(kill) for kill in trial.kills)
        place.attempt()
        assert kills, trial
        found = place.results()
        different = [name for name, data in quiet.results.items() if found.get(name) != data]
        assert not different, f"{trial}: other {different}"
        assert found.keys() == quiet.results.keys(), trial
        passed = place.passed()
        # What is published is never done again, and what a kill cut is begun once more.
        assert place.num_units - kills <= passed["unit.published"] <= place.num_units, trial
        assert passed["unit.done"] <= place.num_units + kills, trial
        assert passed["pack.trained"] <= quiet.counts["pack.trained"] + kills, trial


def test_r37_a_search_that_is_killed_ends_with_the_table_of_one_that_is_not(quiet: Quiet) -> None:
    names = set(quiet.counts)
    assert {"unit.done", "unit.published", "search.taken", "search.table"} <= names
    assert quiet.counts["unit.published"] == quiet.place.num_units
    kill_and_compare(quiet, seed=0, number=3)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_r37_ten_seeded_kills_leave_the_same_table(quiet: Quiet, seed: int) -> None:
    kill_and_compare(quiet, seed=seed, number=KILLS)


OWN_POINTS = ["unit.done", "unit.published", "search.taken", "search.table"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_r37_a_kill_at_every_point_of_the_search_itself_leaves_the_same_table(
    quiet: Quiet,
) -> None:
    place = quiet.place
    own = [*OWN_POINTS, *(name for name in quiet.counts if name.startswith("pack."))]
    for name in own:
        for number in {1, (quiet.counts[name] + 1) // 2, quiet.counts[name]}:
            place.clear()
            assert place.attempt(Kill(0, name, number))
            place.attempt()
            assert place.results() == quiet.results, (name, number)


# ---- asked to stop


@pytest.fixture
def interrupted() -> Iterator[Callable[[str, int], None]]:
    """Send this process a SIGINT at the n-th pass of a point."""

    def listen(point: str, number: int) -> None:
        passes = 0

        def hear(name: str) -> None:
            nonlocal passes
            passes += name == point
            if name == point and passes == number:
                os.kill(os.getpid(), signal.SIGINT)

        points.listen(hear)

    yield listen
    points.listen(None)


def test_ctrl_c_ends_a_search_with_130_and_the_same_command_goes_on(
    quiet: Quiet, interrupted: Callable[[str, int], None]
) -> None:
    place = quiet.place
    is_packed = "pack.trained" in quiet.counts
    # Within a training, at the last step before it pauses, between two units, after all of them.
    asked = [
        ("epoch.schedule", 3),
        ("pack.trained" if is_packed else "checkpoint.named", 2),
        ("unit.published", 1),
        ("unit.published", place.num_units),
    ]
    place.clear()
    for name, number in asked:
        interrupted(name, number)
        done = CliRunner().invoke(app, ["tune", str(place.folder / "spec.yaml")])
        points.listen(None)
        assert done.exit_code == 130, (name, done.output)
        assert "Run the same command again" in done.output
        if name == "unit.published":
            place.clear()
    done = CliRunner().invoke(app, ["tune", str(place.folder / "spec.yaml")])
    assert done.exit_code == 0, done.output
    assert place.results() == quiet.results
