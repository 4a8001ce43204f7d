"""The test metrics of the defaults beside scikit-learn's: `python -m benchmarks.quality`.

A spec that gives the source and the target alone is trained on each table, with several seeds; so
are scikit-learn's MLP and gradient boosting, as they come. The whole command writes quality.md;
with `--quick` or `--only` it prints alone, unless `--page` names a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality_page import Standing, page, printed
from benchmarks.quality_runs import BOOSTING, METRICS, MLP, OURS, Bench, Measured, identity
from benchmarks.quality_tables import CASES

__all__ = ["main"]

PAGE = Path(__file__).with_name("quality.md")
MORE = " + valid"
CONTENDERS = (OURS, MLP, BOOSTING, MLP + MORE, BOOSTING + MORE)
QUICK_ROWS = 200
QUICK = ("training.epochs=2",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all tables and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many; the first is 0")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these tables alone")
    parser.add_argument(
        "--quick", action="store_true", help="few rows, two epochs: only to see that it works"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="write every measurement to this file; what it holds already is not measured again",
    )
    parser.add_argument("--page", type=Path, help="write the page to this file")
    asked = parser.parse_args(arguments)
    kept = Kept(None if asked.quick else asked.json)
    standings = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in asked.only or CASES:
            standings.append(_measure(name, range(asked.seeds), kept, quick=asked.quick))
            print(printed(standings[-1]), flush=True)
    finally:
        torch.set_num_threads(threads)
    below = [each.case.name for each in standings if each.is_below]
    print(f"below scikit-learn's MLP by more than one standard error: {', '.join(below) or 'none'}")
    if asked.json and asked.quick:
        kept.write(asked.json)
    target = asked.page or (None if asked.quick or asked.only else PAGE)
    if target:
        target.write_text(page(standings, seeds=asked.seeds), encoding="utf-8")


class Kept:
    """Every measurement, by table, contender with what it depends on, and seed."""

    def __init__(self, path: Path | None) -> None:
        """Begin with what a file holds, if there is one."""
        self._path = path
        self._found: dict[str, dict[str, dict[str, Any]]] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text(encoding="utf-8"))

    def get(self, table: str, contender: str, seed: int) -> dict[str, Any] | None:
        """What was measured before, or None."""
        runs = self._found.get(table, {}).get(self._key(contender), {})
        found: dict[str, Any] | None = runs.get(str(seed))
        return found

    def put(self, table: str, contender: str, seed: int, found: Mapping[str, Any]) -> None:
        """Keep a measurement, and write all where a file was named."""
        runs = self._found.setdefault(table, {}).setdefault(self._key(contender), {})
        runs[str(seed)] = dict(found)
        if self._path is not None:
            self.write(self._path)

    def write(self, path: Path) -> None:
        """Write all of them."""
        path.write_text(json.dumps(self._found, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def _key(contender: str) -> str:
        return f"{contender}, {identity(contender)}"


def _measure(name: str, seeds: Sequence[int], kept: Kept, *, quick: bool) -> Standing:
    """Train all contenders on one table with each seed."""
    found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(CASES[name], Path(folder), max_rows=QUICK_ROWS if quick else None)
        for seed in seeds:
            for contender in CONTENDERS:
                run = kept.get(name, contender, seed)
                if run is None:
                    measured = _run(bench, contender, seed, QUICK if quick else ())
                    run = {**asdict(measured), "task": bench.task, "rows": bench.rows}
                    kept.put(name, contender, seed, run)
                found[contender].append(run)
    return _standing(name, found)


def _run(bench: Bench, contender: str, seed: int, overrides: Sequence[str]) -> Measured:
    if contender == OURS:
        return bench.ours(seed, overrides)
    name = contender.removesuffix(MORE)
    return bench.peer(name, seed, with_valid=name != contender)


def _standing(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Standing:
    first = found[OURS][0]
    metrics = METRICS[first["task"]]
    scores = {
        metric: {
            contender: [float(run["scores"][metric]) for run in runs]
            for contender, runs in found.items()
        }
        for metric in metrics
    }
    seconds = {
        contender: statistics.median(run["cpu_s"] for run in runs)
        for contender, runs in found.items()
    }
    return Standing(CASES[name], metrics, scores, seconds, rows=first["rows"])


if __name__ == "__main__":
    main()
