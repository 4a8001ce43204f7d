"""A run that is over, as the acceptance tests look at it."""

from __future__ import annotations

import html
import json
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.pipeline import RunResult, StageName, run_spec
from batchtrain.prediction.loaded import LoadedBundle, load_bundle
from batchtrain.spec.load import LoadedSpec, load_spec

__all__ = ["SPECS", "FinishedRun", "event_files", "finish", "open_writers", "read_json", "scalars"]

SPECS = Path(__file__).resolve().parents[2] / "jobs" / "specs"


@dataclass(frozen=True)
class FinishedRun:
    """A run and all that it left; what a stage did not make fails when it is asked for."""

    loaded: LoadedSpec
    result: RunResult

    @property
    def folder(self) -> Path:
        return Path(self.result.run_dir)

    @property
    def statuses(self) -> dict[str, str]:
        return {stage.name: stage.status for stage in self.result.stages}

    @property
    def prepared(self) -> PreparedData:
        assert self.result.prepared is not None
        return self.result.prepared

    @property
    def trained(self) -> TrainedModel:
        assert self.result.trained is not None
        return self.result.trained

    @property
    def report(self) -> EvaluationReport:
        assert self.result.report is not None
        return self.result.report

    @property
    def bundle_folder(self) -> Path:
        assert self.result.bundle is not None
        return Path(self.result.bundle.artifact.url)

    @property
    def bundle(self) -> ModelBundle:
        return ModelBundle.open(self.bundle_folder)

    @cached_property
    def model(self) -> LoadedBundle:
        return load_bundle(self.bundle_folder)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One record an epoch, epoch 0 first."""
        return self.trained.history()

    @cached_property
    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """Column to what was fitted for it."""
        columns = self.prepared.preprocessing_state()["columns"]
        return {column["name"]: column for column in columns}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        return self.report.metrics

    @cached_property
    def page(self) -> str:
        """The report as text, with the entities of HTML resolved."""
        return html.unescape((self.folder / "report.html").read_text())

    @property
    def events(self) -> Path:
        return self.folder / "tensorboard"

    def weights(self, which: str = "best") -> dict[str, Tensor]:
        """The weights of the `best` or the `last` epoch."""
        return safetensors.torch.load(self.trained.artifact.read(f"{which}.safetensors"))

    def fresh_model(self) -> nn.Module:
        """The model as it was before the first step."""
        inputs = ModelInputs.from_json(self.trained.content["inputs"])
        return build_model(self.loaded.spec.model, inputs, seed=self.loaded.spec.seed)

    def learned_model(self, which: str = "best") -> nn.Module:
        """A model built anew that holds the learned weights, in evaluation mode."""
        model = self.fresh_model()
        model.load_state_dict(self.weights(which))
        return model.eval()

    def tensors(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """The prepared rows of a split: numeric features, codes, targets."""
        rows = self.prepared.load(split)
        target = torch.from_numpy(rows.target.copy())
        if target.is_floating_point():
            target = target.float()
        return torch.from_numpy(rows.numeric.copy()), torch.from_numpy(rows.codes.copy()), target

    def row_ids(self, split: str) -> npt.NDArray[np.int64]:
        return self.prepared.load(split).row_id

    def class_names(self, split: str) -> list[str]:
        """The true class of each row of a split, by name."""
        names = self.prepared.preprocessing_state()["target"]["classes"]
        return [names[code] for code in self.prepared.load(split).target]

    def predictions(self, split: str) -> pa.Table:
        """What evaluation predicted for each row of a split."""
        name = f"predictions/{split}.parquet"
        return table_from_bytes(self.report.artifact.read(name), where=name)

    def changes(self, what: str) -> dict[str, int]:
        """Column (or `rows`) to how often it was `dropped`, `filled`, ..., as the report says."""
        changes = self.prepared.profile()["changes"]
        return {change["where"]: change["count"] for change in changes if change["what"] == what}


def finish(spec: Path, *overrides: str, last: StageName = "export", **allowed: Any) -> FinishedRun:
    """Run a spec file up to and with a stage."""
    loaded = load_spec(spec, overrides)
    return FinishedRun(loaded, run_spec(loaded, last=last, **allowed))


def event_files(folder: Path) -> list[Path]:
    """The TensorBoard event files right in a folder."""
    return sorted(folder.glob("events.out.tfevents.*"))


def open_writers() -> set[int]:
    """The threads that still write event files; closing a writer ends its thread."""
    return {
        thread.ident or 0
        for thread in threading.enumerate()
        if type(thread).__module__.startswith("tensorboard")
    }


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Step and value of every event of a tag, as TensorBoard reads them; none are thinned out."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
