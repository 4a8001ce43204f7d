"""Damage in any file of any artifact is found by whoever would use it, never taken for data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from batchtrain.artifacts import Artifact, ArtifactKind, RunLayout, find_artifact, open_artifact
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.bundle import MODEL_BUNDLE, ModelBundle
from batchtrain.artifacts.claims import read_claims
from batchtrain.artifacts.garbage import find_garbage
from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.artifacts.prepared import PREPARED_DATA, PreparedData
from batchtrain.artifacts.report import EVALUATION_REPORT, EvaluationReport
from batchtrain.artifacts.trained import CHECKPOINT, TRAINED_MODEL, TrainedModel
from batchtrain.errors import ArtifactDamagedError, ArtifactError
from batchtrain.export.verify import verify
from batchtrain.prediction.loaded import load_bundle
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS
from batchtrain.storage import FolderStorage
from batchtrain.training.checkpoints import recorded_machine, restore
from batchtrain.training.lineage import newest_checkpoint
from tests.support.builders import layout_for, mixed_table, run, spec_for, stop_training

pytestmark = pytest.mark.fault

FLIPS = 500
SEED = 20261121

Reader = Callable[[Artifact], Any]
"""Gives what a stage takes out of an artifact, as something that can be compared."""

# ----------------------------------------------------------------------------------------------
# Who reads what


def rows_of(split: str) -> Reader:
    def read(artifact: Artifact) -> Any:
        rows = PreparedData(artifact).load(split)
        return [part.tobytes() for part in (rows.numeric, rows.codes, rows.target, rows.row_id)]

    return read


def golden_rows(artifact: Artifact) -> Any:
    table, row_id = PreparedData(artifact).golden_rows()
    return table.to_pylist(), row_id.tolist()


def restored(artifact: Artifact) -> Any:
    """What a resume hands to the state of the training."""
    given: list[bytes] = []

    class State:
        def load_bytes(self, tensors: bytes, document: bytes, *, where: str) -> None:
            given.extend((tensors, document))

    restore(State(), artifact)  # type: ignore[arg-type]
    loaded = safetensors.torch.load(given[0])
    return {name: value.tolist() for name, value in loaded.items()}, json.loads(given[1])


def last_weights(artifact: Artifact) -> Any:
    loaded = safetensors.torch.load(artifact.read("last.safetensors"))
    return {name: value.tolist() for name, value in loaded.items()}


def predictions(split: str) -> Reader:
    def read(artifact: Artifact) -> Any:
        name = f"predictions/{split}.parquet"
        return table_from_bytes(artifact.read(name), where=artifact.file_url(name)).to_pylist()

    return read


def predicted(artifact: Artifact) -> Any:
    """What a bundle predicts, opened by its folder as a person does."""
    table = mixed_table(20, seed=1).drop_columns(["label"])
    return load_bundle(artifact.url).predict(table).to_csv()


def verified(artifact: Artifact) -> Any:
    return verify(ModelBundle.open(artifact.url))


def of_view(view: Callable[[Artifact], Any], name: str) -> Reader:
    def read(artifact: Artifact) -> Any:
        return getattr(view(artifact), name)()

    return read


READERS: dict[str, Sequence[Reader]] = {
    PREPARED_DATA.name: (
        *map(rows_of, SPLITS),
        of_view(PreparedData, "preprocessing_state"),
        of_view(PreparedData, "profile"),
        golden_rows,
    ),
    TRAINED_MODEL.name: (
        *(
            of_view(TrainedModel, name)
            for name in ("best_weights", "history", "machine", "inexact", "parameters")
        ),
        last_weights,
    ),
    CHECKPOINT.name: (restored, recorded_machine),
    EVALUATION_REPORT.name: (
        of_view(EvaluationReport, "page"),
        of_view(EvaluationReport, "metrics_document"),
        *map(predictions, ("valid", "test")),
        lambda artifact: artifact.read("spec.yaml"),
        lambda artifact: artifact.read("MODEL_CARD.md"),
    ),
    MODEL_BUNDLE.name: (predicted, verified),
}
KINDS = {
    kind.name: kind
    for kind in (PREPARED_DATA, TRAINED_MODEL, CHECKPOINT, EVALUATION_REPORT, MODEL_BUNDLE)
}


@dataclass(frozen=True)
class Known:
    """An artifact of a finished run, and what its readers give while it is whole."""

    storage: FolderStorage
    key: str
    kind: ArtifactKind
    files: Mapping[str, Path]
    values: Sequence[Any]

    def open(self) -> Artifact:
        return open_artifact(self.storage, self.key, self.kind)

    def results(self) -> list[Any]:
        """What each reader gives now, or the error of ours that it raises; others come out."""
        found = []
        for read in READERS[self.kind.name]:
            try:
                artifact = find_artifact(self.storage, self.key, self.kind)
                found.append(read(artifact or self.open()))
            except ArtifactError as error:
                found.append(error)
        return found


def known(storage: FolderStorage, key: str) -> Known:
    document = json.loads(storage.read(f"{key}/{MANIFEST}"))
    kind = KINDS[document["kind"]]
    artifact = open_artifact(storage, key, kind)
    folder = storage.root / key
    files = {name: folder / entry.path for name, entry in artifact.manifest.files.items()}
    whole = Known(storage, key, kind, {**files, MANIFEST: folder / MANIFEST}, [])
    return replace(whole, values=whole.results())


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Known]:
    """One of each kind; a checkpoint is one of a run of its own, which was stopped."""
    finished = spec_for(tmp_path_factory.mktemp("finished"), mixed_table(90))
    result = run(finished)
    made = [result.prepared, result.trained, result.report, result.bundle]
    places = [(each.artifact.storage, each.artifact.key) for each in made if each is not None]
    layout = stopped_run(tmp_path_factory.mktemp("stopped"))
    newest = newest_checkpoint(layout, read_claims(layout.storage, layout.root), Progress())
    assert newest is not None
    places.append((layout.storage, newest.artifact.key))
    found = [known(FolderStorage(Path(storage.url())), key) for storage, key in places]
    assert {each.kind.name for each in found} == set(KINDS)
    return found


def stopped_run(folder: Path) -> RunLayout:
    """A run with several checkpoints that was stopped."""
    saving = {"checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 3}}
    loaded = spec_for(folder, mixed_table(90), training={"epochs": 3, "batch_size": 16, **saving})
    stop_training(loaded, 7)
    return layout_for(loaded)


def check_found(artifact: Known, what: str) -> None:
    """At least one reader refuses the artifact, and no other gives another value."""
    results = artifact.results()
    errors = [found for found in results if isinstance(found, ArtifactError)]
    assert errors, f"{what}: nobody has seen it"
    for found, value in zip(results, artifact.values, strict=True):
        assert isinstance(found, ArtifactError) or found == value, f"{what}: other values"
    assert all("Delete" in str(error) or "delete" in str(error) for error in errors), what
    with pytest.raises(ArtifactError):
        artifact.open().verify()


# ----------------------------------------------------------------------------------------------
# Flips


def flips(artifacts: Sequence[Known], number: int) -> Iterator[tuple[Known, str, int]]:
    """So many single bits, spread over all files of all artifacts alike."""
    random = np.random.default_rng(SEED)
    places = [(artifact, name) for artifact in artifacts for name in artifact.files]
    for place in range(number):
        artifact, name = places[place % len(places)]
        size = artifact.files[name].stat().st_size
        # The last byte of a manifest ends its last line, which no reader needs.
        bits = 8 * (size - (name == MANIFEST))
        yield artifact, name, int(random.integers(bits))


def test_r30_g5_every_flipped_bit_is_found_before_anybody_uses_it(artifacts: list[Known]) -> None:
    for artifact in artifacts:
        assert not [value for value in artifact.values if isinstance(value, Exception)]
    tried = 0
    for artifact, name, bit in flips(artifacts, FLIPS):
        path = artifact.files[name]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        check_found(artifact, f"bit {bit} of {name} of the {artifact.kind.name}")
        path.write_bytes(whole)
        tried += 1
    assert tried == FLIPS
    assert all(artifact.results() == artifact.values for artifact in artifacts)


def cut_to_nothing(data: bytes) -> bytes:
    return b""


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_by_some(data: bytes) -> bytes:
    """More than the end of a manifest's last line."""
    return data[:-2]


