"""Files of a user's network: read where the spec lies, within a limit, and handed to the class."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from batchtrain.artifacts import Artifact, Draft
from batchtrain.artifacts.manifest import Manifest
from batchtrain.errors import ArtifactDamagedError, SpecError
from batchtrain.models import assets as reading
from batchtrain.models.assets import add_assets, asset_hashes, assets_of, read_assets
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from tests.support.builders import MemoryStorage, spec_for

INPUTS = ModelInputs(num_numeric=1, cardinalities=(), num_outputs=1)

FILES = {"vocabulary": b'["a", "b"]', "empty": b"", "a.bin": bytes(range(256))}


def spec_with(folder: Path, assets: dict[str, Any], **model: Any) -> LoadedSpec:
    section = {"kind": "custom", "target": "asset_net:Net", "assets": assets, **model}
    return spec_for(folder, model=section)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedSpec:
    (tmp_path / "files").mkdir()
    for name, data in FILES.items():
        (tmp_path / "files" / name).write_bytes(data)
    return spec_with(tmp_path, {name: f"files/{name}" for name in FILES})


def test_files_are_read_from_beside_the_spec_wherever_the_command_runs(
    loaded: LoadedSpec, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert read_assets(loaded) == FILES
    assert asset_hashes(FILES)["a.bin"] == hashlib.sha256(FILES["a.bin"]).hexdigest()


def test_a_model_of_ours_has_none(tmp_path: Path) -> None:
    assert read_assets(spec_for(tmp_path)) == {}


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assets = {"gone": "gone.json", "folder": ".", "pipe": "pipe", "device": "/dev/zero"}
    with pytest.raises(SpecError) as raised:
        read_assets(spec_with(tmp_path, assets))
    text = str(raised.value)
    assert "model.assets.gone  expected a file at 'gone.json', found: No such file" in text
    assert text.count("no regular file") == 3
    assert "4 problems" in text
    assert "spec.yaml:1:" in text


def test_together_they_have_a_limit(loaded: LoadedSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, FILES.values()))
    monkeypatch.setattr(reading, "MAX_ASSET_BYTES", size)
    assert read_assets(loaded) == FILES
    monkeypatch.setattr(reading, "MAX_ASSET_BYTES", size - 1)
    with pytest.raises(SpecError, match=r"in all assets .* the 256 bytes of 'files/a.bin'"):
        read_assets(loaded)


@pytest.mark.parametrize(
    ("assets", "model", "message"),
    [
        ({"../up": "x"}, {}, "letters, digits.*found '../up'"),
        ({"a/b": "x"}, {}, "found 'a/b'"),
        ({".hidden": "x"}, {}, "found '.hidden'"),
        ({"": "x"}, {}, "found ''"),
        ({"a" * 65: "x"}, {}, "64 characters at most"),
        ({"a": 1}, {}, "model.assets.a"),
        ({"a": "x"}, {"params": {"assets": 1}}, "are the same argument of the class"),
    ],
)
def test_a_name_is_one_of_a_file_in_the_bundle(
    tmp_path: Path, assets: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        spec_with(tmp_path, assets, **model)


NET = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, inputs, {arguments}):
        super().__init__(inputs.num_numeric, inputs.num_outputs)
        self.given = dict({given})
        {given}.clear()

    def forward(self, numeric_BF, codes_BC):
        return super().forward(numeric_BF)
"""


@pytest.fixture
def build(tmp_path: Path):
    def build(assets: dict[str, bytes], arguments: str = "assets", given: str = "assets") -> Any:
        (tmp_path / "asset_net.py").write_text(NET.format(arguments=arguments, given=given))
        sys.modules.pop("asset_net", None)
        spec = CustomModel(kind="custom", target="asset_net:Net")
        return build_model(
            spec, INPUTS, seed=1, allow_code=["asset_net"], search=tmp_path, assets=assets
        )

    yield build
    sys.modules.pop("asset_net", None)


def test_the_class_gets_them_as_a_keyword_and_cannot_change_those_of_others(build) -> None:
    given = dict(FILES)
    assert build(given).given == FILES
    assert given == FILES


def test_a_class_that_takes_none_is_told_and_one_without_any_is_not_asked(build) -> None:
    with pytest.raises(SpecError, match=r"unexpected keyword argument 'assets'|'assets'") as raised:
        build(FILES, "depth=1", "{}")
    assert "`assets` where the spec has some" in str(raised.value)
    assert build({}, "depth=1", "{}").given == {}


def test_an_artifact_gives_them_back_and_finds_damage() -> None:
    storage = MemoryStorage()
    draft = Draft(storage, "models/one")
    draft.add("model.safetensors", b"weights")
    add_assets(draft, FILES)
    manifest = Manifest(
        kind="thing", format=1, fingerprint="", inputs={}, content={}, files=dict(draft.files)
    )
    artifact = Artifact(storage=storage, key="models/one", manifest=manifest)

    assert assets_of(artifact) == FILES
    storage.files[f"models/one/{manifest.files['assets/a.bin'].path}"] = bytes(256)
    with pytest.raises(ArtifactDamagedError, match=r"assets/a.bin"):
        assets_of(artifact)
