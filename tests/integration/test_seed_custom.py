"""What a user's own code may do: steps of a network (4.8), its files (4.15), and rows (2.1)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch

from batchtrain.errors import SpecError
from batchtrain.export.verify import verify
from batchtrain.prediction.loaded import load_bundle
from batchtrain.scoring import CustomCode
from tests.support.runs import FinishedRun, finish

WriteSpec = Callable[[str], Path]

STEPS = '''
import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(size, 3) for size in inputs.cardinalities)
        width = inputs.num_numeric + 3 * len(inputs.cardinalities)
        self.layers = nn.Sequential(
            nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, inputs.num_outputs)
        )

    def forward(self, numeric_BF, codes_BC):
        embedded = [each(codes) for each, codes in zip(self.embed, codes_BC.unbind(1))]
        return self.layers(torch.cat([numeric_BF, *embedded], dim=1))


class OwnLoss(Plain):
    def loss(self, outputs_BK, batch):
        return F.cross_entropy(outputs_BK, batch.target_B, reduction="none")


class OwnStep(Plain):
    def train_step(self, batch):
        outputs_BK = self(batch.numeric_BF, batch.codes_BC)
        return F.cross_entropy(outputs_BK, batch.target_B, reduction="none")

    def valid_step(self, batch):
        outputs_BK = self(batch.numeric_BF, batch.codes_BC)
        return outputs_BK, F.cross_entropy(outputs_BK, batch.target_B, reduction="none")


class Mixup(Plain):
    """Rows mixed with others of their batch (Zhang et al. 2018, arXiv 1710.09412)."""

    def train_step(self, batch):
        share = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(len(batch.target_B))
        numeric_BF = share * batch.numeric_BF + (1 - share) * batch.numeric_BF[other]
        outputs_BK = self(numeric_BF, batch.codes_BC)
        own_B = F.cross_entropy(outputs_BK, batch.target_B, reduction="none")
        other_B = F.cross_entropy(outputs_BK, batch.target_B[other], reduction="none")
        return share * own_B + (1 - share) * other_B

    def valid_step(self, batch):
        outputs_BK = self(batch.numeric_BF, batch.codes_BC)
        return outputs_BK, 2 + F.cross_entropy(outputs_BK, batch.target_B, reduction="none")
'''


def test_seed_4_8_train_and_valid_steps_of_ones_own(tmp_path: Path, write_spec: WriteSpec) -> None:
    (tmp_path / "seed_steps.py").write_text(STEPS)
    spec = write_spec(
        "name: steps\n"
        "data: {source: 'sample:drug200', target: Drug}\n"
        "model: {kind: custom, target: 'seed_steps:Plain'}\n"
        "training: {epochs: 4, batch_size: 16}\n"
    )

    def trained(name: str) -> FinishedRun:
        target = f"model.target=seed_steps:{name}"
        return finish(spec, target, last="train", allow_code=["seed_steps"])

    runs = {name: trained(name) for name in ("Plain", "OwnLoss", "OwnStep", "Mixup")}

    # A step that is the built-in one changes not a bit, and no name.
    expected = runs["Plain"].trained.artifact.read("last.safetensors")
    for name in ("OwnLoss", "OwnStep"):
        assert runs[name].trained.artifact.read("last.safetensors") == expected
        for own, built_in in zip(runs[name].history[1:], runs["Plain"].history[1:], strict=True):
            assert own == pytest.approx(built_in, rel=1e-6)
    # One that differs does.
    mixed = runs["Mixup"]
    assert mixed.weights("last").keys() == safetensors.torch.load(expected).keys()
    assert mixed.trained.artifact.read("last.safetensors") != expected
    difference = mixed.history[0]["valid_loss"] - runs["Plain"].history[0]["valid_loss"]
    assert difference == pytest.approx(2)
    assert mixed.history[0]["valid_accuracy"] == runs["Plain"].history[0]["valid_accuracy"]
    assert mixed.history[-1]["train_loss"] != runs["Plain"].history[-1]["train_loss"]
    assert mixed.history[-1]["valid_loss"] < mixed.history[0]["valid_loss"]


READER = '''
import json

from torch import nn
import torch


class Weighted(nn.Module):
    """Multiplies the features by what a file says."""

    def __init__(self, inputs, scale, assets):
        super().__init__()
        factors = json.loads(assets["factors"])
        self.note = assets["note.txt"].decode()
        self.register_buffer("factors", scale * torch.tensor(factors), persistent=False)
        self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        return self.linear(self.factors * numeric_BF)
'''


def test_seed_4_15_files_of_a_model_are_part_of_its_bundle(
    tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bundle's class is looked for where the command is given.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed_reader.py").write_text(READER)
    (tmp_path / "files").mkdir()
    factors, note = tmp_path / "files" / "factors.json", tmp_path / "files" / "a note"
    factors.write_text(json.dumps([3.0]))
    note.write_text("of three")
    spec = write_spec(
        "name: assets\n"
        "data: {source: 'sample:linear', target: y}\n"
        "model:\n"
        "  kind: custom\n"
        "  target: seed_reader:Weighted\n"
        "  params: {scale: 0.5}\n"
        "  assets: {factors: files/factors.json, note.txt: files/a note}\n"
        "training: {epochs: 3}\n"
    )
    allowed = {"allow_code": ["seed_reader"]}

    run = finish(spec, **allowed)
    elsewhere = shutil.copytree(run.bundle_folder, tmp_path / "away" / "bundle")
    rows = {"x": [0.0, 0.5, 1.0]}
    code = {"model": "seed_reader:Weighted", **allowed}
    expected = load_bundle(run.bundle_folder, **code).predict(rows)
    # The same bytes at another place are the same run; other bytes are another.
    factors.rename(tmp_path / "moved.json")
    moved = "model.assets.factors=moved.json"
    assert set(finish(spec, moved, **allowed).statuses.values()) == {"reused"}
    (tmp_path / "moved.json").write_text(json.dumps([30.0]))
    other = finish(spec, moved, last="train", **allowed)
    shutil.rmtree(tmp_path / "files")
    (tmp_path / "moved.json").unlink()

    assert other.result.run != run.result.run
    assert other.history[0] != run.history[0]
    # Nothing but the bundle is left, wherever it was copied to.
    copied = load_bundle(elsewhere, **code)
    pd.testing.assert_frame_equal(copied.predict(rows), expected)
    assert expected["prediction"].nunique() == 3
    files = {name for name in run.bundle.artifact.manifest.files if name.startswith("assets/")}
    assert files == {"assets/factors", "assets/note.txt"}
    assert verify(run.bundle, CustomCode("seed_reader:Weighted", ["seed_reader"], tmp_path)).rows
    with pytest.raises(SpecError, match=r"(?s)a file at 'moved.json'.*'files/a note'"):
        finish(spec, moved, **allowed)


ROWS = '''
import torch
from torch.utils.data import Dataset, IterableDataset

PASSES = []


class Numbers(Dataset):
    """Rows by their place, each through a transform."""

    def __init__(self, rows, factor=2.0):
        self.x = torch.linspace(0, 1, rows, dtype=torch.float64)
        self.factor = factor

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        PASSES.append(place)
        x = self.transform(self.x[place])
        return {"x": x, "group": "ab"[place % 2], "y": 3 * x + (place % 2)}

    def transform(self, x):
        return self.factor * x


class Stream(IterableDataset):
    """The same rows, one after the other, as a generator gives them."""

    def __init__(self, rows, factor=2.0):
        self.numbers = Numbers(rows, factor)

    def __iter__(self):
        for place in range(len(self.numbers)):
            row = self.numbers[place]
            yield {"x": float(row["x"]), "group": row["group"], "y": row["y"].numpy()}
'''


def test_seed_2_1_map_and_iterable_data_sets_with_transforms(
    tmp_path: Path, write_spec: WriteSpec
) -> None:
    (tmp_path / "seed_rows.py").write_text(ROWS)
    spec = write_spec(
        "name: own-rows\n"
        "data:\n"
        "  source: custom:seed_rows:Numbers\n"
        "  params: {rows: 120}\n"
        "  target: y\n"
        "  columns: {x: {kind: numeric, scale: none}}\n"
        "training: {epochs: 3, batch_size: 16}\n"
    )
    allowed = {"allow_code": ["seed_rows"]}

    with pytest.raises(SpecError, match=r"'seed_rows' is not allowed to run here.*--allow-code"):
        finish(spec)
    mapped = finish(spec, **allowed)
    again = finish(spec, **allowed)
    streamed = finish(spec, "data.source=custom:seed_rows:Stream", last="train", **allowed)
    scaled = finish(spec, "data.params.factor=4.0", last="prepare", **allowed)

    # The rows are what the transform made of them.
    rows = mapped.prepared.load("train")
    assert rows.numeric[:, 0] == pytest.approx(2 * rows.row_id / 119)
    assert rows.target == pytest.approx(6 * rows.row_id / 119 + rows.row_id % 2)
    assert sum(len(mapped.row_ids(split)) for split in ("train", "valid", "test")) == 120
    assert scaled.prepared.load("train").numeric.max() == pytest.approx(2 * rows.numeric.max())
    # One class or the other, they are the same rows; so is the model.
    weights = mapped.trained.artifact.read("last.safetensors")
    assert streamed.trained.artifact.read("last.safetensors") == weights
    # The rows are looked at in each call, and nothing is made again for the same ones.
    assert set(again.statuses.values()) == {"reused"}
    assert mapped.model.predict({"x": [1.0], "group": ["a"]})["prediction"].notna().all()

    # Other code is another input, even where its rows are the same.
    source = "data.source=custom:seed_rows_edited:Numbers"
    edited = tmp_path / "seed_rows_edited.py"
    edited.write_text(ROWS + "\n# edited\n")
    other = finish(spec, source, last="prepare", allow_code=["seed_rows_edited"])
    assert other.prepared.artifact.url != mapped.prepared.artifact.url
    with pytest.raises(SpecError, match=r"expected auto or embedded for a source that is a class"):
        finish(spec, "engine=ray", last="prepare", **allowed)
    with pytest.raises(SpecError, match=r"is called as Numbers\(\*\*params\)"):
        finish(spec, "data.params.depth=1", last="prepare", **allowed)
