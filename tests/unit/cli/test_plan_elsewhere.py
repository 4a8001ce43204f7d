"""What a plan says of a run on a cluster: what is asked, how long, at what cost, what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchtrain.cli.plan_elsewhere import elsewhere_lines, planned_elsewhere
from batchtrain.submission.profile import Profile
from tests.support.builders import mixed_table, spec_for

SHARED: dict[str, Any] = {
    "address": "http://head:8265",
    "storage": "/mnt/nowhere/runs",
    "rate_per_hour": 7200,
    "resources": {"workers": 4, "cpus_per_worker": 2, "device": "cpu"},
}


def planned(folder: Path, profile: dict[str, Any], **sections: Any) -> dict[str, Any]:
    loaded = spec_for(folder, mixed_table(40), **sections)
    return planned_elsewhere(loaded, Profile.model_validate(profile).named("there"), (), {})


def lines(document: dict[str, Any]) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for word, text in elsewhere_lines(document["elsewhere"]):
        said.setdefault(word, []).append(text)
    return said


def test_several_workers_have_a_time_at_best_and_what_it_costs(tmp_path: Path) -> None:
    document = planned(tmp_path, SHARED)
    found, seconds = document["elsewhere"], document["time"]["seconds"]
    assert found["time"]["one_worker_seconds"] == seconds
    assert found["time"]["seconds"] == pytest.approx(seconds / 4)
    assert found["cost"]["amount"] == pytest.approx(seconds / 4 * 2)
    assert found["cost"]["one_worker_amount"] == pytest.approx(seconds * 2)
    said = lines(document)
    assert said["profile"] == ["there: ray at http://head:8265, storage /mnt/nowhere/runs"]
    assert said["asks for"] == [
        "2 GiB for the job itself",
        "4 workers with 2 CPUs each, and a GPU where there is one for each",
    ]
    assert "at best, about" in said["takes"][0]
    assert said["takes"][1].startswith("an estimate for machines such as this one")
    assert "at 7200 an hour" in said["costs"][0]
    assert [text.split(":")[0] for text in said["warning"]] == ["storage"]
    assert "error" not in said
    assert document["workers"] == {"count": 4, "why": "4 workers, as asked"}
    unseen = "what is published at /mnt/nowhere/runs was not looked at; it is reused there"
    assert unseen in document["notes"]
    assert not Path("/mnt/nowhere").exists()


def test_a_device_that_is_not_here_has_no_time_and_no_cost(tmp_path: Path) -> None:
    gpus = {**SHARED, "resources": {"workers": 2, "gpus_per_worker": 1}}
    document = planned(tmp_path, gpus)
    if document["time"]["seconds"] is not None:
        pytest.skip("this machine has a CUDA device")
    assert document["elsewhere"]["cost"] is None
    assert "takes" not in lines(document)
    assert lines(document)["asks for"][1] == "2 workers with 1 CPU and 1 GPU each"


def test_a_run_on_this_machine_looks_at_its_storage_and_has_one_time(tmp_path: Path) -> None:
    profile = {"backend": "local", "resources": {"workers": 1}, "rate_per_hour": 3600}
    document = planned(tmp_path, profile)
    found = document["elsewhere"]
    assert found["time"]["seconds"] == found["time"]["one_worker_seconds"]
    assert found["cost"]["amount"] == pytest.approx(found["time"]["seconds"])
    said = lines(document)
    assert said["asks for"][1] == "no workers besides: the job itself trains"
    assert said["takes"][0].startswith("about ")
    assert not [note for note in document["notes"] if "not looked at" in note]
    assert found["findings"] == []


def test_a_search_is_counted_with_all_its_trials(tmp_path: Path) -> None:
    search = {"space": {"training.optimizer.lr": {"choice": [0.1, 0.01]}}, "trials": 2, "pack": 1}
    document = planned(tmp_path, {"backend": "local"}, search={**search, "algorithm": "grid"})
    seconds = document["search"]["seconds"]
    assert seconds > document["time"]["seconds"]
    assert document["elsewhere"]["time"]["one_worker_seconds"] == seconds


def test_what_is_wrong_is_among_the_lines(tmp_path: Path) -> None:
    document = planned(tmp_path, {"resources": {"workers": 2}})
    assert [text.split(",")[0] for text in lines(document)["error"]] == [
        "storage: expected a folder that all nodes share"
    ]
