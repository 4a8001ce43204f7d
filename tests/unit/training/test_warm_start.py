"""Beginning with the weights of a bundle: which are taken, which begin new, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import Tensor

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import ArtifactError, ArtifactMissingError, TrainingError
from batchtrain.spec.load import LoadedSpec
from tests.support.builders import layout_for, mixed_table, run, spec_for, train_in_parts
from tests.support.ranks import Told

FROZEN = {"epochs": 1, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 1e-12}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that learned something."""
    folder = tmp_path_factory.mktemp("first")
    loaded = spec_for(folder, mixed_table(90), training={"epochs": 3, "batch_size": 16})
    found = run(loaded).bundle
    assert found is not None
    return Path(found.artifact.url)


def warm_spec(
    folder: Path,
    bundle: Path,
    table: pa.Table | None = None,
    *,
    match: str = "all",
    training: dict[str, Any] | None = None,
    **sections: Any,
) -> LoadedSpec:
    """A spec that begins with the bundle's weights, and by default stays with them."""
    folder.mkdir(exist_ok=True)
    start = {"bundle": str(bundle), "match": match}
    return spec_for(
        folder,
        mixed_table(90) if table is None else table,
        training={**FROZEN, **(training or {}), "warm_start": start},
        **sections,
    )


def trained_by(loaded: LoadedSpec, told: Told | None = None) -> TrainedModel:
    from batchtrain.pipeline import run_spec

    found = run_spec(loaded, last="train", progress=told).trained
    assert found is not None
    return found


def weights_in(bundle: Path) -> dict[str, Tensor]:
    data = ModelBundle.open(bundle).artifact.read("model.safetensors")
    return safetensors.torch.load(data)


def last_weights(trained: TrainedModel) -> dict[str, Tensor]:
    return safetensors.torch.load(trained.artifact.read("last.safetensors"))


def test_the_run_begins_with_the_bundles_weights(tmp_path: Path, bundle: Path) -> None:
    told = Told()
    trained = trained_by(warm_spec(tmp_path, bundle), told)
    expected, found = weights_in(bundle), last_weights(trained)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
    done = trained.content["warm_start"]
    assert done == {
        "bundle": ModelBundle.open(bundle).artifact.manifest.digest,
        "taken": len(expected),
        "new": [],
        "unused": [],
        "warning": None,
    }
    assert told.notes == []


def test_its_averages_begin_there_too(tmp_path: Path, bundle: Path) -> None:
    trained = trained_by(warm_spec(tmp_path, bundle, training={"ema": {"decay": 0.999}}))
    for name, value in weights_in(bundle).items():
        torch.testing.assert_close(last_weights(trained)[name], value, rtol=0, atol=1e-9)


def test_weights_that_do_not_fit_are_named_with_their_shapes(tmp_path: Path, bundle: Path) -> None:
    model = {"kind": "mlp", "hidden": [9], "dropout": 0.2}
    with pytest.raises(TrainingError, match=r"all weights.*float32 \[9, .*\(float32 \[8, .*some"):
        trained_by(warm_spec(tmp_path, bundle, model=model))


def test_with_some_those_that_fit_are_taken_and_the_others_are_counted(
    tmp_path: Path, bundle: Path
) -> None:
    # One layer more: the first layer fits, what follows it does not.
    model = {"kind": "mlp", "hidden": [8, 5], "dropout": 0.2}
    trained = trained_by(warm_spec(tmp_path, bundle, match="some", model=model))
    done, expected, found = trained.content["warm_start"], weights_in(bundle), last_weights(trained)
    assert 0 < done["taken"] < len(expected)
    assert done["new"]
    assert set(found) == set(done["new"]) | (set(expected) - set(done["unused"]))
    for name in set(found) - set(done["new"]):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)
    assert done["taken"] == len(found) - len(done["new"])


def test_where_nothing_fits_it_is_a_mistake(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(TrainingError, match=r"at least one weight.*missing.*another bundle"):
        trained_by(warm_spec(tmp_path, bundle, match="some", model={"kind": "linear"}))


def test_which_bundle_it_is_makes_another_run_and_where_it_lies_does_not(
    tmp_path: Path, bundle: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    other = tmp_path / "other"
    other.mkdir()
    second = run(spec_for(other, mixed_table(90), seed=7)).bundle
    assert second is not None
    folder = tmp_path / "spec"
    ids = [
        layout_for(warm_spec(folder, place)).run_id
        for place in (bundle, tmp_path / "copy", Path("../copy"), Path(second.artifact.url))
    ]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert layout_for(warm_spec(folder, bundle, match="some")).run_id not in ids


def test_a_resume_does_not_look_at_its_weights_again(tmp_path: Path, bundle: Path) -> None:
    training = {"epochs": 3, "optimizer": {"kind": "adam", "lr": 0.01}}
    whole = trained_by(warm_spec(tmp_path / "whole", bundle, training=training))
    parts = train_in_parts(warm_spec(tmp_path / "parts", bundle, training=training), [1, 3, 2])
    assert parts.trained is not None
    assert parts.trained.content["state_sha256"] == whole.content["state_sha256"]
    assert parts.trained.content["warm_start"] == whole.content["warm_start"]
    cold = spec_for(tmp_path, mixed_table(90), training={**FROZEN, **training})
    assert trained_by(cold).content["state_sha256"] != whole.content["state_sha256"]


def test_other_categories_are_told(tmp_path: Path, bundle: Path) -> None:
    table = mixed_table(90)
    place = table.column_names.index("pressure")
    renamed = pa.array([text and text.lower() for text in table["pressure"].to_pylist()])
    told = Told()
    trained = trained_by(
        warm_spec(tmp_path, bundle, table.set_column(place, "pressure", renamed)), told
    )
    (note,) = told.notes
    assert note.startswith("the categories of the bundle")
    assert trained.content["warm_start"]["warning"] == note


def test_a_place_without_a_bundle_is_an_error(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        trained_by(warm_spec(tmp_path, tmp_path / "nothing"))
    weights = ModelBundle.open(bundle).artifact.manifest.files["model.safetensors"]
    shutil.copytree(bundle, tmp_path / "damaged")
    path = tmp_path / "damaged" / weights.path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError):
        trained_by(warm_spec(tmp_path, tmp_path / "damaged"))
