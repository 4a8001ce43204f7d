"""When a run came to what: noted in each of its processes, read by whoever started it.

All processes are on one machine and read the same clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = [
    "DRIVER",
    "PHASES",
    "Phases",
    "StepNotes",
    "noting_steps",
    "read_marks",
    "write_marks",
]

DRIVER = "driver"
PHASES = (
    "imports, spec",
    "ray start",
    "prepare",
    "torch, placement",
    "workers join",
    "rows, model",
    "training",
    "tail",
    "later stages",
    "shutdown, exit",
)
"""What a run consists of, in its order; the first six end with the first step."""

NUM_BEFORE_STEP = 6


@dataclass(frozen=True)
class Phases:
    """How long each part of a process took.

    Attributes:
        seconds: One number for each of `PHASES`.
        peak_bytes: The most memory that the process itself had; of a bare script 0.
        stage_seconds: Stage to how long it took, as the run says, without the start of Ray.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    stage_seconds: Mapping[str, float]

    @property
    def to_first_step(self) -> float:
        """From the start of the process to the end of its first step."""
        return sum(self.seconds[:NUM_BEFORE_STEP])

    @property
    def after_last_step(self) -> float:
        """From the end of the last step to the end of the process."""
        return sum(self.seconds[NUM_BEFORE_STEP + 1 :])

    @property
    def whole(self) -> float:
        """From the start of the process to its end."""
        return sum(self.seconds)

    @classmethod
    def of(cls, marks: Mapping[str, Any], ranks: Sequence[Mapping[str, float]]) -> Phases:
        """Put the marks of all processes of a run in order.

        Args:
            marks: Of the driver, in seconds since 1970: `began`, `ended`; where it came to them
                `prepare`, `prepared`, `train`, `launch`, `launched`, and `ray asked`, `ray
                started`. What it did not come to takes no time.
            ranks: Of each rank `joined`, `first` and `last`.
        """
        joined, first, last = (
            max((rank[name] for rank in ranks), default=None)
            for name in ("joined", "first", "last")
        )
        at = {**marks, "joined": joined, "first": first, "last": last}
        edges = [marks["began"]]
        for name in ("prepare", "prepared", "launch", "joined", "first", "last", "launched"):
            found = at.get(name)
            edges.append(edges[-1] if found is None else max(found, edges[-1]))
        edges += [max(marks.get("closing", marks["ended"]), edges[-1]), marks["ended"]]
        spans = [end - start for start, end in pairwise(edges)]
        asked, started = marks.get("ray asked"), marks.get("ray started")
        ray_seconds = 0.0
        if asked is not None and started is not None:
            ray_seconds = started - asked
            within = next(place for place, edge in enumerate(edges[1:]) if started <= edge)
            spans[within] -= ray_seconds
        spans.insert(1, ray_seconds)
        stages = {
            name: end - start - (ray_seconds if asked and start <= asked < end else 0.0)
            for name, (start, end) in marks.get("stages", {}).items()
        }
        return cls(tuple(spans), int(marks.get("peak_bytes", 0)), stages)


class StepNotes:
    """Hears of the points that a rank passes, and writes when it took its first and last step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks = {"joined": time.time()}

    def __call__(self, name: str) -> None:
        """See `batchtrain.points.listen`."""
        if name == "step.optimizer":
            now = time.time()
            self._marks.setdefault("first", now)
            self._marks["last"] = now
        elif name == "epoch.finished":
            self._path.write_text(json.dumps(self._marks), encoding="utf-8")


def noting_steps(folder: str, rank: int, _claim: int) -> Callable[[str], None]:
    """The listener of one rank; see `batchtrain.training.ray_rank.Listeners`."""
    return StepNotes(Path(folder) / f"rank-{rank}.json")


def write_marks(folder: Path, name: str, marks: Mapping[str, Any]) -> None:
    """Write the marks of one process."""
    (folder / f"{name}.json").write_text(json.dumps(marks), encoding="utf-8")


def read_marks(folder: Path, began: float, ended: float) -> Phases:
    """The phases of a process whose marks are in a folder.

    Args:
        folder: Where all its processes wrote to.
        began: When it was started.
        ended: When it had ended.
    """
    marks = json.loads((folder / f"{DRIVER}.json").read_text(encoding="utf-8"))
    ranks = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank-*.json"))
    ]
    taken = [rank for rank in ranks if "first" in rank]
    return Phases.of({**marks, "began": began, "ended": ended}, taken)
