"""A plan says what a run then does, and writes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.cli.app import app
from batchtrain.cli.plan import show_plan
from batchtrain.spec.search import Distribution, SearchSpec
from batchtrain.tuning.outline import (
    BracketOutline,
    SearchOutline,
    ShapeOutline,
    distribution_words,
    most_epochs,
    outline_of,
)
from batchtrain.tuning.planning import plan_document, plan_run
from tests.support.builders import all_files, mixed_table, quantity_table, run, spec_for, storage_of

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layer = nn.Linear(inputs.num_numeric, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        return self.layer(numeric_BF)
"""

PLANNED: dict[str, Any] = {
    "rows": {"train": 40, "valid": 0, "test": 10, "dropped": 0, "input": 50},
    "task": "regression",
    "features": {"numeric": 1, "categorical": 0},
    "batches": {"rows": 40, "per_epoch": 1, "epochs": 1, "steps": 1, "lanes": 1},
    "model": {"kind": "linear", "parameters": 2, "trained": 2},
    "memory": {"rows": 400, "model": 16, "available": None, "kept": "resident"},
    "engine": {"name": "embedded", "why": "it is small"},
    "workers": {"count": 1, "why": "1 worker"},
    "device": "cpu",
    "compile": False,
    "time": {"seconds": None, "step_seconds": None, "source": "no estimate"},
    "notes": [],
    "published": ["prepare"],
}

ROOT = Path(__file__).resolve().parents[3]


def planned_json(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]), result.output


