"""Kill a run at seeded points, resume it, and compare what comes out with an undisturbed run.

With one rank the whole run is the process that is killed: preparing, training and committing. With
several, a rank is. `python -m batchtrain.testing.chaos` does it for anybody's spec and storage.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from batchtrain.errors import RankLostError, TrainingError
from batchtrain.pipeline import RunResult, StageName, run_spec
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.storage import open_storage
from batchtrain.testing.child import Report, listen_too
from batchtrain.testing.faults import PointFaults
from batchtrain.testing.processes import run_processes
from batchtrain.testing.training import GlooWorker
from batchtrain.testing.trials import Kill, Seen, Trial, plan_trials

__all__ = ["Chaos", "ChaosReport", "run_chaos"]

OFTEN_SAVED = "training.checkpoint={every_steps: 3, every_seconds: null, keep: 2}"

COMPARED = ("best.safetensors", "last.safetensors", "history.jsonl", "metrics.json", "predictions/")
"""Beginnings of the names of files that two equal runs have alike."""


@dataclass
class ChaosReport:
    """What came of the trials.

    Attributes:
        seen: The points of all processes, and how often an undisturbed run passes them.
        hit: The points at which a process was killed, and how often.
        trials: How many runs were killed and compared.
        kills: How many kills there were.
        different: The trials whose results are not those of the undisturbed run, and how.
    """

    seen: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    kills: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def never_hit(self) -> list[str]:
        """Points at which no process was killed."""
        return sorted(set(self.seen) - set(self.hit))


@dataclass(frozen=True)
class Chaos:
    """A spec, and the storage on which it is killed.

    Attributes:
        spec: The spec file.
        overrides: Other values for some of its keys.
        storage: A folder or an address, under which each call has a folder of its own.
        allow_code: Packages whose code a custom model may run.
    """

    spec: Path
    storage: str
    overrides: tuple[str, ...] = ()
    allow_code: tuple[str, ...] = ()

    def load(self) -> LoadedSpec:
        """The spec, saved so often that there is something to resume."""
        return load_spec(self.spec, [OFTEN_SAVED, *self.overrides])

    def run(
        self, place: str, launcher: GlooWorker | None = None, *, last: StageName = "train"
    ) -> RunResult:
        """Run the stages in this process."""
        storage = open_storage(f"{self.storage}/{place}", Path.cwd())
        return run_spec(
            self.load(),
            last=last,
            allow_code=self.allow_code,
            storage=storage,
            launcher=launcher,
        )

    def attempt(self, place: str, ranks: int, kill: Kill | None = None) -> list[dict[str, int]]:
        """Run to the end and return how often each rank passed each point.

        Raises:
            RankLostError: If the kill came to pass.
        """
        faults = {kill.rank: f"{kill.point}:{kill.count}:kill"} if kill else {}
        if ranks > 1:
            launcher = GlooWorker(ranks, faults=faults)
            self.run(place, launcher)
            return launcher.passed
        target = partial(_attempt_in_process, chaos=self, place=place, faults=faults.get(0, ""))
        found: list[dict[str, int]] = run_processes(target, 1)
        return found

    def results(self, place: str) -> dict[str, str]:
        """The hash of everything that a run which is over has made."""
        made = self.run(place, last="evaluate")
        artifacts = [made.prepared, made.trained, made.report]
        prepared, trained, report = (each.artifact for each in artifacts if each is not None)
        hashes = {"prepared data": prepared.manifest.digest}
        for artifact in (prepared, trained, report):
            artifact.verify()
        hashes["state"] = str(trained.manifest.content["state_sha256"])
        for artifact in (trained, report):
            hashes |= {
                name: entry.sha256
                for name, entry in artifact.manifest.files.items()
                if name.startswith(COMPARED)
            }
        return hashes


def run_chaos(
    chaos: Chaos,
    *,
    seed: int,
    points: int,
    ranks: Sequence[int] = (1,),
    heard: Callable[[Trial, str], None] = lambda _trial, _verdict: None,
) -> ChaosReport:
    """Kill `points` runs, resume each until it ends, and compare.

    Args:
        chaos: What runs, and where.
        seed: Equal seeds give equal kills.
        points: How many runs.
        ranks: The numbers of ranks, which take turns.
        heard: Hears of each trial and what came of it.
    """
    # What an earlier call left there would be reused, and nothing killed.
    chaos = replace(chaos, storage=f"{chaos.storage}/chaos-{uuid.uuid4().hex[:8]}")
    seen = {size: _look_around(chaos, size) for size in ranks}
    expected = {size: chaos.results(_place("quiet", size)) for size in ranks}
    report = ChaosReport()
    for of_size in seen.values():
        for counts in (*of_size.first, *of_size.resumed):
            report.seen.update(counts)
    for trial in plan_trials(seed, points, seen):
        hit = _run_trial(chaos, trial)
        report.hit.update(kill.point for kill in hit)
        report.trials += 1
        report.kills += len(hit)
        found = chaos.results(_place(f"trial-{trial.number:04d}", trial.ranks))
        differences = _differences(expected[trial.ranks], found)
        if differences:
            report.different.append(f"{trial}: other {differences}")
        heard(trial, differences and f"other {differences}")
    return report


def _run_trial(chaos: Chaos, trial: Trial) -> list[Kill]:
    """Attempt after attempt until the run is over; returns the kills that came to pass."""
    place = _place(f"trial-{trial.number:04d}", trial.ranks)
    hit = []
    for kill in trial.kills:
        try:
            chaos.attempt(place, trial.ranks, kill)
        except RankLostError:
            hit.append(kill)
        else:
            # It ended before the point came; what is left of the kills has nothing to kill.
            break
    chaos.attempt(place, trial.ranks)
    return hit


def _look_around(chaos: Chaos, ranks: int) -> Seen:
    """The points of an undisturbed run, and those of one that goes on from a checkpoint."""
    first = chaos.attempt(_place("quiet", ranks), ranks)
    place = _place("resumed", ranks)
    # There is a checkpoint then.
    named = "checkpoint.named"
    if named not in first[0]:
        raise TrainingError(
            f"{chaos.spec}: expected a run of 3 steps or more, so that it is saved once, found "
            "a shorter one. Give it more epochs, or smaller batches"
        )
    with suppress(RankLostError):
        chaos.attempt(place, ranks, Kill(0, named, (first[0][named] + 1) // 2))
    return Seen(first, chaos.attempt(place, ranks))


def _attempt_in_process(
    _rank: int, _report: Report, *, chaos: Chaos, place: str, faults: str
) -> dict[str, int]:
    """One attempt of a run with one rank, in a process that may be killed."""
    listener = PointFaults.parse(faults)
    listen_too(listener)
    chaos.run(place)
    return dict(listener.passed)


def _place(name: str, ranks: int) -> str:
    return f"{name}-{ranks}"


def _differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    return ", ".join(name for name, value in expected.items() if found.get(name) != value)
