"""What a checkpoint costs the loop that it is a copy of.

The files go to the system's temporary folder, with every flush to disk that a run asks for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from batchtrain.artifacts import RunLayout, open_artifact
from batchtrain.artifacts.ownership import Ownership, claim_run
from batchtrain.artifacts.prepared import SplitRows
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.spec.run import ResourcesSpec
from batchtrain.spec.training import CheckpointSpec
from batchtrain.storage import FolderStorage
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.lineage import published_checkpoints
from batchtrain.training.loop import StepLosses
from batchtrain.training.machine import choose_machine
from batchtrain.training.ranks import OneRank
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.state import Snapshot, TrainState
from benchmarks.exactness_loops import Effort, Network, OurTraining, Part, made_plan
from benchmarks.paired import Contender, Spread, Taken, compare, run_in_turns, show, timed
from benchmarks.training_loops import made_rows

__all__ = ["measure_checkpoints"]

NONE, BY_TIME, BY_STEPS = "no checkpoint", "every half second", "every 100 steps"
RULES = {
    NONE: CheckpointSpec(every_steps=None, every_seconds=1e9),
    BY_TIME: CheckpointSpec(every_steps=None, every_seconds=0.5),
    BY_STEPS: CheckpointSpec(every_steps=100, every_seconds=None),
}
FIRST_STEPS = 50
"""Turns end so many steps behind a multiple of 100, so that the last save is over by then."""

GOAL_SECONDS = 10.0
SYNCHRONOUS_SAVES = 9


@dataclass(frozen=True)
class SavingCase:
    """A network, its rows and batches, and how many steps a turn has: a multiple of 100."""

    network: Network
    num_rows: int
    batch_rows: int
    steps: int


def measure_checkpoints(effort: Effort) -> dict[str, Part]:
    """The loop with checkpoints every half second and every 100 steps, against the loop without."""
    parts = {}
    for case in _cases(effort):
        rows = made_rows(case.num_rows)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            savers = {
                name: Saving(case, rows, rules, _claimed(Path(folder) / name, stack))
                for name, rules in RULES.items()
            }
            contenders: dict[str, Contender] = dict(savers)
            taken = run_in_turns(contenders, rounds=effort.rounds)
            found = [
                compare(taken, ours=name, theirs=NONE, as_speed=False)
                for name in (BY_TIME, BY_STEPS)
            ]
            part = Part(taken, found)
            _show_checkpoints(case, part, savers)
            _show_synchronous(case, savers[BY_STEPS])
        parts[f"checkpoints, {case.network.name}"] = part
    print(
        "Each contender takes the same steps a round, with the keeper and the writer of a run. "
        'For each checkpoint: "still"\nis the time in the keeper at the look that saves, "loses" '
        'how much longer the round took than the one without, "CPU"\nhow much more CPU time, the '
        "writer's included. The last column is that loss every 10 s; the goal is 3 %.\n"
    )
    return parts


def _cases(effort: Effort) -> tuple[SavingCase, SavingCase]:
    small, large = effort.networks
    if effort.share < 1:
        return SavingCase(small, 20_000, 1024, 100), SavingCase(large, 20_000, 32, 100)
    return SavingCase(small, 1_000_000, 1024, 1000), SavingCase(large, 100_000, 32, 100)


@dataclass(frozen=True)
class _Claimed:
    """A run that this process may write."""

    layout: RunLayout
    ownership: Ownership


def _claimed(folder: Path, stack: ExitStack) -> _Claimed:
    layout = RunLayout(FolderStorage(folder), name="run", run_id="0" * 12)
    ownership = claim_run(layout.storage, layout.root, continues=lambda _claims: None)
    return _Claimed(layout, stack.enter_context(ownership))


class Saving:
    """Our loop, some steps a call, that saves by some rules; each call is an attempt of a run.

    Attributes:
        saves: The checkpoints of each call.
        stalls_s: Seconds in the keeper, of every look at which it saved.
        newest_bytes: What the newest checkpoint takes on storage.
    """

    def __init__(
        self,
        case: SavingCase,
        rows: SplitRows,
        rules: CheckpointSpec,
        claimed: _Claimed,
    ) -> None:
        """Take the first steps."""
        self.saves: list[int] = []
        self.stalls_s: list[float] = []
        self._rules = rules
        self._steps = case.steps
        self._claimed = claimed
        plan = made_plan(len(rows), case.batch_rows)
        self._training = OurTraining(rows, plan, case.network)
        self._train(FIRST_STEPS)

    def __call__(self) -> Taken:
        """Take the steps of a turn; the checkpoint in the making at its end is waited for."""
        return self._train(self._steps)

    @property
    def num_parameters(self) -> int:
        """The weights of the model."""
        return sum(each.numel() for each in self._training.state.model.parameters())

    @property
    def newest_bytes(self) -> int:
        """See `Saving`."""
        layout = self._claimed.layout
        newest = published_checkpoints(layout, self._claimed.ownership.claims)[-1]
        found = open_artifact(layout.storage, newest.key(layout), CHECKPOINT)
        return sum(entry.size for entry in found.manifest.files.values())

    def saved_and_waited_for(self) -> list[tuple[Taken, Taken, Taken]]:
        """Some saves, each waited for: its copy, the copy as bytes, and the whole again."""
        state, runs = self._training.state, []
        with self._writer() as writer:
            for _ in range(SYNCHRONOUS_SAVES):
                state.step += 1
                snapshots: list[Snapshot] = []
                copied = timed(lambda: snapshots.append(state.snapshot()))  # noqa: B023
                to_bytes = timed(snapshots[0].to_bytes)
                whole = timed(lambda: writer.save(state.snapshot(), wait=True))
                runs.append((copied, to_bytes, whole))
        return runs

    def _train(self, steps: int) -> Taken:
        training = self._training
        with self._writer() as writer:
            saver = _CountedSaver(writer)
            keeper = StateKeeper(self._rules, OneRank(), saver, stop_requested=lambda: False)
            training.keeper = _TimedKeeper(
                keeper, saver, self.stalls_s, stop_at=training.state.step + steps
            )
            taken = timed(lambda: training.train(epochs=steps))
        self.saves.append(saver.saves)
        return taken

    def _writer(self) -> CheckpointWriter:
        layout, ownership = self._claimed.layout, self._claimed.ownership
        return CheckpointWriter(
            layout,
            choose_machine(ResourcesSpec()),
            claim=ownership.epoch,
            check_owner=ownership.check,
            keep=self._rules.keep,
            published=published_checkpoints(layout, ownership.claims),
            resumed=None,
            best_epoch=self._training.state.best_epoch,
        )


class _CountedSaver:
    """A writer, and how many checkpoints it was given."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self.saves = 0
        self._writer = writer

    @property
    def is_idle(self) -> bool:
        """See `batchtrain.training.keeping.Saver`."""
        return self._writer.is_idle

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """See `batchtrain.training.keeping.Saver`."""
        self.saves += 1
        self._writer.save(snapshot, wait=wait)


