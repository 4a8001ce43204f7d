"""The page of a search: whole for every table, the same bytes each time, and true to the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from batchtrain.reporting.importance import importance
from batchtrain.reporting.search import STATES, render_search
from batchtrain.reporting.search_axes import KeyAxis, key_axes, score_axis
from batchtrain.reporting.search_content import GoalRow, SearchContent
from batchtrain.reporting.search_words import short_keys
from batchtrain.reporting.wording import visible
from batchtrain.tuning.trials import TrialState
from tests.support.figures import cells, figure_of, markers, texts

Parse = Callable[[str], Any]

LR, HIDDEN, KIND, GAMMA = "training.optimizer.lr", "model.hidden", "schedule.kind", "schedule.gamma"
SPACE = {
    LR: {"log_uniform": [1e-4, 0.1], "choice": None, "when": {}},
    HIDDEN: {"choice": [[8], [8, 4]]},
    KIND: {"choice": ["step", "cosine"]},
    GAMMA: {"uniform": [0.1, 0.9], "when": {KIND: "step"}},
}


def trial(number: int, *, rungs: bool = False, **more: Any) -> dict[str, Any]:
    """One of a search in which the learning rate decides, best at 0.01, and nothing else does."""
    random = np.random.default_rng(number)
    lr = float(10 ** random.uniform(-4, -1))
    kind = ("step", "cosine")[number % 2]
    values = {LR: lr, HIDDEN: [[8], [8, 4]][number // 2 % 2], KIND: kind}
    if kind == "step":
        values[GAMMA] = float(random.uniform(0.1, 0.9))
    loss = 0.2 + 0.3 * abs(math.log10(lr) + 2)
    found = {
        "number": number,
        "state": "finished",
        "values": values,
        "epochs": 16,
        "best_epoch": 12,
        "scores": {"valid_loss": loss},
        "rungs": {},
        "rows": 1600,
    }
    if rungs:
        is_stopped = number % 4 != 0
        reached = (4,) if is_stopped else (4, 16)
        found["rungs"] = {str(epochs): {"valid_loss": loss + 4 / epochs} for epochs in reached}
        found["scores"] = found["rungs"][str(reached[-1])]
        found |= {"epochs": reached[-1], "state": "stopped" if is_stopped else "finished"}
    return {**found, **more}


def table(trials: list[dict[str, Any]], /, **more: Any) -> dict[str, Any]:
    scored = [
        (each["scores"]["valid_loss"], each["number"])
        for each in trials
        if each["state"] != "failed" and each["scores"].get("valid_loss") is not None
    ]
    return {
        "name": "small",
        "goals": [{"metric": "valid_loss", "mode": "min"}],
        "paths": list(SPACE),
        "distributions": SPACE,
        "algorithm": "random",
        "scheduler": {"kind": "asha", "first_epochs": 4, "factor": 4},
        "trials": trials,
        "best": min(scored)[1] if scored else None,
        "front": [],
        "packed": {"packs": 1, "trials": len(trials), "alone": 0, "why_not": {}},
        "rows": sum(each["rows"] for each in trials),
        "best_run": None,
        **more,
    }


FAILED = {"state": "failed", "scores": {}, "best_epoch": 0, "epochs": 0, "error": "it diverged"}
NO_SCORE = {"scores": {"valid_loss": None}}

ODD = {
    "none": [],
    "one": [trial(0)],
    "one failed": [trial(0, **FAILED)],
    "all failed": [trial(number, **FAILED) for number in range(9)],
    "no scores": [trial(number, **NO_SCORE) for number in range(9)],
    "not over": [
        trial(0, state="paused"),
        trial(1, state="running", values={}, **NO_SCORE),
        trial(2, state="waiting", values={}, scores={}),
    ],
    "equal": [trial(number, scores={"valid_loss": 0.5}) for number in range(9)],
    "zero": [trial(number, scores={"valid_loss": 0.0}) for number in range(3)],
    "huge": [trial(number, scores={"valid_loss": 10.0 ** (35 * number)}) for number in range(9)],
    "no values": [trial(number, values={}) for number in range(9)],
    "strange values": [
        trial(0, values={LR: None, HIDDEN: {"a": [1, 2.5]}, KIND: True}),
        trial(1, values={LR: "auto", HIDDEN: [], KIND: False, GAMMA: 1e300}),
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_every_table_has_a_page(name: str, parse: Parse) -> None:
    document = table(ODD[name])
    text = parse(render_search(document)).text
    assert "None" not in text
    assert not re.search(r"\bnan\b", text)
    assert f"Trials{len(ODD[name])}" in re.sub(r"\s", "", text)
    assert ("no trial has a score" in text) == (document["best"] is None)


def test_a_search_of_a_usual_size_shows_all_that_there_is(parse: Parse) -> None:
    trials = [trial(number, rungs=True, pack=f"p{number % 2}") for number in range(32)]
    for number in (5, 7):
        trials[number] |= FAILED
    trials[6] |= {"state": "finished", "scores": {"valid_loss": 1e6}}
    run = {"links": {"report": "../a/report.html"}, "metrics": {"test_accuracy": 0.875}}
    document = table(trials, best_run=run)
    page = render_search(document)
    assert render_search(document) == page
    found = parse(page)
    best = next(each for each in trials if each["number"] == document["best"])
    assert f"best: trial {best['number']}" in found.text
    assert found.elements["a", ("href",)] == 1
    assert "0.8750" in found.text
    assert "asha (first_epochs 4, factor 4)" in found.text
    assert "1 of the scores is far worse" in found.text

    history = figure_of(page, "Score of each trial")
    assert "best so far" in texts(history)
    assert markers(history, "#cc3311") == 2  # those that failed
    rows = cells(page, "Trials")
    assert len(rows) == 32
    assert rows[0][0] == str(best["number"])
    order = [(row[1] != "finished", float(row[3].replace(",", ""))) for row in rows[:-2]]
    assert order == sorted(order)
    assert [row[:4] for row in rows[-2:]] == [[number, "failed", "0", "-"] for number in "57"]
    assert rows[-1][-1] == "it diverged"
    rungs = cells(page, "Rungs")
    reached = [sum(str(epochs) in each["rungs"] for each in trials) for epochs in (4, 16)]
    assert [row[:2] for row in rungs] == [["4", str(reached[0])], ["16", str(reached[1])]]
    assert ["5, 7", "it diverged"] in cells(page, "What failed")


def test_the_head_of_the_page_has_every_state_that_a_trial_may_have() -> None:
    assert set(STATES) == set(get_args(TrialState))


def test_trials_that_were_stopped_stand_behind_those_that_went_to_the_end() -> None:
    scores = {0: 0.3, 1: 0.1, 2: 0.2, 3: None}
    trials = [
        trial(number, state="stopped" if number == 1 else "finished", scores={"valid_loss": score})
        for number, score in scores.items()
    ]
    content = SearchContent.from_json(table([*trials, trial(4, **FAILED)]))
    assert [each.number for each in content.ranked] == [2, 0, 1, 3, 4]


def test_the_importance_finds_the_key_that_decides_and_says_how_it_compared() -> None:
    content = SearchContent.from_json(table([trial(number, rungs=True) for number in range(60)]))
    found = importance(content, key_axes(content))
    assert next(iter(found.shares)) == LR
    assert found.shares[LR] > 0.9
    assert found.explained > 0.5
    assert (found.trials, found.epochs) == (60, 4)  # not each at the end that it came to
    at_end = SearchContent.from_json(table([trial(number) for number in range(60)]))
    assert importance(at_end, key_axes(at_end)).epochs is None


def test_the_importance_of_noise_is_told_to_be_none() -> None:
    random = np.random.default_rng(1)
    trials = [trial(n, scores={"valid_loss": float(random.random())}) for n in range(40)]
    page = render_search(table(trials))
    assert "read nothing into the shares" in page


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ([trial(n) for n in range(7)], "It takes 8 trials"),
        (ODD["equal"], "hardly differ"),
        ([trial(n, values={LR: 0.1}) for n in range(9)], "fewer than two keys"),
    ],
    ids=["few", "equal", "one key"],
)
def test_where_there_is_no_importance_a_sentence_says_why(
    trials: list[dict[str, Any]], why: str
) -> None:
    assert why in render_search(table(trials))


def test_a_population_is_not_judged_by_its_last_values() -> None:
    trials = [{**trial(number), "parent": number // 2} for number in range(9)]
    page = render_search(table(trials, scheduler={"kind": "pbt", "interval_epochs": 5}))
    assert "change while it trains" in page
    assert "permutation importance" not in page
    assert "in force last" in page
    assert "went on as a copy of trial 4" in page
    assert "went on as a copy of trial 0" in page
    assert page.count("went on as a copy of") == 8


def test_two_goals_have_a_front(parse: Parse) -> None:
    pairs = [(0.5, 10.0), (0.4, 20.0), (0.45, 30.0), (0.3, 40.0), (0.6, 10.0)]
    trials = [
        trial(n, scores={"valid_accuracy": a, "parameters": p}) for n, (a, p) in enumerate(pairs)
    ]
    goals = [
        {"metric": "valid_accuracy", "mode": "max"},
        {"metric": "parameters", "mode": "min"},
    ]
    document = table([], trials=trials, goals=goals, best=4, front=[4], rows=0)
    page = render_search(document)
    assert [row[:3] for row in cells(page, "Pareto front")] == [["4", "0.6000", "10"]]
    figure = figure_of(page, "valid_accuracy and parameters")
    assert "Pareto front" in texts(figure)
    assert markers(figure, "#9aa5b1") == 4
    assert "Pareto front" not in render_search(table([trial(0), trial(1)]))
    assert [row[0] for row in cells(page, "Trials")] == ["4", "0", "2", "1", "3"]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "</style></svg><h1>gone</h1>",
    "{{7*7}} {% include 'x' %}",
    "a\x00\x1b[31mb\u202ec\n",
]


def page_of(text: str) -> str:
    """A page with a text wherever one may stand."""
    values = {LR: text, HIDDEN: [text], text: text}
    trials = [trial(n, rungs=True, values=values, pack=text) for n in range(4)]
    trials.append(trial(4, **{**FAILED, "error": text, "values": values}))
    packed = {"packs": 1, "trials": 4, "alone": 1, "why_not": {text: 1}}
    run = {"links": {text: text}, "metrics": {text: 1.0}}
    more = {"name": text, "paths": [LR, HIDDEN, text], "packed": packed, "best_run": run}
    return render_search(table(trials, algorithm=text, scheduler=text, **more))


@pytest.fixture(scope="module")
def calm_page(parse: Parse) -> Any:
    return parse(page_of("m m" * 9))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_x14_no_text_of_a_table_becomes_an_element(text: str, parse: Parse, calm_page: Any) -> None:
    page = parse(page_of(text))
    assert page.elements == calm_page.elements
    assert page.text.count(visible(text)) >= 8
    assert not {tag for tag, _ in page.elements} & {"script", "img", "a", "iframe", "link"}


def test_x14_only_a_path_beside_the_page_is_a_link(parse: Parse) -> None:
    targets = ["javascript:alert(1)", "//evil.example/x", "/root", "https://x.y", "a\tb", ""]
    run = {"links": {str(n): target for n, target in enumerate(targets)}, "metrics": {}}
    page = parse(render_search(table([trial(0)], best_run=run)))
    assert page.elements["a", ("href",)] == 0
    assert "javascript:alert(1)" in page.text


def test_five_hundred_trials_have_a_page_of_some_hundred_kilobytes(parse: Parse) -> None:
    page = render_search(table([trial(number, rungs=True) for number in range(500)]))
    assert len(page) < 900_000
    assert len(cells(page, "Trials")) == 300
    assert "The best 300 of 500 trials" in parse(page).text


def test_a_value_lies_on_its_axis_by_the_scale_of_its_distribution() -> None:
    content = SearchContent.from_json(table([trial(n) for n in range(4)]))
    lr, hidden, kind, gamma = key_axes(content)
    assert lr.place({LR: 0.01}) == pytest.approx(2 / 3)
    assert [lr.place({LR: x}) for x in (1e-4, 0.1)] == [0.0, 1.0]
    assert lr.ticks[0][1] == "0.0001"
    assert [hidden.place({HIDDEN: x}) for x in ([8], [8, 4])] == [0.0, 1.0]
    assert kind.ticks == [(0.0, "step"), (1.0, "cosine")]
    assert gamma.place({KIND: "cosine"}) is None
    assert gamma.place({GAMMA: 0.5}) == pytest.approx(0.5)
    close = {LR: {"choice": [0.123456, 0.123457]}}
    alike = [trial(n, values={LR: close[LR]["choice"][n]}) for n in range(2)]
    (axis,) = key_axes(SearchContent.from_json(table(alike, distributions=close)))
    assert [axis.place(each["values"]) for each in alike] == [0.0, 1.0]
    beyond = SearchContent.from_json(table([trial(0, values={LR: 0.2})]))
    assert key_axes(beyond)[0].place({LR: 0.2}) == 1.0  # population-based training left the range
    assert KeyAxis("a", "a", low=1.0, high=1.0).place({"a": 1.0}) == 0.5


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_axis_of_scores_is_that_of_the_better_ones(mode: str) -> None:
    sign = 1 if mode == "min" else -1
    scores = [sign * (1 + 0.01 * n) for n in range(30)]
    axis = score_axis(GoalRow("m", mode), [*scores, sign * 400.0])
    assert axis.drawn(sign * 400.0) == axis.worst
    assert axis.is_beyond(sign * 400.0)
    assert not any(axis.is_beyond(score) for score in scores)
    places = [axis.place(score) for score in scores]
    assert max(places) - min(places) > 0.2
    assert math.isnan(axis.drawn(None))


def test_a_key_is_called_by_its_shortest_ending_of_its_own() -> None:
    assert short_keys([LR, HIDDEN, KIND, GAMMA, "loss.kind", "kind"]) == {
        LR: "lr",
        HIDDEN: "hidden",
        KIND: "schedule.kind",
        GAMMA: "gamma",
        "loss.kind": "loss.kind",
        "kind": "kind",
    }
