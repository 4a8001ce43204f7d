"""Nodes that are lost under a training or a search; the nodes are raylets of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchtrain.artifacts.claims import read_claims
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.session import RaySession
from batchtrain.errors import BatchtrainError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress, SearchStanding
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.training.lineage import newest_checkpoint
from batchtrain.tuning.stage import tune_spec
from tests.support.builders import layout_for
from tests.support.ranks import Told, compared, small_spec, train_ranks
from tests.support.small_searches import search_spec, table

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(900)]

NODES = 3
MANY_KILLS = 20
EPOCHS = 120
"""Far more than three losses take; the training is slow enough to be met in the middle."""


@dataclass
class Nodes:
    """A cluster whose head has no cores, and whose nodes have one each."""

    cluster: Any
    session: RaySession
    alive: list[Any]

    def kill(self) -> None:
        """Kill a node, with all that runs on it; without a word to anybody."""
        self.cluster.remove_node(self.alive.pop(0), allow_graceful=False)

    def add(self) -> None:
        """Start a node; in the main thread, which Ray's own code needs."""
        self.alive.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    with RaySession(cluster.address) as session:
        found = Nodes(cluster, session, [])
        for _ in range(NODES):
            found.add()
        session.connect()
        yield found
    ray.shutdown()
    cluster.shutdown()


def _wait_for_claim(loaded: LoadedSpec, after: int, training: Future[Any]) -> int:
    """Wait for a checkpoint of a later attempt: what the one before left does not count."""
    layout = layout_for(loaded)
    while not training.done():
        with suppress(BatchtrainError, FileNotFoundError):
            found = newest_checkpoint(layout, read_claims(layout.storage, layout.root), Progress())
            if found is not None and found.name.claim > after:
                return found.name.claim
        time.sleep(0.05)
    training.result()
    raise AssertionError("the training ended before a node could be killed")


@pytest.mark.parametrize(
    "kills", [1, *(pytest.param(kills, marks=pytest.mark.long) for kills in (3, MANY_KILLS))]
)
def test_r17_killed_nodes_change_no_byte(kills: int, tmp_path: Path, nodes: Nodes) -> None:
    epochs = EPOCHS * (1 + kills // 10)
    expected = train_ranks(_spec(tmp_path / "undisturbed", kills, epochs), NODES)
    loaded = _spec(tmp_path / "killed", kills, epochs)
    told = Told()

    def train() -> TrainedModel | None:
        spread = load_spec(loaded.path, [*_overrides(kills), f"resources.workers={NODES}"])
        return run_spec(spread, last="train", progress=told).trained

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        claim = 0
        for _ in range(kills):
            claim = _wait_for_claim(loaded, claim, training)
            nodes.kill()
            nodes.add()
        trained = training.result()
    assert trained is not None
    assert compared(trained) == compared(expected)
    lost = [note for note in told.notes if "(retry lost_worker" in note]
    # A start that still counted on a node that was gone is a loss as well.
    assert kills <= len(lost) <= 2 * kills
    assert any("expected rank" in note and "All ranks were ended" in note for note in lost), lost


@pytest.mark.long
def test_r37_a_killed_node_changes_no_byte_of_a_search(tmp_path: Path, nodes: Nodes) -> None:
    search = {"trials": 12, "pack": 1, "scheduler": {"kind": "asha", "first_epochs": 100}}
    here = tune_spec(search_spec(tmp_path / "here", search, epochs=600, engine="embedded"))
    loaded = search_spec(tmp_path / "spread", search, epochs=600, engine="ray")
    told = Searched()
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(tune_spec, loaded, progress=told)
        assert told.has_begun.wait(120), searching.result(timeout=1)
        nodes.kill()
        nodes.add()
        spread = searching.result(timeout=300)
    assert table(spread) == table(here)


class Searched(Told):
    """Hears of a search, and when two of its trials are at work."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()

    def searching(self, standing: SearchStanding) -> None:
        """Set once some trial is over, and others are at work."""
        if standing.best and len(standing.running) > 1:
            self.has_begun.set()


def _overrides(kills: int) -> list[str]:
    checkpoint = "training.checkpoint={every_steps: 50, every_seconds: null}"
    return [f"retries={{lost_worker: {2 * kills}}}", checkpoint]


def _spec(folder: Path, kills: int, epochs: int) -> LoadedSpec:
    loaded = small_spec(folder, epochs=epochs)
    return load_spec(loaded.path, _overrides(kills))