def grown(data: bytes) -> bytes:
    return data + b"}"


def of_other_bytes(data: bytes) -> bytes:
    return b"\xff" * len(data)


def missing(data: bytes) -> None:
    return None


@pytest.mark.parametrize(
    "damage", [cut_to_nothing, cut_in_half, cut_by_some, grown, of_other_bytes, missing]
)
def test_r30_d26_a_file_that_is_cut_missing_or_another_is_found(
    artifacts: list[Known], damage: Callable[[bytes], bytes | None]
) -> None:
    for artifact in artifacts:
        for name, path in artifact.files.items():
            whole = path.read_bytes()
            damaged = damage(whole)
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            if (name, damaged) == (MANIFEST, None):
                assert find_artifact(artifact.storage, artifact.key, artifact.kind) is None
            else:
                check_found(artifact, f"{damage.__name__} {name} of the {artifact.kind.name}")
            if name != MANIFEST:
                with pytest.raises(ArtifactDamagedError, match=name):
                    artifact.open().read(name)
            path.write_bytes(whole)
    assert all(artifact.results() == artifact.values for artifact in artifacts)


def test_r30_an_extra_stale_file_changes_nothing_and_is_garbage(artifacts: list[Known]) -> None:
    for artifact in artifacts:
        some_file = next(iter(artifact.files.values()))
        extra = some_file.with_name("stale.bin")
        extra.write_bytes(b"stale")
        assert artifact.results() == artifact.values
        garbage = find_garbage(artifact.storage, older_than_seconds=0, now=math.inf)
        assert [artifact.storage.root / each.key for each in garbage] == [extra]
        extra.unlink()


