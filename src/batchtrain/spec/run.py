"""The whole spec: one document, one run."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from batchtrain.spec.base import Name, SpecModel
from batchtrain.spec.data import DataSpec, may_have_rows
from batchtrain.spec.evaluation import EvaluationSpec, ExportSpec, TrackingSpec
from batchtrain.spec.model import MlpModel, ModelSpec
from batchtrain.spec.schedules import PlateauSchedule
from batchtrain.spec.search import SearchSpec
from batchtrain.spec.search_rules import search_mismatches
from batchtrain.spec.task import METRICS_OF_TASK, task_mismatches, watched_mismatches
from batchtrain.spec.training import TrainingSpec

__all__ = [
    "CANONICAL_GROUPS",
    "Determinism",
    "EngineName",
    "ResourcesSpec",
    "RetriesSpec",
    "RunSpec",
    "storage_address_problem",
]

STORES = "s3://, gs:// or az://"
OBJECT_ADDRESS = re.compile(r"(?:s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,62})((?:/[^/]+)*)/?")
NOT_IN_ADDRESS = {
    "@": "an at sign",
    "?": "a question mark",
    "#": "a hash sign",
    ";": "a semicolon",
    "%": "a percent sign",
    "\\": "a backslash",
}


def storage_address_problem(text: str) -> str | None:
    """What is wrong with the address of an object store, as a sentence; None where nothing is.

    The sentence does not repeat the address, which may hold a secret.

    Example:
        >>> storage_address_problem("s3://bucket/runs")
        >>> storage_address_problem("ftp://host/runs")
        'expected a folder or an address with s3://, gs:// or az://, found another address'
    """
    if not text.startswith(("s3://", "gs://", "az://")):
        return f"expected a folder or an address with {STORES}, found another address"
    for character, name in NOT_IN_ADDRESS.items():
        if character in text:
            return (
                f"expected an address such as s3://bucket/runs, found {name} in it. Credentials "
                "and options come from the environment, never from the address"
            )
    address = OBJECT_ADDRESS.fullmatch(text)
    if address is None or not text.isprintable():
        return "expected an address such as s3://bucket/runs, found one that has no such form"
    if {".", ".."} & set(address[2].split("/")):
        return "expected an address such as s3://bucket/runs, found '.' or '..' as a folder of it"
    return None


CANONICAL_GROUPS = 8
"""The groups of a canonical batch, and so the most workers that can share one. Part of the result:
another number is another rounding, and other draws of dropout."""

Determinism = Literal["order", "canonical"]
EngineName = Literal["auto", "embedded", "ray"]


class ResourcesSpec(SpecModel):
    """What the run may use; it never changes which rows a batch holds."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """The ranks of a training. `auto` is 1 where the run needs no Ray; else what the cluster has
    and the batch can feed."""
    cpus_per_worker: int = Field(default=1, ge=1, le=1024)
    """The threads of one worker; they are part of the numerical result."""
    gpus_per_worker: Literal["auto"] | Annotated[int, Field(ge=0, le=1)] = "auto"
    """`auto` is 1 where the cluster has a GPU for each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a CUDA device where there is one."""
    rows: Literal["auto", "resident", "streaming"] = "auto"
    """Whether a worker keeps its rows in memory, or reads them anew in each epoch. `auto` keeps
    them where they fit; the batches are the same."""


class RetriesSpec(SpecModel):
    """How often a training that was cut goes on by itself, by what cut it.

    An error of the model, of the data or of the spec is never tried again.
    """

    lost_worker: int = Field(default=3, ge=0, le=1000)
    """A worker, its node or the controller was lost, or made no progress."""
    out_of_memory: int = Field(default=1, ge=0, le=1000)
    """Memory ran out where fewer rows at once are no way out: `training.micro_batch` is fixed, or
    it was one row already."""


class RunSpec(SpecModel):
    """One spec: from raw rows to a bundle."""

    version: Literal[1]
    """The version of this format."""
    name: Name
    """The run's name: lower-case letters, digits and hyphens."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Of the split, the initial weights, the order of rows and dropout."""
    data: DataSpec
    model: ModelSpec = MlpModel(kind="mlp")
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    export: ExportSpec = ExportSpec()
    engine: EngineName = "auto"
    """What reads and writes rows: this process, or Ray Data over a cluster; the result is the
    same. `auto` takes Ray for large inputs, with several workers sooner."""
    determinism: Determinism = "order"
    """`order`: the same rows in every batch, whatever the number of workers. `canonical`: the same
    bits as well, at the cost of eight smaller steps for each."""
    resources: ResourcesSpec = ResourcesSpec()
    retries: RetriesSpec = RetriesSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: str = Field(default="./runs", min_length=1, max_length=4096)
    """A folder, relative to the spec file, or an address such as s3://bucket/runs."""
    search: SearchSpec | None = None
    """What `batchtrain tune` tries; no other command reads it."""

    @field_validator("storage")
    @classmethod
    def _storage_can_be_opened(cls, storage: str) -> str:
        is_address = "://" in storage or storage.startswith("hf:")
        problem = storage_address_problem(storage) if is_address else None
        if problem:
            raise ValueError(problem)
        return storage

    @model_validator(mode="after")
    def _sections_agree(self) -> RunSpec:
        problems = [
            *self._split_problems(),
            *self._task_problems(),
            *self._resource_problems(),
            *self._change_problems(),
        ]
        if self.search is not None:
            problems += search_mismatches(self.search, self.training, self.data)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _change_problems(self) -> list[str]:
        """What changes while a model trains that it has not."""
        has_no_place = self.model.kind == "linear" or getattr(self.model, "hidden", None) == ()
        if not (self.training.changes_dropout and has_no_place):
            return []
        return ["`training.changes` sets a dropout, but the model has no hidden layer; remove it"]

    def _split_problems(self) -> list[str]:
        """What needs a split that has no rows."""
        if self.data.split is None:
            return []
        rule = self.data.split
        has_fractions = hasattr(rule, "fractions")
        empty = {
            split: f"`data.split.fractions.{split}` is 0{'; give it a share' * (split == 'valid')}"
            if has_fractions
            else f"`data.split` names no rows for {split}; name them"
            for split in ("valid", "test")
            if not may_have_rows(rule, split)
        }
        problems = []
        if "valid" in empty and isinstance(self.training.schedule, PlateauSchedule):
            problems.append(
                "`training.schedule: plateau` follows the validation loss, "
                f"but {empty['valid']}, or use a step schedule"
            )
        if "valid" in empty and self.training.early_stopping is not None:
            problems.append(
                "`training.early_stopping` follows the validation loss, "
                f"but {empty['valid']}, or remove it"
            )
        if "valid" in empty and self.training.checkpoint.keep_best > 1:
            problems.append(
                "`training.checkpoint.keep_best` ranks the epochs by the validation split, "
                f"but {empty['valid']}, or keep one"
            )
        if "test" in empty and self.evaluation.require:
            problems.append(
                f"`evaluation.require` is checked on the test split, but {empty['test']}"
            )
        return problems

    def _resource_problems(self) -> list[str]:
        """Resources that contradict each other or the engine."""
        problems = []
        workers = 1 if self.resources.workers == "auto" else self.resources.workers
        if self.engine == "embedded" and workers > 1:
            problems.append(
                f"`resources.workers` is {workers}, but `engine: embedded` has one "
                "worker; use `engine: auto` or `ray`, or one worker"
            )
        if self.determinism == "canonical" and workers > CANONICAL_GROUPS:
            problems.append(
                f"`resources.workers` is {workers}, but `determinism: canonical` divides each "
                f"batch among {CANONICAL_GROUPS} at most; use fewer"
            )
        if self.resources.gpus_per_worker == 1 and self.resources.device == "cpu":
            problems.append(
                "`resources.gpus_per_worker` is 1, but `resources.device` is cpu; remove one"
            )
        return problems

    def _task_problems(self) -> list[str]:
        """What does not suit a declared task."""
        task = self.data.task
        if task == "auto":
            known = [name for names in METRICS_OF_TASK.values() for name in names]
            return [
                f"`{key}`: {message}; {hint[0].lower()}{hint[1:]}"
                for key, message, hint in watched_mismatches(self.training, known)
            ]
        problems = [
            f"`{key}`: {message}; {hint[0].lower()}{hint[1:]}"
            for key, message, hint in task_mismatches(self.training, self.evaluation, task)
        ]
        if task == "regression" and self.data.split and self.data.split.kind == "stratified":
            problems.append("`data.split: stratified` needs classes; use random for regression")
        return problems
