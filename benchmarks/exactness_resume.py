"""How much later the first step comes where a run goes on from a checkpoint."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet as pq

from batchtrain.artifacts import RunLayout
from batchtrain.errors import InterruptedRunError
from batchtrain.points import listen
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.storage import FolderStorage
from batchtrain.training.stage import train
from benchmarks.exactness_loops import Effort, Network, Part
from benchmarks.paired import Contender, Spread, Taken, compare, run_in_turns, show
from benchmarks.training_loops import made_rows

__all__ = ["measure_resume"]

FRESH, RESUMED = "fresh start", "resume"
NUM_ROWS = 10_000
BATCH_ROWS = 256
GOAL = "+1000"


def measure_resume(effort: Effort) -> dict[str, Part]:
    """The time from the call of `train` to its first step: resumed, and from the beginning."""
    parts, lines = {}, []
    num_rows = effort.rows(NUM_ROWS, at_least=1000)
    for network in effort.networks:
        with tempfile.TemporaryDirectory() as folder:
            starts = Starts(Path(folder), network, num_rows)
            contenders: dict[str, Contender] = {FRESH: starts.fresh, RESUMED: starts.resumed}
            taken = run_in_turns(contenders, rounds=effort.rounds)
        found = [compare(taken, ours=RESUMED, theirs=FRESH, as_speed=False)]
        parts[f"resume, {network.name}"] = Part(taken, found)
        pairs = list(zip(taken[RESUMED], taken[FRESH], strict=True))
        more = Spread.of([1e3 * (ours.wall_s - theirs.wall_s) for ours, theirs in pairs])
        more_cpu = Spread.of([1e3 * (ours.cpu_s - theirs.cpu_s) for ours, theirs in pairs])
        fresh, resumed = (
            Spread.of([1e3 * run.wall_s for run in taken[name]]).median for name in (FRESH, RESUMED)
        )
        restoring = Spread.of([1e3 * seconds for seconds in starts.restoring_s]).median
        numbers = (f"{fresh:.0f}", f"{resumed:.0f}", f"{restoring:.0f}")
        lines.append([network.name, *numbers, f"{more:+.0f}", f"{more_cpu:+.0f}", GOAL])
    columns = ["", "fresh", "resumed", "restoring", "more on the clock", "more CPU time", "goal"]
    show("Resume: ms from the call of `train` to the end of its first step", columns, lines)
    print(
        f"{num_rows:,} rows, batch {BATCH_ROWS}, in one process; the checkpoint lies in the middle "
        "of the second epoch and holds the\nbest weights too. A fresh start measures the "
        "validation split before its first step, a resume need not.\n"
    )
    return parts


class Starts:
    """Calls of the train stage that are interrupted after their first step, as by Ctrl-C.

    Attributes:
        restoring_s: The seconds in which each resume read its checkpoint into the model.
    """

    def __init__(self, folder: Path, network: Network, num_rows: int) -> None:
        """Prepare the rows, and leave a checkpoint in the middle of the second epoch."""
        self.restoring_s: list[float] = []
        self._folder = folder
        self._numbers = count()
        self._loaded = _spec(folder, network, num_rows)
        self._prepared = prepare(self._loaded, FolderStorage(folder / "runs"), Progress())[0]
        self._interrupted = self._new_layout()
        steps_per_epoch = -(-self._prepared.num_rows("train") // BATCH_ROWS)
        self._run(self._interrupted, steps_per_epoch + steps_per_epoch // 2)

    def fresh(self) -> Taken:
        """Begin a new run."""
        return self._run(self._new_layout(), 1).taken

    def resumed(self) -> Taken:
        """Go on with the one that was interrupted."""
        watch = self._run(self._interrupted, 1)
        self.restoring_s.append(watch.restoring_s)
        return watch.taken

    def _new_layout(self) -> RunLayout:
        storage = FolderStorage(self._folder / f"runs-{next(self._numbers)}")
        return RunLayout(storage, name="run", run_id="0" * 12)

    def _run(self, layout: RunLayout, steps: int) -> _Watch:
        """Train so many steps."""
        watch = _Watch(steps)
        listen(watch)
        try:
            with suppress(InterruptedRunError):
                train(self._loaded, self._prepared, layout, Progress())
        finally:
            listen(None)
        return watch


class _Watch:
    """Hears the points of a run, and interrupts it after some steps.

    Attributes:
        taken: What it took from the beginning to the end of these steps.
        restoring_s: Seconds in which a checkpoint was read into the model.
    """

    def __init__(self, steps: int) -> None:
        """Begin to count."""
        self.taken = Taken(float("nan"), float("nan"))
        self.restoring_s = 0.0
        self._steps = steps
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __call__(self, name: str) -> None:
        """A point is passed."""
        if name == "resume.reading":
            self.restoring_s -= time.perf_counter()
        elif name == "resume.done":
            self.restoring_s += time.perf_counter()
        elif name == "step.optimizer":
            self._steps -= 1
            if self._steps == 0:
                self.taken = Taken(
                    time.perf_counter() - self._wall, time.process_time() - self._cpu
                )
                signal.raise_signal(signal.SIGINT)


def _spec(folder: Path, network: Network, num_rows: int) -> LoadedSpec:
    """A spec of the network beside a table of rows."""
    rows = made_rows(num_rows)
    columns = {f"x{place}": column for place, column in enumerate(rows.numeric.T)}
    target = pa.array(["no", "yes"]).take(pa.array(rows.target))
    pq.write_table(pa.table({**columns, "label": target}), folder / "rows.parquet")
    document = {
        "version": 1,
        "name": "run",
        "data": {"source": "rows.parquet", "target": "label"},
        "model": {"kind": "mlp", "hidden": list(network.hidden), "dropout": 0.1},
        "training": {"epochs": 1000, "batch_size": BATCH_ROWS},
        "tracking": {"tensorboard": False},
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load_spec(path)