def test_r30_a_manifest_of_another_artifact_of_the_kind_is_refused(artifacts: list[Known]) -> None:
    for artifact in artifacts:
        manifest = artifact.files[MANIFEST]
        whole = manifest.read_bytes()
        for other in artifacts:
            if other is not artifact:
                manifest.write_bytes(other.files[MANIFEST].read_bytes())
                with pytest.raises(ArtifactError, match=r"expected an artifact of kind"):
                    artifact.open()
        manifest.write_bytes(whole)


# ----------------------------------------------------------------------------------------------
# Checkpoints: damage to one is no reason to lose the others


class Notes(Progress):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_r30_of_the_checkpoints_the_newest_whole_one_is_resumed_from(tmp_path: Path) -> None:
    layout = stopped_run(tmp_path)
    storage = FolderStorage(Path(layout.storage.url()))
    claims = read_claims(storage, layout.root)
    manifests = [key for key in storage.list(layout.checkpoints) if key.endswith(f"/{MANIFEST}")]
    assert len(manifests) >= 3
    random = np.random.default_rng(SEED)
    for place, manifest in enumerate(reversed(manifests[1:])):
        folder = manifest.removesuffix(f"/{MANIFEST}")
        for key in storage.list(folder):
            path = storage.root / key
            whole = path.read_bytes()
            data = bytearray(whole)
            bit = int(random.integers(8 * (len(data) - 1)))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            progress = Notes()
            found = newest_checkpoint(layout, claims, progress)
            assert found is not None
            assert found.artifact.key < folder, key
            assert found.artifact.verify()
            assert len(progress.notes) == place + 1, "nobody was told"
            path.write_bytes(whole)
        # This one is damaged from now on: the one before must be found, not only the second.
        storage.write(manifest, b"{")
