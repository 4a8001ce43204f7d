"""`batchtrain tune` end to end, in this process: what is found, and what is left behind."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.tuning.loop import SearchLoop
from tests.support.builders import mixed_table, quantity_table, write_table
from tests.support.runs import SPECS, read_json

LR, DROPOUT = "training.optimizer.lr", "model.dropout"
SPACE = {LR: {"log_uniform": [1e-3, 1e-1]}, DROPOUT: {"uniform": [0, 0.5]}}
EPOCHS = 4
ROWS = 62
"""Of the table those that are trained with."""

BROKEN = '''\
"""A network that refuses some of its values."""

from torch import nn


class Picky(nn.Module):
    def __init__(self, inputs, width, mood):
        super().__init__()
        self.mood = mood
        if mood == "refuse":
            raise ValueError("not with me\\nand not in a second line")
        self.layers = nn.Sequential(nn.Linear(inputs.num_numeric, width), nn.Tanh())
        self.last = nn.Linear(width, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        if self.mood == "break":
            raise RuntimeError("broken on the way")
        return self.last(self.layers(numeric_BF))
'''


@dataclass(frozen=True)
class Told:
    """What a command said and left."""

    code: int
    output: str
    document: dict[str, Any]
    folder: Path

    @property
    def table(self) -> dict[str, Any]:
        found = read_json(self.folder / "table.json")
        assert isinstance(found, dict)
        return found

    @property
    def trials(self) -> list[dict[str, Any]]:
        return list(self.table["trials"])

    @property
    def seen(self) -> dict[str, bytes]:
        """What people look at, and which units were done."""
        names = ("table.json", "search.html", "best.yaml")
        there = {name: (self.folder / name).read_bytes() for name in names}
        units = sorted((self.folder / "units").iterdir())
        return there | {each.name: each.read_bytes() for each in units}


Tune = Callable[..., Told]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a storage that all searches share, and with it the prepared data."""
    folder = tmp_path_factory.mktemp("tune")
    write_table(folder / "rows.parquet", mixed_table(90))
    (folder / "picky_networks.py").write_text(BROKEN)
    return folder


def invoke(*arguments: str | Path) -> tuple[int, str, dict[str, Any]]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stdout.splitlines()
    document = json.loads(lines[-1]) if "--json" in arguments else {}
    return result.exit_code, result.output, document


def write_spec(place: Path, name: str, search: Mapping[str, Any] | None, **sections: Any) -> Path:
    document = {
        "version": 1,
        "name": name,
        "data": {"source": "rows.parquet", "target": "label"},
        "model": {"kind": "mlp", "hidden": [8]},
        "tracking": {"tensorboard": False},
        "storage": "runs",
        **sections,
        "training": {"epochs": EPOCHS, "batch_size": 16, **sections.get("training", {})},
    }
    if search is not None:
        document["search"] = {"trials": 8, **search}
    path = place / f"{name}.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def tune(place: Path) -> Tune:
    """Write a spec and search with it."""

    def run(name: str, search: Mapping[str, Any] | None, *words: str, **sections: Any) -> Told:
        spec = write_spec(place, name, search, **sections)
        code, output, document = invoke("tune", spec, "--json", *words)
        folders = sorted((place / "runs" / name).glob("search-*"))
        assert len(folders) <= 1
        return Told(code, output, document, folders[0] if folders else place)

    return run


SEARCHES: dict[str, dict[str, Any]] = {
    "random": {"space": SPACE},
    "grid": {"space": SPACE, "algorithm": "grid", "points": 3, "trials": None},
    "tpe": {"space": SPACE, "algorithm": "tpe", "trials": 18},
    "asha": {"space": SPACE, "scheduler": {"kind": "asha", "factor": 2}},
    "hyperband": {"space": SPACE, "scheduler": {"kind": "hyperband", "factor": 2}},
    "pbt": {"space": SPACE, "scheduler": {"kind": "pbt", "interval_epochs": 1}},
}


def best_by_hand(trials: list[dict[str, Any]], metric: str = "valid_loss") -> int:
    able = [each for each in trials if each["state"] == "finished" and each["scores"]]
    best = min(able, key=lambda each: (each["scores"][metric], each["number"]))
    return int(best["number"])


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_ends_with_a_table_and_a_best_spec_and_is_not_done_again(
    tune: Tune, kind: str
) -> None:
    told = tune(kind, SEARCHES[kind])
    assert told.code == 0, told.output
    trials, table = told.trials, told.table
    assert len(trials) == {"grid": 9, "tpe": 18}.get(kind, 8)
    assert told.document["trials"] == len(trials)
    assert table["packed"]["trials"] == len(trials)
    assert {each["state"] for each in trials} <= {"finished", "stopped"}
    assert ("stopped" in {each["state"] for each in trials}) == (kind in {"asha", "hyperband"})
    assert table["best"] == best_by_hand(trials) == told.document["best"]["number"]
    # What a copy took over counts as well.
    assert all(each["rows"] == ROWS * each["epochs"] for each in trials)
    assert table["rows"] == sum(each["rows"] for each in trials)
    if kind == "pbt":
        assert any(each["parent"] != each["number"] for each in trials)
    else:
        assert len({json.dumps(each["values"]) for each in trials}) == len(trials)

    # The run of the best spec is the trial once more, by itself.
    score = trials[table["best"]]["scores"]["valid_loss"]
    assert table["best_run"]["metrics"]["valid_loss"] == pytest.approx(score, rel=1e-3)

    before = told.seen
    again = tune(kind, SEARCHES[kind])
    assert again.code == 0, again.output
    assert again.seen == before
    code, output, document = invoke("run", told.folder / "best.yaml", "--json")
    assert code == 0, output
    assert {each["status"] for each in document["stages"]} == {"reused"}
    assert document["run"] == told.document["run"]["run"]


