"""Train a model on prepared data and write what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch

from batchtrain.artifacts import Draft, RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import best_file
from batchtrain.errors import ArtifactError, InterruptedRunError, RankMemoryError, TrainingError
from batchtrain.models.assets import add_assets, read_assets
from batchtrain.models.build import describe_model
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.checkpoints import recorded_machine
from batchtrain.training.choosing import (
    check_can_compile,
    choose_passes,
    fewer_rows,
    record_choices,
    recorded_micro_rows,
)
from batchtrain.training.deciding import Watched, why_ended
from batchtrain.training.launcher import Launcher
from batchtrain.training.lineage import FoundCheckpoint, published_checkpoints
from batchtrain.training.machine import MachineChoices, capability_of, choose_machine
from batchtrain.training.memory import decide_rows
from batchtrain.training.micro_batches import free_memory
from batchtrain.training.owner import RunOwner
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import OneRank
from batchtrain.training.retrying import RetryBudget
from batchtrain.training.shards import ShardReader
from batchtrain.training.state import TrainState

__all__ = ["OneProcess", "train_model"]


class OneProcess:
    """One rank, in this process.

    Attributes:
        restarts: Nothing is started anew here.
    """

    restarts = False

    def __init__(self, shards: ShardReader | None = None) -> None:
        """Take what reads the rows; left out, each training reads them from storage."""
        self._shards = shards

    def choose_machine(self, resources: ResourcesSpec) -> MachineChoices:
        """See `Launcher.choose_machine`."""
        return choose_machine(resources)

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> TrainState:
        """See `Launcher`."""
        return train_rank(
            task, OneRank(), progress, stop_requested, save_last=False, shards=self._shards
        )


def train_model(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    draft: Draft,
    progress: Progress,
    *,
    owner: RunOwner,
    launcher: Launcher | None,
    allow_code: Sequence[str],
    stop_requested: Callable[[], bool],
    pause_after: int | None = None,
) -> Mapping[str, Any]:
    """Train to the end, going on from the newest checkpoint where there is one.

    Returns:
        The manifest's content.

    Raises:
        InterruptedRunError: If a stop was requested; a checkpoint is published then.
        DivergedError: If the loss is no longer a finite number.
    """
    launcher = launcher or OneProcess()
    budget = RetryBudget(loaded.spec.retries)

    def stop_wanted() -> bool:
        # A stop saves, and a fenced writer learns from that who it is fenced by.
        return stop_requested() or owner.ownership.is_fenced

    while True:
        task = _task(loaded, prepared, layout, progress, owner, launcher, allow_code)
        task = replace(task, pause_after=pause_after)
        try:
            state: TrainState = launcher(task, progress, stop_wanted)
            return _write(state, task, draft)
        except InterruptedRunError:
            # Nobody may have asked for it but the process that took the run over.
            owner.check()
            raise
        except TrainingError as error:
            fewer = _fewer_rows(error, task)
            used = budget.take(error) if launcher.restarts and fewer is None else None
            if used is None and fewer is None:
                raise
            if stop_requested():
                raise InterruptedRunError(
                    f"stopped when a rank was lost: {error}. Run the same command again to go on"
                ) from error
            # A new claim fences whatever rank of the last attempt may still be alive.
            owner.claim_again()
            how = f"(retry {used})"
            if fewer is not None:
                record_choices(fewer, layout)
                how = f"with at most {fewer.micro_rows} rows at once on each worker"
            progress.note(f"{error}\n{_goes_on(owner)} {how}")
        # Here what the error held, such as the rows of its step, is no longer held by it.
        free_memory()


def _fewer_rows(error: TrainingError, task: TrainTask) -> MachineChoices | None:
    """The choices with fewer rows at once, where that may help."""
    if not isinstance(error, RankMemoryError):
        return None
    return fewer_rows(task.machine, task.spec, task.plan)


def _task(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    progress: Progress,
    owner: RunOwner,
    launcher: Launcher,
    allow_code: Sequence[str],
) -> TrainTask:
    """What the ranks of one attempt are told."""
    ownership, found = owner.ownership, owner.checkpoint
    choices: MachineChoices = launcher.choose_machine(loaded.spec.resources)
    choices = decide_rows(choices, loaded.spec, prepared)
    task = TrainTask(
        loaded=loaded,
        prepared=prepared,
        layout=layout,
        machine=choices,
        allow_code=tuple(allow_code),
        claim=ownership.epoch,
        token=ownership.token,
        published=tuple(published_checkpoints(layout, ownership.claims)),
        resumed=found.name if found else None,
        digest=found.artifact.manifest.digest if found else "",
        assets=read_assets(loaded),
    )
    if found is None:
        choices, why_not = choose_passes(choices, task.spec, prepared, task.plan, task.inputs)
        if why_not:
            progress.note(why_not)
    # In canonical mode the number of ranks does not show in a single bit.
    exact = {"workers"} if loaded.spec.determinism == "canonical" else set()
    machine, inexact = _machine(choices, layout, found, progress, exact)
    if loaded.spec.resources.rows != "auto":
        # What is asked for now counts, not what was recorded: it shows in no bit.
        machine = replace(machine, rows=choices.rows)
    return replace(task, machine=machine, inexact=tuple(inexact))


def _goes_on(owner: RunOwner) -> str:
    if owner.checkpoint is None:
        return "The training begins anew, since there is no checkpoint yet"
    return f"The training goes on from step {owner.checkpoint.name.step}"


def _machine(
    choices: MachineChoices,
    layout: RunLayout,
    found: FoundCheckpoint | None,
    progress: Progress,
    exact: Container[str],
) -> tuple[MachineChoices, list[dict[str, Any]]]:
    """The choices in force, and what cannot be as it was.

    What can be chosen is chosen as at the first start, whatever the spec says now. What is in
    `exact` may differ without a word.
    """
    if found is None:
        recorded = _first_choices(choices, layout, progress)
    else:
        recorded = recorded_machine(found.artifact)
    machine = replace(choices, **recorded.chosen())
    # Nobody else can have chosen them: the first start did, and memory that ran out.
    choices = replace(choices, micro_rows=recorded.micro_rows, compile=recorded.compile)
    if found is not None:
        machine = replace(machine, micro_rows=recorded_micro_rows(recorded, layout))
    check_can_compile(machine)
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            f"expected a CUDA device, since the run {layout.storage.url(layout.root)} began on "
            "one, found none on this machine. Resume it on a machine that has one"
        )
    if machine.device != choices.device:
        machine = replace(machine, capability=capability_of(machine.device))
    for name, (then, now) in recorded.differences(choices).items():
        if name in exact:
            continue
        progress.note(
            f"{name} is {now!r} here, and the attempt before had {then!r}. What can be chosen "
            "stays as it was; the last bits may differ from an unbroken run where it cannot"
        )
    if found is None:
        return machine, []
    return machine, [
        {"step": found.name.step, "what": name, "then": then, "now": now}
        for name, (then, now) in recorded.differences(machine).items()
        if name not in exact
    ]


def _first_choices(
    choices: MachineChoices, layout: RunLayout, progress: Progress
) -> MachineChoices:
    """The choices of the first start; they are written now if this is it."""
    record = canonical_json(choices.to_json())
    if layout.storage.create(layout.run_record, record):
        return choices
    where = layout.storage.url(layout.run_record)
    try:
        return MachineChoices.from_bytes(layout.storage.read(layout.run_record), where=where)
    except (ArtifactError, FileNotFoundError) as error:
        progress.note(f"nothing is trained yet, so the record of the run begins anew: {error}")
        layout.storage.write(layout.run_record, record)
        return choices


def _write(state: TrainState, task: TrainTask, draft: Draft) -> dict[str, Any]:
    """Write the files of the trained model and return the manifest's content."""
    history = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in state.history)
    for place, kept in enumerate(state.best or [None]):
        weights = dict(kept.weights) if kept else {}
        draft.add(best_file(place), safetensors.torch.save(weights or state.weights()))
    draft.add("last.safetensors", safetensors.torch.save(state.weights()))
    draft.add("history.jsonl", history.encode())
    draft.add_json("run.json", task.machine.to_json())
    draft.add_json("inexact.json", state.inexact)
    draft.add_json("parameters.json", describe_model(state.model))
    add_assets(draft, task.assets)
    return {
        "model": task.spec.model.model_dump(mode="json", exclude={"target", "assets"}),
        "inputs": task.inputs.to_json(),
        "loss": task.loss.name,
        "target_scale": task.target_scale.to_json() if task.target_scale else None,
        "batch_rows": task.plan.batch_rows,
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "ended_by": why_ended(state, task.plan),
        "best_by": Watched.of(task.spec.training).name,
        "best_epochs": [
            {"file": best_file(place), "epoch": kept.epoch, "value": kept.value}
            for place, kept in enumerate(state.best)
        ],
        "left_out_steps": state.left_out.total,
        "rolled_back": state.rolled_back,
        "warm_start": state.warm_start,
        # Weights, moments, schedule and history: equal runs are equal here.
        "state_sha256": state.snapshot().sha256(),
    }
