"""Whether the rows of the ranks stay in memory, or are read anew in each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.spec.run import CANONICAL_GROUPS, RunSpec
from batchtrain.training.gradients import held_groups
from batchtrain.training.machine import MachineChoices
from batchtrain.training.plan import row_order
from batchtrain.training.rows import Columns, held_blocks, held_rows, measured_splits

__all__ = ["available_bytes", "choose_rows", "decide_rows", "resident_bytes"]

RESIDENT_SHARE = 0.4
"""Of the memory that is there: the model, its gradients and the caller need some too."""


def choose_rows(
    asked: Literal["auto", "resident", "streaming"], needed: int, available: int | None
) -> Literal["resident", "streaming"]:
    """What is asked for; with `auto`, resident where the rows take less than 40 % of the memory.

    Args:
        asked: `resources.rows`.
        needed: The bytes of the rows of all ranks that share the memory.
        available: The bytes that are there; None where nobody knows, and the rows stay then.

    Example:
        >>> choose_rows("auto", 3_000, 10_000), choose_rows("auto", 5_000, 10_000)
        ('resident', 'streaming')
    """
    if asked != "auto":
        return asked
    fits = available is None or needed < RESIDENT_SHARE * available
    return "resident" if fits else "streaming"


def decide_rows(
    choices: MachineChoices, spec: RunSpec, prepared: PreparedData, *, available: int | None = None
) -> MachineChoices:
    """The choices with `rows` decided, as if all ranks shared the memory of this machine.

    Args:
        choices: With `rows` as the spec asks.
        spec: Names the splits that are measured, and whether batches are divided canonically.
        prepared: The rows.
        available: The bytes that the ranks have; those of this machine by default.
    """
    if choices.rows != "auto":
        return choices
    if available is None:
        available = available_bytes(choices.device)
    needed = sum(resident_bytes(spec, prepared, choices.workers, choices.gather_rows))
    return replace(choices, rows=choose_rows(choices.rows, needed, available))


def resident_bytes(
    spec: RunSpec, prepared: PreparedData, workers: int, gather_rows: int
) -> list[int]:
    """What the rows of each rank take: its lanes, and its blocks of what is measured."""
    order = row_order(prepared, seed=spec.seed)
    row_bytes = Columns.of(prepared).row_bytes
    found = []
    for rank in range(workers):
        if spec.determinism == "canonical":
            parts, num_parts = held_groups(workers, rank), CANONICAL_GROUPS
        else:
            parts, num_parts = range(rank, rank + 1), workers
        first, end = held_rows(order, parts, num_parts)
        num_rows = end - first
        for split in measured_splits(spec, prepared):
            # The blocks of the training split lie in the rank's lanes, but for the outermost.
            if split != "train":
                size = prepared.num_rows(split)
                _numbers, edges = held_blocks(size, gather_rows, size=workers, rank=rank)
                num_rows += edges[-1] - edges[0]
        found.append(num_rows * row_bytes)
    return found


def available_bytes(device: str, root: Path = Path("/")) -> int | None:
    """The memory that this process may still take; None where that is not known.

    Of a GPU it is what is free. Of a machine it is what Linux says is there, or what the limits of
    the process's control groups leave of it.

    Args:
        device: `cpu` or `cuda`.
        root: Where `proc` and `sys` are.
    """
    if device == "cuda":
        # The ranks may have GPUs where this process has none.
        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    found = [_meminfo(root), *_group_rooms(root)]
    return min((each for each in found if each is not None), default=None)


def _meminfo(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _group_rooms(root: Path) -> list[int | None]:
    """What each memory limit leaves that holds for this process: control groups v2, then v1."""
    groups = root / "sys/fs/cgroup"
    rooms = []
    for line in _lines(root / "proc/self/cgroup"):
        _number, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, used = groups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = groups / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        # The limits of the groups around it hold as well. In a container its own may seem to be
        # elsewhere, and is then that of the root.
        around = [each for each in [folder, *folder.parents] if base in [each, *each.parents]]
        rooms += [_group_room(each, limit, used) for each in around]
    return rooms


def _group_room(folder: Path, limit: str, used: str) -> int | None:
    most, taken = (_number_in(folder / name) for name in (limit, used))
    if most is None or taken is None:
        return None
    # The cache of files counts as used, and is given up first.
    cached = 0
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"}:
            cached = max(cached, int(value))
    return max(0, most - max(0, taken - cached))


def _number_in(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