def test_packed_and_unpacked_trials_agree(tune: Tune) -> None:
    space = {**SPACE, "seed": {"choice": [1, 2, 3]}}
    search = {"space": space, "scheduler": {"kind": "asha", "factor": 2}, "export": False}
    data = {"source": "rows.parquet", "target": "label", "split": {"kind": "random", "seed": 4}}
    packed = tune("packed", search, data=data)
    alone = tune("alone", {**search, "pack": 1}, data=data)
    assert (packed.code, alone.code) == (0, 0), alone.output
    assert len({each["values"]["seed"] for each in packed.trials}) == 3
    assert packed.table["packed"]["packs"] == 1
    assert alone.table["packed"]["why_not"] == {"`search.pack` is 1": 8}
    assert alone.table["best"] == packed.table["best"]
    for one, other in zip(packed.trials, alone.trials, strict=True):
        same = ("values", "state", "epochs", "best_epoch", "rows", "ended_by")
        assert [one[name] for name in same] == [other[name] for name in same]
        assert one["rungs"].keys() == other["rungs"].keys()
        for epochs, scores in one["rungs"].items():
            assert scores == pytest.approx(other["rungs"][epochs], rel=1e-3)
    # They are ordinary runs, so that one of those that ended is found by whoever asks for it.
    code, _, document = invoke("run", alone.folder / "best.yaml", "--json")
    assert code == 0
    assert [each["status"] for each in document["stages"]][:2] == ["reused", "reused"]


@pytest.mark.parametrize("pack", ["auto", 1])
def test_r38_a_trial_that_diverges_has_failed_and_is_never_best(tune: Tune, pack: Any) -> None:
    space = {LR: {"choice": [0.01, 1e6, 0.02]}}
    told = tune(
        f"diverging-{pack}",
        {"space": space, "algorithm": "grid", "trials": None, "pack": pack, "export": False},
        training={"optimizer": {"kind": "sgd"}},
    )
    assert told.code == 0, told.output
    assert [each["state"] for each in told.trials] == ["finished", "failed", "finished"]
    assert "finite" in told.trials[1]["error"]
    assert told.trials[1]["scores"] == {}
    assert told.table["best"] == best_by_hand(told.trials) != 1


def test_a_network_that_breaks_is_a_trial_that_failed(tune: Tune) -> None:
    space = {
        "model.params.mood": {"choice": ["refuse", "fine", "break"]},
        "model.params.width": {"choice": [4]},
    }
    told = tune(
        "picky",
        {"space": space, "algorithm": "grid", "trials": None, "export": False},
        "--allow-code=picky_networks",
        model={
            "kind": "custom",
            "target": "picky_networks:Picky",
            "params": {"mood": "fine", "width": 4},
        },
    )
    assert told.code == 0, told.output
    assert [each["state"] for each in told.trials] == ["failed", "finished", "failed"]
    assert "not with me" in told.trials[0]["error"]
    assert "broken on the way" in told.trials[2]["error"]
    assert "\n" not in told.trials[0]["error"]
    assert told.table["best"] == 1


def test_r38_where_all_fail_there_is_a_table_of_it(tune: Tune) -> None:
    search = {"space": {LR: {"choice": [1e5, 1e6]}}, "algorithm": "grid", "trials": None}
    told = tune("hopeless", search, training={"optimizer": {"kind": "sgd"}})
    assert told.code == 1
    assert told.document["error"] == "TrainingError"
    assert "finite" in told.document["message"]
    assert str(told.folder / "table.json") in told.document["message"]
    assert told.table["best"] is None
    assert {each["state"] for each in told.trials} == {"failed"}
    assert "finite" in (told.folder / "search.html").read_text()
    assert not (told.folder / "best.yaml").exists()


