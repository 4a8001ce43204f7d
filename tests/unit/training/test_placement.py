"""How many ranks a cluster gets: what it has, what the batch feeds, and what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import ClusterError
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.placement import FEED_ROWS_CPU, FEED_ROWS_GPU, Placement, place_workers

MANY = 10**9


def placed(
    cpus: float, gpus: float = 0, *, rows: int = MANY, most: int | None = None, **asked: Any
) -> Placement:
    return place_workers(
        ResourcesSpec(**asked), cpus=cpus, gpus=gpus, batch_rows=rows, num_rows=MANY, most=most
    )


@pytest.mark.parametrize(
    ("cluster", "asked", "found"),
    [
        # cpus, gpus; resources; workers, CPUs each, GPUs each
        ((8, 0), {}, (8, 1, 0)),
        ((8, 0), {"cpus_per_worker": 3}, (2, 3, 0)),
        ((8.9, 0), {}, (8, 1, 0)),
        ((8, 4), {}, (4, 1, 1)),
        ((8, 4), {"device": "cpu"}, (8, 1, 0)),
        ((8, 4), {"gpus_per_worker": 0}, (8, 1, 0)),
        ((8, 4), {"workers": 4}, (4, 1, 1)),
        ((8, 4), {"workers": 5}, (5, 1, 0)),
        ((8, 4), {"workers": 3, "gpus_per_worker": 0}, (3, 1, 0)),
        ((2, 1), {"workers": 1, "cpus_per_worker": 2}, (1, 2, 1)),
        # Each rank on a GPU needs its cores too.
        ((2, 8), {}, (2, 1, 1)),
        ((9, 8), {"cpus_per_worker": 4}, (2, 4, 1)),
        ((1, 0.5), {}, (1, 1, 0)),
    ],
)
def test_what_a_cluster_gives(
    cluster: tuple[float, float], asked: dict[str, Any], found: tuple[int, int, int]
) -> None:
    placement = placed(*cluster, **asked)
    assert (placement.workers, placement.cpus_per_worker, placement.gpus_per_worker) == found


@pytest.mark.parametrize(
    ("cluster", "asked", "words"),
    [
        ((2, 0), {"workers": 3}, "expected 3 CPUs for 3 workers, found a cluster with 2."),
        ((2, 0), {"cpus_per_worker": 4}, "expected 4 CPUs for 1 worker, found a cluster with 2."),
        ((0, 0), {}, "expected 1 CPUs for 1 worker, found a cluster with 0."),
        ((8, 1), {"workers": 2, "gpus_per_worker": 1}, "expected 2 GPUs for 2 workers"),
        ((8, 0), {"gpus_per_worker": 1}, "expected 1 GPUs for 1 worker"),
        ((8, 1), {"workers": 2, "device": "cuda"}, "expected 2 GPUs for 2 workers"),
        ((8, 0), {"device": "cuda"}, "expected 1 GPUs for 1 worker"),
        ((1, 8), {"workers": 2}, "expected 2 CPUs for 2 workers"),
        ((1, 8), {"cpus_per_worker": 2}, "expected 2 CPUs for 1 worker"),
    ],
)
def test_j15_what_a_cluster_can_never_give_is_refused_at_once(
    cluster: tuple[float, float], asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        placed(*cluster, **asked)
    assert words in str(caught.value)
    assert "or add nodes" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "gpus", "workers"),
    [
        (1, 0, 1),
        (2 * FEED_ROWS_CPU - 1, 0, 1),
        (2 * FEED_ROWS_CPU, 0, 2),
        (3 * FEED_ROWS_CPU, 0, 3),
        (2 * FEED_ROWS_GPU - 1, 8, 1),
        (5 * FEED_ROWS_GPU, 8, 5),
        (99 * FEED_ROWS_GPU, 8, 8),
    ],
)
def test_auto_takes_no_more_than_the_batch_feeds(rows: int, gpus: int, workers: int) -> None:
    assert placed(16, gpus, rows=rows).workers == workers


def test_a_full_batch_of_few_rows_feeds_one() -> None:
    placement = place_workers(
        ResourcesSpec(), cpus=8, gpus=0, batch_rows=10 * FEED_ROWS_CPU, num_rows=500
    )
    assert placement.workers == 1
    assert "500 rows a batch" in placement.why


@pytest.mark.parametrize(
    ("cpus", "rows", "most", "workers", "words"),
    [
        (64, MANY, 8, 8, "determinism: canonical"),
        (64, 20 * FEED_ROWS_CPU, 8, 8, "determinism: canonical"),
        (4, MANY, 8, 4, "the cluster has no room for more"),
        (64, 2 * FEED_ROWS_CPU, 8, 2, "feed no more"),
        (64, MANY, None, 64, "the cluster has no room for more"),
        (2, 2 * FEED_ROWS_CPU, None, 2, "feed no more"),
    ],
)
def test_the_reason_is_the_one_that_counts(
    cpus: int, rows: int, most: int | None, workers: int, words: str
) -> None:
    placement = placed(cpus, rows=rows, most=most)
    assert placement.workers == workers
    assert words in placement.why
    assert placement.why.startswith(f"{workers} workers: ")


RESOURCES = st.builds(
    ResourcesSpec,
    workers=st.one_of(st.just("auto"), st.integers(1, 40)),
    cpus_per_worker=st.integers(1, 9),
    gpus_per_worker=st.sampled_from(["auto", 0, 1]),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
)


@given(
    asked=RESOURCES,
    cpus=st.floats(0, 64),
    gpus=st.sampled_from([0.0, 0.5, 1.0, 3.0, 8.0]),
    batch_rows=st.integers(1, 200_000),
    num_rows=st.integers(1, 10**7),
    most=st.one_of(st.none(), st.integers(1, 8)),
)
def test_j15_never_below_one_never_more_than_the_cluster_has(
    asked: ResourcesSpec,
    cpus: float,
    gpus: float,
    batch_rows: int,
    num_rows: int,
    most: int | None,
) -> None:
    try:
        found = place_workers(
            asked, cpus=cpus, gpus=gpus, batch_rows=batch_rows, num_rows=num_rows, most=most
        )
    except ClusterError:
        least = 1 if asked.workers == "auto" else asked.workers
        no_gpus = asked.gpus_per_worker == 0
        with_gpus = asked.gpus_per_worker == 1 or asked.device == "cuda"
        assert least * asked.cpus_per_worker > cpus or (
            not no_gpus and with_gpus and least > gpus
        ), "refused what the cluster has"
        return
    assert found.workers >= 1
    assert found.workers * found.cpus_per_worker <= cpus
    assert found.workers * found.gpus_per_worker <= gpus
    assert found.cpus_per_worker == asked.cpus_per_worker
    assert found.why
    if asked.workers == "auto":
        assert most is None or found.workers <= most
    else:
        assert found.workers == asked.workers
    if asked.gpus_per_worker != "auto":
        assert found.gpus_per_worker == asked.gpus_per_worker
    elif asked.device == "cpu":
        assert found.gpus_per_worker == 0


def test_gradients_travel_by_nccl_only_where_there_are_gpus_and_json_never_does() -> None:
    assert placed(4).backend == "gloo"
    assert placed(4, 4).backend == "cpu:gloo,cuda:nccl"


def test_what_is_waited_for_is_said_with_what_is_free() -> None:
    on_cpus = placed(4, workers=3, cpus_per_worker=1)
    assert on_cpus.waiting({"CPU": 1.5}) == (
        "waiting for 3 workers with 1 CPUs each; the cluster has 1.5 CPUs and 0 GPUs free"
    )
    assert "1 CPUs and 1 GPU each" in placed(4, 4, workers=2).waiting({})
