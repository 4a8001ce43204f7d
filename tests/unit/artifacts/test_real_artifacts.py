"""Every file of every kind of artifact that a run makes: damage is found before use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchtrain.artifacts import Artifact, open_artifact
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.bundle import MODEL_BUNDLE
from batchtrain.artifacts.prepared import PREPARED_DATA
from batchtrain.artifacts.report import EVALUATION_REPORT
from batchtrain.artifacts.trained import TRAINED_MODEL
from batchtrain.errors import ArtifactDamagedError, ArtifactError
from batchtrain.export.verify import verify
from batchtrain.storage import local_folder

KINDS = {
    "prepared": PREPARED_DATA,
    "trained": TRAINED_MODEL,
    "report": EVALUATION_REPORT,
    "bundle": MODEL_BUNDLE,
}


def artifacts_of(finished: Any) -> Iterator[tuple[str, Artifact]]:
    for name in KINDS:
        yield name, getattr(finished.result, name).artifact


def folder_of(artifact: Artifact) -> Path:
    folder = local_folder(artifact.storage)
    assert folder is not None
    return folder / artifact.key


def test_an_artifact_is_the_same_value_made_or_read(finished: Any) -> None:
    for name, artifact in artifacts_of(finished):
        read = open_artifact(artifact.storage, artifact.key, KINDS[name])
        assert read.manifest == artifact.manifest, name
        assert read.verify() == len(artifact.manifest.files) > 0


def test_nothing_lies_in_a_published_folder_that_the_manifest_does_not_name(finished: Any) -> None:
    for name, artifact in artifacts_of(finished):
        folder = folder_of(artifact)
        found = {
            each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()
        }
        assert found == {MANIFEST, *(entry.path for entry in artifact.manifest.files.values())}, (
            name
        )


def test_no_artifact_holds_pickled_bytes(finished: Any) -> None:
    endings = {".json", ".jsonl", ".parquet", ".safetensors", ".html", ".md", ".yaml"}
    for _name, artifact in artifacts_of(finished):
        assert {Path(name).suffix for name in artifact.manifest.files} <= endings
        for name in artifact.manifest.files:
            assert not artifact.read(name).startswith((b"\x80", b"PK"))


def test_no_manifest_tells_of_the_moment_the_machine_or_the_place(finished: Any) -> None:
    place = str(finished.loaded.path.parent)
    for _name, artifact in artifacts_of(finished):
        text = (folder_of(artifact) / MANIFEST).read_text()
        assert place not in text
        assert "seconds" not in text


def test_g5_a_flipped_bit_in_any_file_is_found_when_it_is_read(
    copied: Callable[[], Any],
) -> None:
    random = np.random.default_rng(0)
    for _kind, artifact in artifacts_of(copied()):
        for name, entry in artifact.manifest.files.items():
            path = folder_of(artifact) / entry.path
            whole = path.read_bytes()
            for _ in range(5):
                data = bytearray(whole)
                data[random.integers(len(whole))] ^= 1 << random.integers(8)
                path.write_bytes(data)
                with pytest.raises(ArtifactDamagedError, match=name):
                    artifact.read(name)
            path.write_bytes(whole)
        assert artifact.verify()


def test_g5_a_flipped_bit_in_a_manifest_is_found_when_it_is_opened(
    copied: Callable[[], Any],
) -> None:
    random = np.random.default_rng(1)
    for kind, artifact in artifacts_of(copied()):
        path = folder_of(artifact) / MANIFEST
        whole = path.read_bytes()
        for place in random.integers(0, 8 * len(whole), 100):
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(data)
            try:
                found = open_artifact(artifact.storage, artifact.key, KINDS[kind])
            except ArtifactError:
                continue
            # A bit that changes no value, such as in a space, may pass.
            assert found.manifest == artifact.manifest
        path.write_bytes(whole)


def test_verify_finds_every_changed_file_of_a_bundle(copied: Callable[[], Any]) -> None:
    bundle = copied().result.bundle
    assert verify(bundle).exact
    for name, entry in bundle.artifact.manifest.files.items():
        path = folder_of(bundle.artifact) / entry.path
        whole = path.read_bytes()
        for changed in (whole[:-1], whole + b" ", b"", bytes([whole[0] ^ 1]) + whole[1:]):
            path.write_bytes(changed)
            with pytest.raises(ArtifactDamagedError, match=name):
                verify(bundle)
        path.unlink()
        with pytest.raises(ArtifactDamagedError, match=name):
            verify(bundle)
        path.write_bytes(whole)
    found = verify(bundle)
    assert found.files == len(bundle.artifact.manifest.files)
    assert found.rows == 64
