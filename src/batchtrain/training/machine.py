"""Every choice that another machine could make differently: made once, recorded, used again."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from batchtrain.errors import ArtifactError, TrainingError
from batchtrain.models.arithmetic import plain_arithmetic
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.worker import GATHER_ROWS
from batchtrain.version import __version__

__all__ = ["MachineChoices", "capability_of", "choose_machine", "machine_in_force"]


@dataclass(frozen=True)
class MachineChoices:
    """What the bits of a result depend on besides the spec and the rows.

    Attributes:
        device: `cpu` or `cuda`.
        threads: Intra-op threads; their number is part of the rounding.
        fused: Whether the optimizer takes torch's one-kernel step.
        gather_rows: Rows gathered in one go.
        rows: `resident` or `streaming`, or `auto` while that is not decided. It shows in no bit.
        workers: W, the ranks among which the batches are divided.
        capability: The CPU's vector unit, or the GPU's name.
        torch: The version of torch.
        python: The version of Python.
        batchtrain: The version of batchtrain.
        micro_rows: The most rows that a rank differentiates at once; None for all of its part.
        compile: Whether the gradient comes of compiled kernels.
    """

    device: str
    threads: int
    fused: bool
    gather_rows: int
    rows: Literal["auto", "resident", "streaming"]
    workers: int
    capability: str
    torch: str
    python: str
    batchtrain: str
    # Records of versions that had no such choice lack them.
    micro_rows: int | None = None
    compile: bool = False

    def to_json(self) -> dict[str, Any]:
        """The choices as JSON."""
        return asdict(self)

    def chosen(self) -> dict[str, Any]:
        """The choices that any machine can repeat; the others are what it is."""
        return {
            "device": self.device,
            "threads": self.threads,
            "fused": self.fused,
            "gather_rows": self.gather_rows,
            "rows": self.rows,
            "micro_rows": self.micro_rows,
            "compile": self.compile,
        }

    def differences(self, other: MachineChoices) -> dict[str, tuple[Any, Any]]:
        """What differs between two machines and may show in a result: name to both values."""
        mine, theirs = asdict(self), asdict(other)
        return {
            name: (value, theirs[name])
            for name, value in mine.items()
            if value != theirs[name] and name != "rows"
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> MachineChoices:
        """Read `run.json`; raises `ArtifactError` if it is something else."""
        try:
            return cls(**json.loads(data))
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"expected the record of a run in {where}, found something else ({error}). "
                "Delete the run's folder to start it anew"
            ) from error


def choose_machine(resources: ResourcesSpec, *, workers: int = 1) -> MachineChoices:
    """Choose for this machine and this number of ranks.

    Raises:
        TrainingError: If the spec asks for a device that is not there.
    """
    has_cuda = torch.cuda.is_available()
    if resources.device == "cuda" and not has_cuda:
        raise TrainingError(
            "resources.device: expected a CUDA device, found none on this machine. "
            "Use `device: auto` or `device: cpu`"
        )
    device = "cuda" if has_cuda and resources.device != "cpu" else "cpu"
    return MachineChoices(
        device=device,
        threads=resources.cpus_per_worker,
        fused=True,
        gather_rows=GATHER_ROWS,
        rows=resources.rows,
        workers=workers,
        capability=capability_of(device),
        torch=torch.__version__,
        python=platform.python_version(),
        batchtrain=__version__,
    )


@contextmanager
def machine_in_force(choices: MachineChoices) -> Iterator[torch.device]:
    """Set what torch computes with for a block of code, and put it back after it.

    So are the states of torch's random generators: a caller's own draws go on as if nothing ran.
    All this belongs to the process, so a second thread waits until the first is done.
    """
    devices = [torch.cuda.current_device()] if choices.device == "cuda" else []
    if choices.device == "cuda":
        # cuBLAS reads this when it makes its first handle; without it sums differ run by run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # On one CPU thread nothing can differ, and the call imports a second of compilers.
    is_needed = choices.device == "cuda" or choices.threads > 1
    with _one_at_a_time, plain_arithmetic(choices.threads), ExitStack() as stack:
        if is_needed:
            stack.enter_context(_deterministic_algorithms())
        stack.enter_context(torch.random.fork_rng(devices))
        yield torch.device(choices.device)


_one_at_a_time = threading.RLock()


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    was_on = torch.are_deterministic_algorithms_enabled()
    was_lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_lenient)


def capability_of(device: str) -> str:
    """The GPU's name, or the CPU's vector unit."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.backends.cpu.get_cpu_capability())
