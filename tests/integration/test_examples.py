"""The shipped examples: each runs as it stands, twice, and learns what it is there to show."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from batchtrain.export.verify import verify
from batchtrain.spec.load import load_spec
from tests.support.runs import SPECS, FinishedRun, finish

Example = Callable[..., FinishedRun]

NAMES = sorted(path.stem for path in SPECS.glob("*.yaml"))

SEEDS = (1, 2, 3, 4, 5)
"""Fixed before anything was measured."""

MEDIAN_ACCURACY = {
    "drug200": 0.9,
    # A missing Na_to_K hides the class: even the rule behind the table is right in 96 of 100 rows.
    "drug200-missing": 0.87,
    "popularity": 0.78,
}

# What the run of the spec as it stands reaches on the test rows, at least.
REACHED = {
    "breast-cancer": ("accuracy", 0.93),
    "diabetes": ("r2", 0.4),
    "digits": ("accuracy", 0.96),
    "digits-cnn": ("accuracy", 0.97),
    "wine": ("accuracy", 0.9),
}

SAME_TABLE = {
    "digits-cnn": "digits",
    "tune-breast-cancer": "breast-cancer",
    "tune-digits": "digits",
    "tune-drug200": "drug200",
}
"""Examples that show something else on the table of another example."""

LINES = {"line": ((0.7, 0.3), 0.02), "linear": ((2.0, 1.0), 0.1)}
"""Weight and bias in raw units, and how far the learned ones may be off."""


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_as_it_stands_and_is_done_the_second_time(
    example: Example, storage: Path, name: str
) -> None:
    first = example(name)
    second = finish(SPECS / f"{name}.yaml", f"storage={storage}")

    stages = ["prepare", "train", "evaluate", "export"]
    assert list(first.statuses) == stages
    assert second.statuses == dict.fromkeys(stages, "reused")
    assert second.result.to_json()["bundle"] == first.result.to_json()["bundle"]
    assert (first.folder / "report.html").stat().st_size > 10_000
    assert verify(first.bundle).exact


def test_the_examples_cover_the_samples_and_keep_their_runs_together() -> None:
    loaded = {name: load_spec(SPECS / f"{name}.yaml") for name in NAMES}

    assert {name: each.spec.name for name, each in loaded.items()} == {n: n for n in NAMES}
    samples = {name: each.spec.data.source.removeprefix("sample:") for name, each in loaded.items()}
    assert samples == {name: SAME_TABLE.get(name, name) for name in NAMES}
    assert {each.spec.storage for each in loaded.values()} == {"../../runs"}


def test_the_readme_of_the_jobs_names_every_example() -> None:
    readme = (SPECS.parent / "README.md").read_text()

    assert [name for name in NAMES if f"(specs/{name}.yaml)" not in readme] == []


def test_an_example_can_be_copied_away(tmp_path: Path) -> None:
    copied = shutil.copy(SPECS / "line.yaml", tmp_path / "mine.yaml")

    run = finish(Path(copied), "storage=runs", "training.epochs=2")

    assert run.folder.is_relative_to(tmp_path / "runs" / "line")


@pytest.mark.parametrize("name", REACHED)
def test_an_example_learns_its_table(example: Example, name: str) -> None:
    metric, least = REACHED[name]

    assert example(name).metrics["test"][metric] >= least


@pytest.mark.parametrize("name", MEDIAN_ACCURACY)
def test_the_median_accuracy_over_five_seeds(example: Example, name: str) -> None:
    runs = [example(name, f"seed={seed}", last="train") for seed in SEEDS]

    assert statistics.median(map(accuracy_of, runs)) >= MEDIAN_ACCURACY[name]


def accuracy_of(run: FinishedRun) -> float:
    """The share of test rows that the kept weights classify right."""
    numeric, codes, target = run.tensors("test")
    with torch.no_grad():
        predicted = run.learned_model()(numeric, codes).argmax(dim=1)
    return float((predicted == target).double().mean())


@pytest.mark.parametrize("name", LINES)
def test_the_median_line_over_five_seeds(example: Example, name: str) -> None:
    runs = [example(name, f"seed={seed}", last="train") for seed in SEEDS]

    (weight, bias), tolerance = LINES[name]
    learned = [run.weights() for run in runs]
    found = {
        key: statistics.median(each[f"linear.{key}"].item() for each in learned)
        for key in ("weight", "bias")
    }
    assert found == pytest.approx({"weight": weight, "bias": bias}, abs=tolerance)
