"""What a command would do with a spec: rows, steps, memory, time, where. It starts nothing.

The numbers come from the same code as those of a run, so that they cannot differ from them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch

from batchtrain.artifacts import Artifact, RunLayout, find_artifact
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import TRAINED_MODEL
from batchtrain.engines.choice import choose_engine
from batchtrain.engines.session import ClusterResources
from batchtrain.errors import ClusterError, TrainingError
from batchtrain.models.assets import read_assets
from batchtrain.preparation.prepare import planned_content
from batchtrain.preparation.stage import (
    find_prepared,
    opened_input,
    refuse_storage_in_input,
    survey_input,
)
from batchtrain.preparation.survey import Survey
from batchtrain.spec.data import SPLITS
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import CANONICAL_GROUPS
from batchtrain.storage import Storage, open_storage
from batchtrain.tables import Source
from batchtrain.training.choosing import choose_passes
from batchtrain.training.machine import MachineChoices, choose_machine, machine_in_force
from batchtrain.training.memory import available_bytes, decide_rows, resident_bytes
from batchtrain.training.placement import Placement, place_workers
from batchtrain.training.rank import TrainTask
from batchtrain.training.stage import run_layout
from batchtrain.tuning.outline import SearchOutline
from batchtrain.tuning.shapes import START_SECONDS
from batchtrain.tuning.timing import StepTimes, time_steps

__all__ = ["SOURCE_OF_TIME", "PlannedRun", "plan_document", "plan_run"]

SOURCE_OF_TIME = (
    "an estimate from {steps} steps with random rows on this machine, without compiled kernels, "
    "reading, starting and reporting"
)


class PlannedRun:
    """A spec held against its rows and this machine, with nothing started.

    Attributes:
        loaded: The spec.
        task: What a rank would be told.
        content: What is known of the prepared rows.
        dropped: The rows of the input that are in no split.
        published: Of `prepare` and `train`, which are published already.
        engine: Which engine reads the rows, and why.
        workers: How many ranks would train, and why.
    """

    def __init__(
        self, loaded: LoadedSpec, prepared: PreparedData, machine: MachineChoices, source: Source
    ) -> None:
        """Put together what `plan_run` has found."""
        self.loaded = loaded
        self.content = prepared.content
        self.dropped = self.content["input_rows"] - sum(prepared.num_rows(s) for s in SPLITS)
        self.published: set[str] = set()
        self.engine = choose_engine(
            loaded.spec.engine,
            input_bytes=sum(file.size for file in source.files),
            workers=loaded.spec.resources.workers,
        )
        # Nothing is written, so there is no need of a place to write to.
        nowhere = RunLayout(cast(Storage, None), loaded.spec.name, "")
        task = TrainTask(loaded, prepared, nowhere, machine, (), 0, "", assets=read_assets(loaded))
        self.workers = _workers(task, self.engine.name)
        machine = replace(machine, workers=self.workers.workers)
        machine = decide_rows(machine, loaded.spec, prepared)
        machine, self.why_not_compiled = choose_passes(
            machine, loaded.spec, prepared, task.plan, task.inputs
        )
        self.task = replace(task, machine=machine)


def plan_run(
    loaded: LoadedSpec, *, allow_code: Sequence[str] = (), storage: Storage | None = None
) -> PlannedRun:
    """Look at the input of a spec, and decide all that a run would decide.

    The rows are looked at once more where they are not prepared yet, to learn the widths of the
    model. Nothing is written, and no Ray is started.

    Args:
        loaded: The spec.
        allow_code: Packages whose code may run.
        storage: Left out, what the spec names.

    Raises:
        SpecError: If the spec does not suit the table.
        DataError: If the rows cannot be used.
        TrainingError: If the model cannot be built.
    """
    storage = storage or open_storage(loaded.spec.storage, loaded.path.parent)
    refuse_storage_in_input(loaded, storage)
    machine = _machine_here(loaded)
    with opened_input(loaded, allow_code) as source:
        prepared = find_prepared(loaded, storage, source)
        is_there = prepared is not None
        if prepared is None:
            prepared = _planned(survey_input(loaded, source))
        run = PlannedRun(loaded, prepared, machine, source)
    run.task = replace(run.task, allow_code=tuple(allow_code))
    if is_there:
        run.published.add("prepare")
        layout = run_layout(loaded, prepared, storage)
        if find_artifact(storage, layout.model, TRAINED_MODEL) is not None:
            run.published.add("train")
    return run


def plan_document(run: PlannedRun, search: SearchOutline | None = None) -> dict[str, Any]:
    """What `plan --json` prints.

    Args:
        run: What `plan_run` gave.
        search: What a search of the spec would try, where it has that section.
    """
    task, plan = run.task, run.task.plan
    machine, prepared = task.machine, task.prepared
    times, no_time = _times(task)
    rows = {split: prepared.num_rows(split) for split in SPLITS}
    measured_rows = sum(rows[split] for split in task.measured)
    seconds = None
    if times is not None and not no_time:
        seconds = _seconds(times, plan.last_step, plan.epochs, measured_rows)
    document: dict[str, Any] = {
        "spec": str(run.loaded.path),
        "name": run.loaded.spec.name,
        "published": sorted(run.published),
        "task": prepared.task,
        "rows": {**rows, "dropped": run.dropped, "input": run.content["input_rows"]},
        "features": {"numeric": prepared.num_numeric, "categorical": len(prepared.cardinalities)},
        "batches": {
            "rows": plan.batch_rows,
            "per_epoch": plan.steps_per_epoch,
            "epochs": plan.epochs,
            "steps": plan.last_step,
            "lanes": prepared.lanes,
        },
        "model": {
            "kind": run.loaded.spec.model.kind,
            "parameters": times.parameters if times else None,
            "trained": times.trained if times else None,
        },
        "memory": {
            "rows": sum(resident_bytes(task.spec, prepared, machine.workers, machine.gather_rows)),
            "model": times.model_bytes if times else None,
            "available": available_bytes(machine.device),
            "kept": machine.rows,
        },
        "engine": {"name": run.engine.name, "why": run.engine.why},
        "workers": {"count": run.workers.workers, "why": run.workers.why},
        "device": machine.device,
        "compile": machine.compile,
        "time": {
            "seconds": seconds,
            "step_seconds": times.step_seconds if times and not no_time else None,
            "source": no_time or SOURCE_OF_TIME.format(steps=times.steps if times else 0),
        },
        "notes": _notes(run),
        "search": None if search is None else search.to_json(),
    }
    if search is not None:
        document["search"]["seconds"] = None
        if seconds is not None and search.run_lengths is not None:
            taken = seconds * search.run_lengths + START_SECONDS * search.starts
            document["search"]["seconds"] = taken
    return document


def _planned(found: Survey) -> PreparedData:
    """Prepared data as they will be; there are no rows in them yet."""
    manifest = SimpleNamespace(content=planned_content(found), fingerprint="")
    return PreparedData(cast(Artifact, SimpleNamespace(manifest=manifest)))


def _machine_here(loaded: LoadedSpec) -> MachineChoices:
    """The choices for this machine; a device that only another one has is taken as given."""
    resources = loaded.spec.resources
    try:
        return choose_machine(resources)
    except TrainingError:
        here = choose_machine(resources.model_copy(update={"device": "cpu"}))
        return replace(here, device=str(resources.device), capability="")


def _workers(task: TrainTask, engine: str) -> Placement:
    """The ranks as if this machine were the whole cluster."""
    resources, plan = task.spec.resources, task.plan
    cluster = ClusterResources(
        cpus=os.cpu_count() or 1,
        gpus=torch.cuda.device_count(),
        nodes=1,
        most_cpus=os.cpu_count() or 1,
    )
    each = resources.cpus_per_worker
    if engine == "embedded" and resources.workers == "auto":
        return Placement(1, each, 0, "1 worker, in this process, as no cluster is joined")
    try:
        return place_workers(
            resources,
            cpus=cluster.cpus,
            gpus=cluster.gpus,
            most_cpus=cluster.most_cpus,
            batch_rows=plan.batch_rows,
            num_rows=plan.order.num_rows,
            most=CANONICAL_GROUPS if task.spec.determinism == "canonical" else None,
        )
    except ClusterError as error:
        asked = 1 if resources.workers == "auto" else resources.workers
        return Placement(asked, each, 0, f"as asked; not on this machine alone: {error}")


def _times(task: TrainTask) -> tuple[StepTimes | None, str]:
    """What was measured, and why it tells nothing of the time of a run; empty where it does."""
    missing = ""
    machine = replace(task.machine, workers=1, compile=False)
    if machine.device == "cuda" and not torch.cuda.is_available():
        missing = "there is no estimate, since this machine has no CUDA device"
        machine = replace(machine, device="cpu")
    try:
        with machine_in_force(machine):
            return time_steps(replace(task, machine=machine)), missing
    except TrainingError:
        if not missing:
            raise
        # Such as a precision that this machine has not either.
        return None, missing


def _seconds(times: StepTimes, steps: int, epochs: int, measured_rows: int) -> float:
    return steps * times.step_seconds + epochs * measured_rows * times.measured_row_seconds


def _notes(run: PlannedRun) -> list[str]:
    plan, lanes = run.task.plan, run.task.prepared.lanes
    notes = [run.why_not_compiled] if run.why_not_compiled else []
    if run.task.machine.compile:
        notes.append(
            "the model is compiled first, for 10 to 25 s, and its steps are faster than estimated"
        )
    if run.workers.workers > 1:
        notes.append("the time is that of one worker; several divide each batch among them")
        if lanes > 1 and plan.batch_rows % lanes:
            notes.append(
                f"a batch of {plan.batch_rows:,} rows is not the same number of rows from each of "
                f"the {lanes} lanes, so the workers' parts differ by a few rows"
            )
    return notes
