"""What the fault tests disturb: one commit of each kind, and what an independent reader sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from batchtrain.artifacts import Artifact, ArtifactKind, Draft, RunLayout, open_artifact
from batchtrain.artifacts.artifact import MANIFEST, reuse_or_build
from batchtrain.artifacts.claims import read_claims
from batchtrain.errors import ArtifactDamagedError
from batchtrain.evaluation.stage import evaluate
from batchtrain.export.stage import export
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import load_spec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.storage import Storage
from batchtrain.training.lineage import newest_checkpoint, published_checkpoints
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.owner import RunOwner
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.stage import run_layout, train
from batchtrain.training.state import Snapshot
from batchtrain.tuning.stage import tune_spec
from tests.support.builders import THING

__all__ = [
    "SCENARIOS",
    "SEARCH",
    "Acknowledge",
    "Scenario",
    "artifacts_of",
    "newest_step",
    "save_checkpoints",
    "seen",
]

FILES = {"a.bin": b"\0\1\2" * 50, "deep/b.json": b'{"x": 1}\n', "empty": b""}
STEPS = 4

Acknowledge = Callable[[int], None]
"""Told how much is known to be durable: what a caller relies on from then on."""


@dataclass(frozen=True)
class Scenario:
    """Something that commits, to be disturbed and then done again.

    Attributes:
        name: For messages.
        run: Does it on a storage, given the folder of the spec.
        is_checkpoints: Whether it is a line of checkpoints, of which some are deleted again.
    """

    name: str
    run: Callable[[Storage, Path, Acknowledge], None]
    is_checkpoints: bool = False


def publish_thing(storage: Storage, folder: Path, acknowledge: Acknowledge) -> None:
    """One artifact of three files."""

    def build(draft: Draft) -> Mapping[str, Any]:
        for name, data in FILES.items():
            draft.add(name, data)
        return {"rows": 3}

    reuse_or_build(storage, "things/aaaaaaaaaaaa/model", THING, inputs={"of": 1}, build=build)
    acknowledge(1)


def save_checkpoints(storage: Storage, folder: Path, acknowledge: Acknowledge) -> None:
    """A run of four steps that saves at each of them, keeps one and the best, and may resume."""
    layout = checkpoint_layout(storage)
    # Only in the same process can the owner before seem to be alive.
    with closing(RunOwner(layout, Progress(), take_over=True)) as owner:
        owner.claim()
        ownership = owner.ownership
        resumed = owner.checkpoint.name if owner.checkpoint else None
        with CheckpointWriter(
            layout,
            machine(),
            claim=ownership.epoch,
            check_owner=owner.check,
            keep=1,
            published=published_checkpoints(layout, ownership.claims),
            resumed=resumed,
            best_epoch=min(resumed.step, 2) if resumed else 0,
        ) as writer:
            for step in range(resumed.step + 1 if resumed else 1, STEPS + 1):
                writer.save(snapshot_at(step), wait=True)
                acknowledge(step)


def prepare_rows(storage: Storage, folder: Path, acknowledge: Acknowledge) -> None:
    """The prepare stage of the spec in a folder."""
    prepare(load_spec(folder / "spec.yaml"), storage, Progress())
    acknowledge(1)


def evaluate_and_export(storage: Storage, folder: Path, acknowledge: Acknowledge) -> None:
    """The last two stages of a run that is trained already."""
    loaded = load_spec(folder / "spec.yaml")
    prepared, _status = prepare(loaded, storage, Progress())
    layout = run_layout(loaded, prepared, storage)
    trained, _status = train(loaded, prepared, layout, Progress())
    acknowledge(1)
    with stopped_clock():
        report, _status = evaluate(loaded, prepared, trained, layout, Progress())
    acknowledge(2)
    export(loaded, prepared, trained, report, layout)
    acknowledge(3)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("artifact", publish_thing),
        Scenario("checkpoints", save_checkpoints, is_checkpoints=True),
        Scenario("prepare", prepare_rows),
        Scenario("evaluate and export", evaluate_and_export),
    )
}


def search(storage: Storage, folder: Path, acknowledge: Acknowledge) -> None:
    """The search of a spec, and the run of the best."""
    tune_spec(load_spec(folder / "spec.yaml"), storage=storage)
    acknowledge(1)


SEARCH = Scenario("search", search)


# ----------------------------------------------------------------------------------------------
# What an independent reader sees


def artifacts_of(storage: Storage, *, may_be_torn: bool = False) -> Iterator[Artifact]:
    """Every published artifact, opened as what it says it is, and verified file by file.

    Args:
        storage: Where to look.
        may_be_torn: Whether to pass over those that are refused, as every reader does.

    Raises:
        ArtifactDamagedError: If one is not whole.
    """
    for key in storage.list(""):
        if key.endswith(f"/{MANIFEST}"):
            try:
                yield opened(storage, key.removesuffix(f"/{MANIFEST}"))
            except ArtifactDamagedError:
                if not may_be_torn:
                    raise


def opened(storage: Storage, key: str) -> Artifact:
    """An artifact of any kind, verified."""
    try:
        document = json.loads(storage.read(f"{key}/{MANIFEST}"))
        kind = ArtifactKind(document["kind"], document["format"])
    except ValueError:
        kind = THING  # it is torn, and refused whatever it was
    artifact = open_artifact(storage, key, kind)
    artifact.verify()
    return artifact


def seen(storage: Storage, *, may_be_torn: bool = False) -> set[tuple[str, str]]:
    """Every published artifact as a name and what it holds.

    The claim under which a checkpoint was written is no part of the state that it holds.
    """
    found = set()
    for artifact in artifacts_of(storage, may_be_torn=may_be_torn):
        files = artifact.manifest.files
        if artifact.manifest.kind == "checkpoint":
            held = [files[name].sha256 for name in ("state.safetensors", "state.json")]
            found.add((f"step {artifact.manifest.content['step']}", " ".join(held)))
        else:
            found.add((artifact.key, artifact.manifest.digest))
    return found


def newest_step(storage: Storage) -> int:
    """The step that a resume would go on from; 0 for the beginning."""
    layout = checkpoint_layout(storage)
    found = newest_checkpoint(layout, read_claims(storage, layout.root), Progress())
    return found.name.step if found else 0


# ----------------------------------------------------------------------------------------------
# The parts


def checkpoint_layout(storage: Storage) -> RunLayout:
    return RunLayout(storage, "small", "0123456789ab")


def snapshot_at(step: int) -> Snapshot:
    """A state that no other step has."""
    weight = torch.arange(64, dtype=torch.float32) * step
    document = {"step": step, "epoch": step, "best_epoch": min(step, 2), "history": [step] * step}
    return Snapshot({"model/weight": weight}, frozenset({"model/weight"}), document)


@cache
def machine() -> MachineChoices:
    return choose_machine(ResourcesSpec(device="cpu"))


@contextmanager
def stopped_clock() -> Iterator[None]:
    """No time passes, so that a report shows the same seconds each time."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    with patch("batchtrain.evaluation.evaluate.time", clock):
        yield
