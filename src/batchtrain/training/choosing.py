"""Choices of a machine that depend on the run: which kernels, and how many rows at once."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace

from torch import nn

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import ArtifactError, TrainingError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.run import CANONICAL_GROUPS, RunSpec
from batchtrain.training.machine import MachineChoices
from batchtrain.training.micro_batches import halved
from batchtrain.training.plan import TrainingPlan

__all__ = [
    "check_can_compile",
    "choose_passes",
    "fewer_rows",
    "record_choices",
    "recorded_micro_rows",
    "seconds_won",
]

WORTH_SECONDS = 60.0
"""Compiling takes about 10 to 25 s on two cores, most of it importing the compiler and building
C++; what is won has to be several times that, since a run may stop early."""

MOST_SECONDS_A_STEP = 1e-2
"""No model that this is for wins more; a run of few steps need not build one to find out."""

SECONDS_A_TENSOR = 35e-6
SECONDS_A_VALUE = 2.5e-9
"""What a compiled step saves, on a CPU core: for each weight tensor a forward, a backward and an
accumulation that nobody dispatches; for each value of a layer's output passes over memory that are
made in one. Measured with an MLP 128-64 on 32 features: 0.21 of 0.43 ms at 32 rows, 0.7 of 2.0 ms
at 1024."""


def choose_passes(
    choices: MachineChoices,
    spec: RunSpec,
    prepared: PreparedData,
    plan: TrainingPlan,
    inputs: ModelInputs,
) -> tuple[MachineChoices, str]:
    """The choices with `compile` and `micro_rows` decided.

    Args:
        choices: Those of the machine.
        spec: What is asked for.
        prepared: The rows.
        plan: The numbers of the run.
        inputs: The widths of the model.

    Returns:
        The choices; and, where `auto` would have compiled and cannot, why, as a sentence.

    Raises:
        TrainingError: If compiled kernels are asked for and cannot be made here.
    """
    asked = spec.training
    micro_rows = None if asked.micro_batch == "auto" else asked.micro_batch
    chosen = replace(choices, micro_rows=micro_rows, compile=asked.compile is True)
    check_can_compile(chosen)
    # What a user's network asks of Python nobody knows, and a GPU was not measured yet.
    is_candidate = spec.model.kind != "custom" and choices.device == "cpu"
    # Compiled kernels hold the share of dropout as a constant.
    is_candidate = is_candidate and not asked.changes_dropout
    if asked.compile != "auto" or not is_candidate or not _may_be_worth(plan):
        return chosen, ""
    # The weights are not what is asked for.
    model = build_model(spec.model, inputs, seed=spec.seed)
    won = plan.last_step * seconds_won(model, min(plan.batch_rows, prepared.num_rows("train")))
    if asked.max_time is not None:
        won = min(won, asked.max_time)
    if won < WORTH_SECONDS:
        return chosen, ""
    missing = _missing(choices.device)
    if missing:
        return chosen, f"the model is not compiled, which would win about {won:.0f} s: {missing}"
    return replace(chosen, compile=True), ""


def seconds_won(model: nn.Module, rows: int) -> float:
    """What compiled kernels save in a step, about; see `SECONDS_A_TENSOR`."""
    weights = [each for each in model.parameters() if each.requires_grad]
    # Of a layer's output each value has a bias.
    width = sum(each.numel() for each in weights if each.ndim == 1)
    return SECONDS_A_TENSOR * len(weights) + SECONDS_A_VALUE * rows * width


def check_can_compile(choices: MachineChoices) -> None:
    """Make sure that compiled kernels can be made where they are in force.

    Raises:
        TrainingError: If there is no compiler.
    """
    missing = _missing(choices.device) if choices.compile else ""
    if missing:
        raise TrainingError(
            f"training.compile: expected a compiler for {choices.device}, since the run is to "
            f"have, or began with, compiled kernels; {missing}"
        )


def fewer_rows(machine: MachineChoices, spec: RunSpec, plan: TrainingPlan) -> MachineChoices | None:
    """The choices after memory ran out; None where no fewer rows at once are possible or allowed.

    Args:
        machine: The choices in force.
        spec: Fixes the number of rows, or leaves it open.
        plan: The numbers of the run.
    """
    if spec.training.micro_batch != "auto":
        return None
    num_parts = CANONICAL_GROUPS if spec.determinism == "canonical" else machine.workers
    batch_rows = min(plan.batch_rows, plan.order.num_rows)
    micro_rows = halved(machine.micro_rows, batch_rows, num_parts)
    if micro_rows is None:
        return None
    return replace(machine, micro_rows=micro_rows)


def record_choices(machine: MachineChoices, layout: RunLayout) -> None:
    """Write down choices that have changed, before anything is trained with them."""
    layout.storage.write(layout.run_record, canonical_json(machine.to_json()))


def recorded_micro_rows(machine: MachineChoices, layout: RunLayout) -> int | None:
    """The rows at once in force: those of a checkpoint, or fewer where memory ran out after it.

    Args:
        machine: The choices of the checkpoint.
        layout: Where the run lies.
    """
    where = layout.storage.url(layout.run_record)
    try:
        record = MachineChoices.from_bytes(layout.storage.read(layout.run_record), where=where)
    except (ArtifactError, FileNotFoundError):
        return machine.micro_rows
    found = [each for each in (machine.micro_rows, record.micro_rows) if each is not None]
    return min(found, default=None)


def _may_be_worth(plan: TrainingPlan) -> bool:
    return plan.last_step * MOST_SECONDS_A_STEP >= WORTH_SECONDS


def _missing(device: str) -> str:
    """What compiled kernels need and this machine lacks, as a sentence; empty where nothing."""
    if device == "cuda":
        has = importlib.util.find_spec("triton") is not None
        return "" if has else "there is no `triton` here. Install it, or set `compile: false`"
    # The names that torch's compiler looks for.
    has = any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))
    return "" if has else "there is no C++ compiler here. Install g++, or set `compile: false`"
