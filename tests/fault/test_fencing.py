"""Two processes write one run: the later one wins, and the result is as if it had been alone."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from batchtrain import points
from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.claims import read_claims
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import BatchtrainError, RunOwnedError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.testing.faults import PointFaults
from batchtrain.testing.starting import PRELOADED
from batchtrain.training.lineage import CheckpointName
from batchtrain.training.owner import RunOwner
from tests.support.builders import layout_for, mixed_table, spec_for

pytestmark = pytest.mark.fault

LONG = 60.0
"""Seconds after which a test that waits for a process fails."""

EXACT = ("best.safetensors", "last.safetensors", "history.jsonl", "parameters.json", "run.json")
STEPS = 12
"""Of the whole run: 63 training rows (of 90) in batches of 16, three epochs."""

# ----------------------------------------------------------------------------------------------
# The other process


class Pause:
    """Stops the thread that passes a point for the n-th time until the parent says go on."""

    def __init__(self, point: str, connection: Connection) -> None:
        self._point, _, count = point.partition(":")
        self._left = int(count)
        self._connection = connection

    def __call__(self, name: str) -> None:
        if name == self._point:
            self._left -= 1
            if self._left == 0:
                self._connection.send_bytes(b'"paused"')
                self._connection.recv_bytes()


def train_apart(connection: Connection, spec: str, pause: str) -> None:
    """Train in this process, with a pause, and say how it ended."""
    points.listen(Pause(pause, connection))
    try:
        result = run_spec(load_spec(Path(spec)), last="train")
        ended: dict[str, str] = {"status": result.stages[-1].status}
    except BatchtrainError as error:
        ended = {"error": type(error).__name__, "message": str(error)}
    connection.send_bytes(json.dumps(ended).encode())


@dataclass
class Other:
    """A training in a process of its own."""

    connection: Connection

    def hear(self) -> Any:
        """What it says next."""
        assert self.connection.poll(LONG)
        return json.loads(self.connection.recv_bytes())

    def go_on(self) -> dict[str, str]:
        """Let it go on after its pause; how it ended."""
        self.connection.send_bytes(b"go on")
        ended: dict[str, str] = self.hear()
        return ended


@contextmanager
def paused(loaded: LoadedSpec, point: str) -> Iterator[Other]:
    """A process that trains a spec and has come to a point, such as `step.rows:3`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe(duplex=True)
    process = context.Process(target=train_apart, args=(theirs, str(loaded.path), point))
    process.start()
    theirs.close()
    try:
        other = Other(ours)
        assert other.hear() == "paused"
        yield other
    finally:
        ours.close()
        process.kill()
        process.join(LONG)
        process.close()


# ----------------------------------------------------------------------------------------------
# This process


def saving(folder: Path, **checkpoint: Any) -> LoadedSpec:
    rules = {"every_seconds": None, "every_steps": 2, **checkpoint}
    training = {"epochs": 3, "batch_size": 16, "checkpoint": rules}
    return spec_for(folder, mixed_table(90), training=training)


def take_over(loaded: LoadedSpec) -> TrainedModel:
    trained = run_spec(loaded, last="train", take_over=True).trained
    assert trained is not None
    return trained


def hashes(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    return {name: files[name].sha256 for name in EXACT}


def left_of(layout: RunLayout) -> set[str]:
    """What is in the folder of a run beside its record."""
    return set(layout.storage.list(layout.root)) - {layout.run_record}


def files_of(trained: TrainedModel) -> set[str]:
    key = trained.artifact.key
    paths = [MANIFEST, *(entry.path for entry in trained.artifact.manifest.files.values())]
    return {f"{key}/{path}" for path in paths}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that one process made."""
    return hashes(take_over(saving(tmp_path_factory.mktemp("undisturbed"))))


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("step.rows:1", id="before its first step"),
        pytest.param("step.backward:6", id="in a step"),
        pytest.param("epoch.schedule:2", id="at the end of an epoch"),
        pytest.param("checkpoint.begun:2", id="before it writes a checkpoint"),
        pytest.param("artifact.files:2", id="between the fence and the commit of a checkpoint"),
        pytest.param("checkpoint.published:2", id="before it names the checkpoint"),
        pytest.param("artifact.deleting:1", id="while it deletes a checkpoint"),
    ],
)
def test_r33_a_process_that_was_taken_over_ends_and_one_model_is_published(
    tmp_path: Path, undisturbed: dict[str, str], point: str
) -> None:
    loaded = saving(tmp_path, keep=1)
    layout = layout_for(loaded)
    with paused(loaded, point) as other:
        with pytest.raises(RunOwnedError, match="--take-over"):
            run_spec(loaded, last="train")
        trained = take_over(loaded)
        assert hashes(trained) == undisturbed
        ended = other.go_on()
    # It ended at its next commit, and found that there is a model by now.
    assert ended == {"status": "reused"}
    # What it left behind is cleaned up by whoever comes next; the model is as it was.
    run_spec(loaded, last="train")
    assert left_of(layout) == files_of(trained)


def test_r33_of_two_that_come_to_publish_the_model_one_does(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    loaded = saving(tmp_path)
    layout = layout_for(loaded)
    # After its last look at the fence: the six checkpoints are published by then.
    with paused(loaded, f"artifact.files:{STEPS // 2 + 1}") as other:
        assert layout.storage.size(f"{layout.model}/{MANIFEST}") is None
        trained = take_over(loaded)
        ended = other.go_on()
    # It lost, took away what it had written, and has the same model to show.
    assert ended == {"status": "reused"}
    assert hashes(trained) == undisturbed
    assert left_of(layout) == files_of(trained)


def test_r33_what_is_written_after_the_take_over_is_not_gone_on_from(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    loaded = saving(tmp_path, keep=9)
    layout = layout_for(loaded)
    # The first has looked at the fence and is about to commit step 6.
    with paused(loaded, "artifact.files:3") as other:
        # The second goes on from step 4 and ends, without a word, when it has saved step 6 too.
        points.listen(PointFaults.parse("step.rows:4:raise"))
        try:
            with pytest.raises(RuntimeError, match="on purpose"):
                take_over(loaded)
        finally:
            points.listen(None)
        assert other.go_on().get("error") == "FencedError"
    keys = layout.storage.list(layout.checkpoints)
    names = {CheckpointName.of_key(key.removesuffix(f"/{MANIFEST}")) for key in keys}
    assert {CheckpointName(6, 1), CheckpointName(6, 2)} <= names
    with closing(RunOwner(layout, Progress(), take_over=True)) as third:
        third.claim()
        assert third.checkpoint is not None
        assert third.checkpoint.name == CheckpointName(6, 2)
    continued = [claim.continues for claim in read_claims(layout.storage, layout.root)]
    assert [(each.epoch, each.step) for each in continued if each] == [(1, 4), (2, 6)]
    assert hashes(take_over(loaded)) == undisturbed
