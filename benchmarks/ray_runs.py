"""What the same spec takes on Ray: `python -m benchmarks.ray_runs`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.ray_effort import FULL, QUICK, Effort, Found, load
from benchmarks.ray_ranks import measure_workers
from benchmarks.ray_reading import measure_rows, measure_rows_on_ray
from benchmarks.ray_stages import measure_stages
from benchmarks.ray_start import measure_settings, measure_start

__all__ = ["PARTS", "main"]

PARTS: dict[str, Callable[[Effort], Found]] = {
    "start": measure_start,
    "settings": measure_settings,
    "rows": measure_rows,
    "ray-rows": measure_rows_on_ray,
    "workers": measure_workers,
    "stages": measure_stages,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_runs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help="rounds of whole processes")
    parser.add_argument("--epochs", type=int, default=FULL.epochs, help="of drug200")
    parser.add_argument("--quick", action="store_true", help="whether it runs, in two minutes")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    effort = QUICK if asked.quick else replace(FULL, rounds=asked.rounds, epochs=asked.epochs)
    # What the settings save is seen in several rounds only, and runs as the start does.
    parts = asked.only or [name for name in PARTS if not (asked.quick and name == "settings")]
    found: dict[str, Any] = {}
    for name in parts:
        started, before = time.perf_counter(), load()
        found[name] = PARTS[name](effort).to_json()
        print(f"{name}: {time.perf_counter() - started:.0f} s; before {before}, after {load()}\n")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
