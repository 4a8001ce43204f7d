"""How many trials a minute, alone, on Ray Tune and in packs: `python -m benchmarks.search`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchtrain.tables.samples import write_sample
from benchmarks.paired import Spread, show
from benchmarks.ray_effort import load
from benchmarks.search_child import BARE, PACKED, PACKED_TUNE, TUNE, WAYS, spec_text

__all__ = ["GOALS", "PARTS", "Asked", "Search", "main", "show_searches"]

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "bare_tune.py"

LONGER = 4
LONG = f"{PACKED_TUNE}, {LONGER} times as many"
GOALS = {TUNE: "10", PACKED: "50", PACKED_TUNE: "50", LONG: "50"}
"""How many times as many trials a minute as the bare `Tuner`."""

NOT_NICE = {"RAY_worker_niceness": "0"}
"""Ray's workers step back behind everything else (niceness 15); where others work on the machine,
a search with actors would be slowed by more than one without, the bare one too."""


@dataclass(frozen=True)
class Asked:
    """How much to measure.

    Attributes:
        trials: Of each search of ours.
        bare_trials: Of the bare `Tuner`, which takes as long for each.
        epochs: Of a trial.
        rounds: Paired rounds.
        gpu: Whether to pack on a GPU too.
    """

    trials: int = 64
    bare_trials: int = 16
    epochs: int = 100
    rounds: int = 3
    gpu: bool = False


@dataclass(frozen=True)
class Search:
    """What one search took.

    Attributes:
        seconds: From the call to the table and its page.
        trials: How many it trained.
    """

    seconds: float
    trials: int

    @property
    def rate(self) -> float:
        """Trials a minute."""
        return 60 * self.trials / self.seconds


def measure_warm(asked: Asked) -> dict[str, Any]:
    """Searches in processes that have searched before, with Ray up."""
    counts = dict.fromkeys(WAYS, asked.trials)
    counts |= {BARE: asked.bare_trials, LONG: LONGER * asked.trials}

    def search(name: str) -> Search:
        way = PACKED_TUNE if name == LONG else name
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", "benchmarks.search_child", way, str(counts[name])]
            found = json.loads(_run([*words, str(asked.epochs), folder]))
        return Search(found["seconds"], found["trials"])

    return _compared("drug200, warm, from the call to the table", counts, search, asked)


def measure_cold(asked: Asked) -> dict[str, Any]:
    """Whole commands, Ray's start and all imports included."""
    counts = dict.fromkeys(WAYS, asked.trials) | {BARE: asked.bare_trials}

    def search(name: str) -> Search:
        settings = WAYS[name]
        with tempfile.TemporaryDirectory() as folder:
            if settings is None:
                csv = Path(folder) / "drug200.csv"
                write_sample("drug200", csv)
                words = [str(SCRIPT), str(csv), str(counts[name]), str(asked.epochs), folder]
            else:
                spec = Path(folder) / "spec.yaml"
                spec.write_text(spec_text(counts[name], asked.epochs), encoding="utf-8")
                overrides = [word for each in settings for word in ("--set", each)]
                words = ["-m", "batchtrain", "tune", str(spec), "--json", *overrides]
            before = time.perf_counter()
            _run(words)
            return Search(time.perf_counter() - before, counts[name])

    return _compared("drug200, cold, whole commands", counts, search, asked)


def measure_crossover(asked: Asked) -> dict[str, Any]:
    """Where packing stops to pay, on a core and, where asked, on a GPU."""
    # Imported here, since the parts above leave torch to other processes.
    import torch

    from benchmarks.search_packing import CASES, GPU_CASES, measure_packing

    torch.set_num_threads(1)
    found: dict[str, Any] = {"cpu": measure_packing(CASES, rounds=asked.rounds)}
    if asked.gpu and torch.cuda.is_available():
        found["cuda"] = measure_packing(GPU_CASES, rounds=asked.rounds, device="cuda")
    elif asked.gpu:
        print("no GPU here: packs on a GPU were not measured")
    return found


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "warm": measure_warm,
    "cold": measure_cold,
    "crossover": measure_crossover,
}


def _compared(
    title: str, names: Iterable[str], search: Callable[[str], Search], asked: Asked
) -> dict[str, Any]:
    """Search in all ways, once a round, to and fro."""
    taken: dict[str, list[Search]] = {name: [] for name in names}
    forth = list(names)
    for turn in range(asked.rounds):
        for name in forth if turn % 2 == 0 else forth[::-1]:
            found = search(name)
            taken[name].append(found)
            # A round takes minutes.
            print(f"{name}: {found.trials} trials in {found.seconds:.1f} s; {load()}", flush=True)
    show_searches(f"{title}, {asked.epochs} epochs", taken)
    return {name: [vars(each) for each in runs] for name, runs in taken.items()}


def show_searches(title: str, taken: Mapping[str, Sequence[Search]]) -> None:
    """Print a table: seconds, trials a minute, and how many times those of the bare `Tuner`."""
    lines = []
    for name, runs in taken.items():
        ratios = [one.rate / bare.rate for one, bare in zip(runs, taken[BARE], strict=True)]
        lines.append(
            [
                name,
                str(runs[0].trials),
                f"{Spread.of([each.seconds for each in runs]):.1f}",
                f"{Spread.of([each.rate for each in runs]):.0f}",
                f"{Spread.of(ratios):.1f}",
                GOALS.get(name, ""),
            ]
        )
    heads = ["", "trials", "seconds", "trials a minute", "times the first", "goal"]
    show(title, heads, lines)


def _run(words: Sequence[str]) -> str:
    """Run this Python; the last line that it printed.

    Raises:
        RuntimeError: If it fails.
    """
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **NOT_NICE},
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"expected exit code 0 of {' '.join(words)}, found {done.returncode}. "
            f"Run it by hand; it ended with\n{done.stderr[-2000:]}"
        )
    return done.stdout.strip().rpartition("\n")[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--trials", type=int, default=Asked.trials, help="of each search of ours")
    parser.add_argument(
        "--bare-trials", type=int, default=Asked.bare_trials, help="of the bare `Tuner`"
    )
    parser.add_argument("--epochs", type=int, default=Asked.epochs, help="of a trial")
    parser.add_argument("--rounds", type=int, default=Asked.rounds, help="paired rounds")
    parser.add_argument("--gpu", action="store_true", help="pack on a GPU too, where there is one")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    effort = Asked(asked.trials, asked.bare_trials, asked.epochs, asked.rounds, asked.gpu)
    found: dict[str, Any] = {}
    for name in asked.only or PARTS:
        started, before = time.perf_counter(), load()
        found[name] = PARTS[name](effort)
        print(f"{name}: {time.perf_counter() - started:.0f} s; before {before}, after {load()}\n")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