def test_r38_a_metric_that_no_trial_has_is_said_with_a_table_of_it(tune: Tune, place: Path) -> None:
    # The targets of the validation split are all alike, so that there is nothing to explain.
    table = quantity_table(90)
    targets = [1.0 if 50 <= row < 75 else value for row, value in enumerate(table["y"].to_pylist())]
    write_table(
        place / "flat.parquet", table.set_column(table.num_columns - 1, "y", pa.array(targets))
    )
    split = {"kind": "ordered", "fractions": {"train": 0.6, "valid": 0.2, "test": 0.2}}
    told = tune(
        "flat",
        {"space": SPACE, "metric": "valid_r2"},
        data={"source": "flat.parquet", "target": "y", "split": split},
    )
    assert told.code == 1
    assert "`valid_r2` is undefined" in told.document["message"]
    assert told.table["best"] is None
    assert {each["scores"]["valid_r2"] for each in told.trials} == {None}
    assert (told.folder / "search.html").exists()


def test_shapes_are_packed_apart_and_goals_make_a_front(tune: Tune) -> None:
    space = {
        "model.hidden": {"choice": [[4], [16]]},
        "training.optimizer.kind": {"choice": ["sgd", "adamw", "rmsprop"]},
        "training.optimizer.lr": {"log_uniform": [1e-3, 1e-1]},
        "training.optimizer.momentum": {
            "uniform": [0, 0.9],
            "when": {"training.optimizer.kind": "sgd"},
        },
    }
    goals = [{"metric": "valid_loss"}, {"metric": "parameters"}]
    told = tune("shapes", {"space": space, "metric": goals, "trials": 12, "export": False})
    assert told.code == 0, told.output
    trials, table = told.trials, told.table
    for each in trials:
        is_sgd = each["values"]["training.optimizer.kind"] == "sgd"
        assert ("training.optimizer.momentum" in each["values"]) == is_sgd
        is_packed = each["values"]["training.optimizer.kind"] != "rmsprop"
        assert bool(each["pack"]) == is_packed
    groups = {
        json.dumps([each["values"]["model.hidden"], each["values"]["training.optimizer.kind"]])
        for each in trials
        if each["pack"]
    }
    assert table["packed"]["packs"] == len(groups) >= 2
    assert table["packed"]["alone"] == sum(not each["pack"] for each in trials) > 0

    small, large = (
        {e["scores"]["parameters"] for e in trials if e["values"]["model.hidden"] == w}
        for w in ([4], [16])
    )
    assert len(small) == len(large) == 1
    assert min(small) < min(large)
    scores = {e["number"]: (e["scores"]["valid_loss"], e["scores"]["parameters"]) for e in trials}
    front = [
        number
        for number, (loss, size) in scores.items()
        if not any(a <= loss and b <= size and (a, b) != (loss, size) for a, b in scores.values())
    ]
    assert table["front"] == front
    assert table["best"] == best_by_hand(trials)


def test_rows_and_time_end_a_search_and_more_of_them_go_on(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"space": SPACE, "pack": 1, "export": False}
    few = tune("budget", {**search, "max_rows": ROWS * EPOCHS * 3})
    assert few.code == 0, few.output
    assert [each["state"] for each in few.trials] == ["finished"] * 3

    # Nobody waits here: each look at the clock is a second later.
    clock = count()
    with monkeypatch.context() as patch:
        patch.setattr(SearchLoop, "_seconds", lambda self: float(next(clock)))
        late = tune("budget", {**search, "max_time": 1})
    assert late.code == 0, late.output
    states = [each["state"] for each in late.trials]
    done = states.count("finished")
    assert done == 4  # short trials are handed out in fours
    assert states == ["finished"] * done + ["skipped"] * (8 - done)

    whole = tune("budget", search)
    assert whole.code == 0, whole.output
    assert [each["state"] for each in whole.trials] == ["finished"] * 8
    assert whole.trials[:done] == late.trials[:done]


def test_what_cannot_be_searched_is_said_before_anything_is_done(tune: Tune, place: Path) -> None:
    told = tune("none", None)
    assert told.code == 2
    assert [each["key"] for each in told.document["problems"]] == ["search"]
    wrong = tune("wrong", {"space": {LR: {"uniform": [-1, 1]}}})
    assert wrong.code == 2
    assert wrong.document["problems"][0]["key"] == f"search.space.{LR}"
    assert not list(place.glob("runs/none/*")) + list(place.glob("runs/wrong/*"))


def test_a_job_searches_and_what_it_prints_is_for_people(
    place: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"space": SPACE, "trials": 2, "export": False}
    spec = write_spec(place, "job", search)
    words = ["tune.py", "--spec", str(spec), "--set", "engine=embedded"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SPECS.parent / "tune.py"), run_name="__main__")
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    told = tune("job", search)
    assert told.code == 0
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines() if " /" in line)
    assert lines == {
        "table": str(told.folder / "table.json"),
        "page": str(told.folder / "search.html"),
        "spec": str(told.folder / "best.yaml"),
    }
    document = yaml.safe_load((told.folder / "best.yaml").read_text())
    assert "search" not in document
    assert document["training"]["optimizer"]["lr"] == told.document["best"]["values"][LR]