def test_the_plan_of_the_sample_is_what_its_run_then_does(tmp_path: Path) -> None:
    spec = tmp_path / "drug200.yaml"
    text = (ROOT / "jobs/specs/drug200.yaml").read_text().replace("../../runs", "./runs")
    spec.write_text(text.replace("epochs: 100", "epochs: 2"))
    code, document, output = planned_json(spec)
    assert code == 0, output
    assert all_files(tmp_path) == ["drug200.yaml"]
    result = CliRunner().invoke(app, ["train", str(spec), "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout.splitlines()[-1])
    folder = Path(made["run_dir"])
    prepared = json.loads((Path(made["prepared"]) / "manifest.json").read_text())["content"]
    trained = json.loads((folder / "model/manifest.json").read_text())["content"]
    weights = next(folder.rglob("model/**/parameters.json"))
    machine = json.loads((folder / "run.json").read_text())

    rows = {split: found["rows"] for split, found in prepared["splits"].items()}
    assert document["rows"] == {**rows, "dropped": 0, "input": sum(rows.values())}
    assert document["batches"]["rows"] == trained["batch_rows"]
    assert document["batches"]["steps"] == trained["steps"]
    assert document["batches"]["steps"] == 2 * document["batches"]["per_epoch"]
    counted = sum(each["count"] for each in json.loads(weights.read_text()))
    assert document["model"] == {"kind": "mlp", "parameters": counted, "trained": counted}
    # Adam: the weights, their gradients, two moments, and a step for each of them or for all.
    assert 16 * counted <= document["memory"]["model"] <= 16 * counted + 200
    assert document["features"] == {
        "numeric": prepared["num_numeric"],
        "categorical": len(prepared["cardinalities"]),
    }
    names = ("device", "rows", "compile", "workers")
    assert {name: machine[name] for name in names} == {
        "device": document["device"],
        "rows": document["memory"]["kept"],
        "compile": document["compile"],
        "workers": document["workers"]["count"],
    }
    assert document["time"]["seconds"] > 0
    assert "estimate" in document["time"]["source"]
    assert document["published"] == []
    assert planned_json(spec)[1]["published"] == ["prepare", "train"]


@pytest.mark.parametrize("is_mixed", [True, False])
def test_what_is_planned_of_the_rows_is_what_is_published_of_them(
    tmp_path: Path, is_mixed: bool
) -> None:
    if is_mixed:
        data = {"columns": {"dose": {"kind": "numeric", "missing": "drop"}}, "lanes": 4}
        loaded = spec_for(tmp_path, mixed_table(), data=data)
    else:
        table = quantity_table().set_column(0, "x0", [[1.0] * 90])
        data, model = {"weight": "x0"}, {"kind": "linear"}
        loaded = spec_for(tmp_path, table, target="y", data=data, model=model)
    planned = plan_run(loaded)
    assert not storage_of(loaded).root.exists()
    published = run(loaded, last="prepare").prepared
    assert isinstance(published, PreparedData)
    assert planned.content == published.content
    assert planned.task.plan.steps_per_epoch * 3 == planned.task.plan.last_step
    document = plan_document(planned)
    assert document["model"]["parameters"] > 0
    assert document["rows"]["dropped"] == (13 if is_mixed else 0)


def test_several_workers_are_told_of_and_ray_is_not_started(tmp_path: Path) -> None:
    import ray

    loaded = spec_for(
        tmp_path, mixed_table(), resources={"workers": 2}, data={"lanes": 3}, training={"epochs": 1}
    )
    document = plan_document(plan_run(loaded))
    assert document["workers"]["count"] == 2
    assert any("3 lanes" in note for note in document["notes"])
    assert not ray.is_initialized()


def test_a_wrong_spec_ends_with_2_and_its_problems(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(), data={"exclude": ["nobody"]})
    code, document, _ = planned_json(loaded.path)
    assert (code, document["error"]) == (2, "SpecError")
    assert CliRunner().invoke(app, ["plan", str(tmp_path / "none.yaml")]).exit_code == 2


@pytest.mark.parametrize("width", [80, 140])
def test_a_person_reads_rows_steps_memory_and_the_search(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    space = {"training.optimizer.lr": {"log_uniform": [1e-4, 0.1]}}
    search = {"space": space, "trials": 12, "scheduler": "asha", "metric": "valid_accuracy"}
    loaded = spec_for(tmp_path, mixed_table(gaps=False), search=search)
    result = CliRunner().invoke(app, ["plan", str(loaded.path)])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert max(map(len, lines)) <= width
    assert lines[0].split(maxsplit=1) == ["rows", "62 train, 9 valid, 19 test"]
    assert any(line.split()[:2] == ["steps", "12:"] for line in lines)
    assert "search     12 trials, random; max valid_accuracy" in lines
    assert "rungs      about 12 to epoch 1, 4 to epoch 3" in lines
    assert any("in this process" in line for line in lines)
    assert any("training.optimizer.lr: log_uniform 0.0001 to 0.1" in line for line in lines)
    assert any("asha (first_epochs 1, factor 4)" in line for line in lines)
    assert any(f"{12 * 3 * 62:,} rows at most" in line for line in lines)
    assert not storage_of(loaded).root.exists()


def test_rungs_and_packs_of_a_search_are_shown() -> None:
    outline = SearchOutline(
        algorithm="tpe",
        trials=64,
        space={"model.hidden": "one of 8, 8-4"},
        goals=(("valid_loss", "min"), ("parameters", "min")),
        scheduler="asha",
        settings={"factor": 4},
        brackets=(BracketOutline(rungs=(1, 4, 16), trials=(64, 16, 4)),),
        shapes=(
            ShapeOutline("hidden 8", trials=63, packs=2),
            ShapeOutline("", trials=1, why_alone="it has its own steps"),
        ),
        rows_at_most=123_456,
        rows_expected=45_000,
        where="trials run on Ray Tune, as asked",
        concurrent=3,
        notes=("a note",),
    )
    document = {**PLANNED, "search": {**outline.to_json(), "seconds": 90.0}}
    written = io.StringIO()
    show_plan(document, Console(file=written, width=100))
    said = [line.strip() for line in written.getvalue().splitlines()]
    wanted = [
        "steps      1: 1 epoch of 1 batch of 40 rows",
        "search     64 trials, tpe; min valid_loss, min parameters",
        "trials run on Ray Tune, as asked; 3 at a time",
        "scheduler  asha (factor 4)",
        "rungs      about 64 to epoch 1, 16 to epoch 4, 4 to epoch 16",
        "packs      63 trials with hidden 8 in 2 packs",
        "1 trial alone: it has its own steps",
        "trained    123,456 rows at most; about 45,000 are expected",
        "very roughly 1 min 30 s of training on this machine",
    ]
    assert [line for line in said if line in wanted] == wanted
    assert json.loads(json.dumps(document)) == json.loads(json.dumps(document, allow_nan=False))


def test_a_space_that_no_trial_can_have_is_found_before_anything_is_done(tmp_path: Path) -> None:
    space = {"training.optimizer.lr": {"uniform": [-1.0, 0.1]}}
    loaded = spec_for(tmp_path, mixed_table(gaps=False), search={"space": space})
    for command in ("plan", "check"):
        result = CliRunner().invoke(app, [command, str(loaded.path)])
        assert result.exit_code == 2, result.output
        assert "training.optimizer.lr" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a machine without one")
def test_a_device_that_is_elsewhere_is_planned_for_without_an_estimate(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(), resources={"device": "cuda"})
    document = plan_document(plan_run(loaded))
    assert document["device"] == "cuda"
    assert document["model"]["parameters"] > 0
    assert document["time"]["seconds"] is None
    assert "no CUDA device" in document["time"]["source"]


def test_a_class_of_the_users_is_planned_for_where_it_may_run(tmp_path: Path) -> None:
    (tmp_path / "planned_nets.py").write_text(NETWORK)
    model = {"kind": "custom", "target": "planned_nets:Net"}
    loaded = spec_for(tmp_path, mixed_table(gaps=False), model=model)
    document = plan_document(plan_run(loaded, allow_code=["planned_nets"]))
    assert document["model"]["parameters"] == document["features"]["numeric"] * 3 + 3
    refused, found, _ = planned_json(loaded.path)
    assert (refused, "planned_nets" in found["message"]) == (2, True)


def test_an_outline_counts_rows_by_the_longest_trial_and_the_budget() -> None:
    lr = {"training.optimizer.lr": Distribution(uniform=(0.1, 0.2))}
    epochs = {"training.epochs": Distribution(choice=(5, 20))}
    assert most_epochs(SearchSpec(space=lr), 7) == 7
    assert most_epochs(SearchSpec(space={**lr, **epochs}), 7) == 20
    assert most_epochs(SearchSpec(space={"training.epochs": Distribution(int=(2, 9))}), 70) == 9
    search = SearchSpec(space=lr, trials=10)
    assert outline_of(search, epochs=7, epoch_rows=100).rows_at_most == 7000
    limited = search.model_copy(update={"max_rows": 500})
    assert outline_of(limited, epochs=7, epoch_rows=100).rows_at_most == 500
    assert outline_of(search, epochs=7, epoch_rows=100, trials=3).trials == 3


def test_a_distribution_is_told_with_its_condition() -> None:
    either = Distribution(uniform=(0.1, 0.9), when={"model.kind": ["mlp", "resnet"], "a.b": 1})
    words = "uniform 0.1 to 0.9, where model.kind is mlp or resnet and a.b is 1"
    assert distribution_words(either) == words
