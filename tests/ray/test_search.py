"""A search on Ray Tune gives what the same search gives in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from batchtrain.engines.session import RaySession
from batchtrain.tuning.stage import tune_spec
from tests.support.ranks import Told
from tests.support.small_searches import search_spec, table

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FEW = {"training.optimizer.lr": {"choice": [0.01, 0.05]}}


@pytest.mark.parametrize(
    "search",
    [
        {"trials": 8, "pack": 4, "scheduler": {"kind": "asha", "first_epochs": 1, "factor": 2}},
        pytest.param({"trials": 8, "pack": 1}, marks=pytest.mark.long),
        pytest.param({"trials": 12, "pack": 1, "space": FEW}, marks=pytest.mark.long),
    ],
    ids=["packs", "runs of their own", "runs of the same values"],
)
def test_on_tune_the_table_is_that_of_one_process(
    search: Mapping[str, Any], tmp_path: Path, ray_session: RaySession
) -> None:
    here = tune_spec(search_spec(tmp_path / "here", search, engine="embedded"))
    on_ray = tune_spec(search_spec(tmp_path / "ray", search, engine="ray"))
    assert table(on_ray) == table(here)
    assert on_ray.best == here.best


@pytest.mark.long
def test_trials_of_two_workers_share_four_cores_and_all_end(
    tmp_path: Path, ray_session: RaySession
) -> None:
    search = {"trials": 3, "pack": 1}
    here = tune_spec(search_spec(tmp_path / "here", search, engine="embedded"))
    told = Told()
    loaded = search_spec(tmp_path / "ray", search, resources={"workers": 2})
    spread = tune_spec(loaded, progress=told)
    assert [each["state"] for each in spread.document["trials"]] == ["finished"] * 3
    # Two workers draw other dropout masks; the trials are the same.
    tried = [each["values"] for each in spread.document["trials"]]
    assert tried == [each["values"] for each in here.document["trials"]]
    assert any("each has 2 workers" in note for note in told.notes)