@dataclass
class _TimedKeeper:
    """A keeper whose saves are timed, and that ends a turn after so many steps."""

    keeper: StateKeeper
    saver: _CountedSaver
    stalls_s: list[float]
    stop_at: int

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        """See `batchtrain.training.loop.Keeper`."""
        saves, started = self.saver.saves, perf_counter()
        self.keeper.goes_on(state, losses)
        if self.saver.saves > saves:
            self.stalls_s.append(perf_counter() - started)
        return state.step < self.stop_at


def _show_checkpoints(case: SavingCase, part: Part, savers: dict[str, Saving]) -> None:
    lines = []
    for each in part.found:
        saver = savers[each.ours]
        saves = saver.saves[-each.rounds :]
        turns = list(zip(part.taken[each.ours], part.taken[NONE], saves, strict=True))
        lost = _ms((ours.wall_s - none.wall_s) / number for ours, none, number in turns if number)
        cpu = _ms((ours.cpu_s - none.cpu_s) / number for ours, none, number in turns if number)
        lines.append(
            [
                each.ours,
                f"{sum(saves) / each.rounds:.1f}",
                f"{each.wall:.2f}",
                f"{_ms(saver.stalls_s).median:.1f}",
                f"{lost:.1f}",
                f"{cpu:.1f}",
                f"{lost.median / 1e3 / GOAL_SECONDS:.2%}",
            ]
        )
    none = Spread.of([run.wall_s for run in part.taken[NONE]])
    title = (
        f"Checkpoints against none: {case.network.name}, {savers[NONE].num_parameters:,} "
        f"parameters, batch {case.batch_rows}, {case.steps} steps of "
        f"{1e3 * none.median / case.steps:.2f} ms, {len(part.taken[NONE])} rounds"
    )
    columns = ["", "saves", "times as long", "still, ms", "loses, ms", "CPU, ms", "every 10 s"]
    show(title, columns, lines)


def _ms(seconds: Iterable[float]) -> Spread:
    """Milliseconds in brief; not a number where there are none."""
    return Spread.of([1e3 * each for each in seconds] or [float("nan")])


def _show_synchronous(case: SavingCase, saver: Saving) -> None:
    copied, to_bytes, whole = zip(*saver.saved_and_waited_for(), strict=True)
    names = ("copy of the state", "copy as bytes", "all: copied, written, published")
    lines = []
    for name, runs in zip(names, (copied, to_bytes, whole), strict=True):
        wall, cpu = _ms(run.wall_s for run in runs), _ms(run.cpu_s for run in runs)
        lines.append([name, f"{wall:.1f}", f"{cpu:.1f}"])
    title = f"One save that is waited for: {case.network.name}, {saver.newest_bytes:,} bytes"
    show(title, ["", "ms", "CPU ms"], lines)
