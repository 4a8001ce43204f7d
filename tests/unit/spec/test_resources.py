"""What a spec may ask for where it runs: workers, GPUs, rows, the engine; and how many retries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.spec.run import CANONICAL_GROUPS, ResourcesSpec, RetriesSpec
from batchtrain.spec.schema import json_schema
from tests.support.builders import layout_for, mixed_table, spec_for

HEAD = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"

MINIMAL = {"version": 1, "name": "tiny", "data": {"source": "a.csv", "target": "y"}}


def parsed(added: str, *overrides: str) -> LoadedSpec:
    return parse_spec(HEAD + added, "spec.yaml", overrides)


def problems_in(added: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        parsed(added)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_what_is_not_said_suits_a_laptop_and_a_cluster() -> None:
    spec = parsed("").spec
    assert spec.engine == "auto"
    assert spec.resources == ResourcesSpec(
        workers="auto", cpus_per_worker=1, gpus_per_worker="auto", device="auto", rows="auto"
    )
    assert spec.retries == RetriesSpec(lost_worker=3, out_of_memory=1)


@pytest.mark.parametrize("workers", ["auto", 1, 2, 3, 8, 4096])
@pytest.mark.parametrize("engine", ["auto", "ray"])
def test_any_number_of_workers_may_be_asked_for(workers: int | str, engine: str) -> None:
    spec = parsed(f"engine: {engine}\nresources: {{workers: {workers}}}").spec
    assert (spec.engine, spec.resources.workers) == (engine, workers)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("gpus_per_worker", ["auto", 0, 1]),
        ("device", ["auto", "cpu", "cuda"]),
        ("rows", ["auto", "resident", "streaming"]),
        ("cpus_per_worker", [1, 2, 1024]),
    ],
)
def test_what_a_worker_may_have(key: str, values: list[Any]) -> None:
    for value in values:
        spec = parsed("", f"resources.{key}={value}").spec
        assert getattr(spec.resources, key) == value


@pytest.mark.parametrize(
    ("added", "key", "words"),
    [
        ("resources: {workers: 0}", "resources.workers", "found 0"),
        ("resources: {workers: -1}", "resources.workers", "found -1"),
        ("resources: {workers: 4097}", "resources.workers", "found 4097"),
        ("resources: {workers: 1.5}", "resources.workers", "found 1.5"),
        ("resources: {workers: true}", "resources.workers", "found true"),
        ("resources: {workers: '2'}", "resources.workers", "Remove the quotes"),
        ("resources: {workers: Auto}", "resources.workers", "found 'Auto'"),
        ("resources: {workers: }", "resources.workers", "found nothing"),
        ("resources: {workers: [1, 4]}", "resources.workers", "found a list"),
        ("resources: {gpus_per_worker: 2}", "resources.gpus_per_worker", "Use auto, 0 or 1"),
        ("resources: {gpus_per_worker: 0.5}", "resources.gpus_per_worker", "found 0.5"),
        ("resources: {cpus_per_worker: 0}", "resources.cpus_per_worker", "found 0"),
        ("resources: {cpus_per_worker: auto}", "resources.cpus_per_worker", "found 'auto'"),
        ("resources: {rows: stream}", "resources.rows", "streaming"),
        ("resources: {device: gpu}", "resources.device", "found 'gpu'"),
        ("resources: {worker: 2}", "resources.worker", "Did you mean `resources.workers`?"),
        ("resources: {num_gpus: 2}", "resources.num_gpus", "gpus_per_worker"),
        ("retries: {lost_worker: -1}", "retries.lost_worker", "found -1"),
        ("retries: {lost_worker: 1001}", "retries.lost_worker", "found 1001"),
        ("retries: {lost_worker: auto}", "retries.lost_worker", "found 'auto'"),
        ("retries: {out_of_memory: 1.0}", "retries.out_of_memory", "Write 1"),
        ("retries: {oom: 1}", "retries.oom", "out_of_memory"),
        ("retries: 3", "retries", "expected a section"),
        ("engine: rya", "engine", "Did you mean 'ray'?"),
        ("engine: true", "engine", "found true"),
    ],
)
def test_j02_what_cannot_be_is_named_at_its_place(added: str, key: str, words: str) -> None:
    (problem,) = problems_in(added)
    assert problem.key == key
    assert problem.where.startswith("spec.yaml:6:")
    assert words in f"{problem.message} {problem.hint}"


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ("engine: embedded\nresources: {workers: 2}", ["resources.workers", "engine: embedded"]),
        (
            f"determinism: canonical\nresources: {{workers: {CANONICAL_GROUPS + 1}}}",
            ["resources.workers", "determinism: canonical", str(CANONICAL_GROUPS)],
        ),
        (
            "resources: {gpus_per_worker: 1, device: cpu}",
            ["resources.gpus_per_worker", "resources.device"],
        ),
    ],
)
def test_j02_what_contradicts_each_other_is_refused_before_a_cluster_is_touched(
    added: str, words: list[str]
) -> None:
    (problem,) = problems_in(added)
    for word in words:
        assert word in str(problem)


def test_j02_all_contradictions_are_said_at_once() -> None:
    said = "\n".join(
        map(
            str,
            problems_in(
                "engine: embedded\ndeterminism: canonical\n"
                "resources: {workers: 9, gpus_per_worker: 1, device: cpu}"
            ),
        )
    )
    for words in ("engine: embedded", "determinism: canonical", "gpus_per_worker"):
        assert words in said


@pytest.mark.parametrize(
    "added",
    [
        "engine: embedded\nresources: {workers: 1}",
        "engine: embedded\nresources: {workers: auto}",
        f"determinism: canonical\nresources: {{workers: {CANONICAL_GROUPS}}}",
        "determinism: canonical\nresources: {workers: auto}",
        "determinism: order\nresources: {workers: 9}",
        "resources: {gpus_per_worker: 0, device: cuda}",
        "resources: {gpus_per_worker: 1, device: cuda}",
        "resources: {gpus_per_worker: 0, device: cpu}",
        "retries: {lost_worker: 0, out_of_memory: 0}",
    ],
)
def test_what_only_looks_odd_is_taken(added: str) -> None:
    assert parsed(added).spec


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "engine": st.sampled_from(["auto", "ray"]),
        "retries": st.fixed_dictionaries(
            {},
            optional={
                "lost_worker": st.integers(-2, 1002),
                "out_of_memory": st.one_of(st.integers(0, 3), st.none(), st.booleans()),
            },
        ),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "workers": st.one_of(st.integers(-1, 5000), st.sampled_from(["auto", "2", 1.5])),
                "rows": st.sampled_from(["auto", "resident", "streaming", "disk"]),
                "gpus_per_worker": st.sampled_from(["auto", 0, 1, 2, True]),
            },
        ),
    },
)


@settings(max_examples=50)
@given(SECTIONS)
def test_an_editor_sees_what_the_reader_sees(sections: Mapping[str, Any]) -> None:
    document = {**MINIMAL, **sections}
    try:
        parse_spec(json.dumps(document), "spec.yaml")
    except SpecError:
        is_good = False
    else:
        is_good = True
    assert Draft202012Validator(json_schema()).is_valid(document) is is_good


def test_p1_nothing_of_this_makes_another_model(tmp_path: Path) -> None:
    table = mixed_table(60)
    sections: list[dict[str, Any]] = [
        {},
        {"engine": "ray"},
        {"resources": {"workers": 3, "rows": "streaming", "cpus_per_worker": 2}},
        {"retries": {"lost_worker": 0}},
    ]
    found = {layout_for(spec_for(tmp_path, table, **more)).run_id for more in sections}
    assert len(found) == 1
