"""Where a search is carried out, and what each of its units holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.engines.session import ClusterResources
from batchtrain.errors import ClusterError
from batchtrain.spec.data import DataSpec
from batchtrain.spec.run import ResourcesSpec, RunSpec
from batchtrain.tuning.choice import (
    FEW_SECONDS,
    UnitResources,
    choose_executor,
    unit_resources,
)


def spec_with(engine: str = "auto", **resources: Any) -> RunSpec:
    data = DataSpec(source="a.csv", target="y")
    return RunSpec(version=1, name="a", data=data, engine=engine, resources=resources)  # type: ignore[arg-type]


LONG = 2 * FEW_SECONDS
CHOICES: list[tuple[str, RunSpec, float, bool, int, bool]] = [
    # what, spec, seconds, is there a cluster, cores, on Ray
    ("a short one stays here", spec_with(), 1.0, False, 8, False),
    ("a long one takes all cores", spec_with(), LONG, False, 8, True),
    ("of one core there is no second", spec_with(), LONG, False, 1, False),
    ("a cluster is there to be used", spec_with(), 1.0, True, 1, True),
    ("several workers need Ray", spec_with(workers=2), 1.0, False, 1, True),
    ("one worker does not", spec_with(workers=1), 1.0, False, 8, False),
    ("as asked, here", spec_with("embedded"), LONG, True, 8, False),
    ("as asked, on Ray", spec_with("ray"), 1.0, False, 1, True),
]


@pytest.mark.parametrize("case", CHOICES, ids=[each[0] for each in CHOICES])
def test_a_search_is_carried_out_where_it_pays(
    case: tuple[str, RunSpec, float, bool, int, bool],
) -> None:
    _, spec, seconds, is_attached, cores, on_ray = case
    found = choose_executor(spec, seconds=seconds, is_attached=is_attached, cores=cores)
    assert found.on_ray == on_ray
    # Whoever did not ask for Ray is told why it is started.
    assert bool(found.why) == on_ray


def cluster(cpus: float, gpus: float = 0, nodes: int = 1) -> ClusterResources:
    return ClusterResources(cpus, gpus, nodes, cpus / nodes)


UNITS: list[tuple[str, ResourcesSpec, ClusterResources, int | None, UnitResources]] = [
    ("a core each", ResourcesSpec(), cluster(8), None, UnitResources(1, 0, 8)),
    ("two cores each", ResourcesSpec(cpus_per_worker=2), cluster(7), None, UnitResources(2, 0, 3)),
    ("fewer than fit", ResourcesSpec(), cluster(8), 3, UnitResources(1, 0, 3)),
    ("8 on 2 cores share them", ResourcesSpec(), cluster(2), 8, UnitResources(0.25, 0, 8)),
    ("a GPU each", ResourcesSpec(), cluster(8, 2), None, UnitResources(1, 1, 2)),
    ("4 share a GPU", ResourcesSpec(), cluster(8, 1), 4, UnitResources(0.25, 0.25, 4)),
    ("not on the GPU", ResourcesSpec(device="cpu"), cluster(8, 2), None, UnitResources(1, 0, 8)),
    # The ranks hold the cores; a unit that held some too would keep them from its own ranks.
    ("2 workers on 4 cores", ResourcesSpec(workers=2), cluster(4), None, UnitResources(0, 0, 2)),
    ("never more than fit", ResourcesSpec(workers=2), cluster(4), 8, UnitResources(0, 0, 2)),
    ("a part of a core", ResourcesSpec(workers=2), cluster(4.5), 8, UnitResources(0, 0, 2)),
]


@pytest.mark.parametrize("case", UNITS, ids=[each[0] for each in UNITS])
def test_a_unit_holds_what_its_trials_need(
    case: tuple[str, ResourcesSpec, ClusterResources, int | None, UnitResources],
) -> None:
    _, asked, there, concurrent, expected = case
    found = unit_resources(asked, there, concurrent)
    assert found == expected
    bundle = found.bundle()
    assert bundle
    assert all(amount > 0 for amount in bundle.values())
    assert bundle.get("CPU", 0) == expected.cpus


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(1, 64),
    st.integers(0, 4),
    st.none() | st.integers(1, 10_000),
)
def test_units_never_hold_more_than_there_is(
    workers: int, cores_each: int, cpus: float, gpus: int, concurrent: int | None
) -> None:
    asked = ResourcesSpec(workers=workers, cpus_per_worker=cores_each)
    there = cluster(cpus, gpus)
    if workers * cores_each > cpus:
        with pytest.raises(ClusterError, match="resources"):
            unit_resources(asked, there, concurrent)
        return
    found = unit_resources(asked, there, concurrent)
    assert 1 <= found.concurrent <= (concurrent or 64)
    if workers > 1:
        assert found.concurrent * workers * cores_each <= cpus
    else:
        assert found.concurrent * found.cpus <= cpus
        assert found.concurrent * found.gpus <= gpus
        assert found.cpus > 0


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (ResourcesSpec(workers=3), cluster(2)),
        (ResourcesSpec(gpus_per_worker=1), cluster(2)),
        (ResourcesSpec(device="cuda"), cluster(2)),
        # Eight cores there are, but no unit could ever be placed.
        (ResourcesSpec(cpus_per_worker=8), cluster(8, nodes=2)),
    ],
)
def test_what_a_cluster_can_never_give_is_said_at_once(
    asked: ResourcesSpec, there: ClusterResources
) -> None:
    with pytest.raises(ClusterError, match=r"resources.*expected .*found.* (Lower|add)"):
        unit_resources(asked, there, None)
