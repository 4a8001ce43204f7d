"""The rows that are differentiated at once, and how memory that runs out makes them fewer.

Shapes: B rows of a part of a batch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch

from batchtrain.errors import RankMemoryError
from batchtrain.models.inputs import Batch

__all__ = ["cut_sizes", "free_memory", "halved", "is_out_of_memory", "memory_told", "micro_batches"]

MEMORY_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch says where it raises no `OutOfMemoryError`: on a CPU, and in NVIDIA's libraries."""


def cut_sizes(rows: int, most: int | None) -> list[int]:
    """Cut so many rows into as few near-equal pieces of at most `most` rows as there can be.

    Near-equal, since a last piece of few rows would be a shape of its own for a compiler, and no
    fewer of them.

    Example:
        >>> cut_sizes(10, 4), cut_sizes(10, None)
        ([3, 3, 4], [10])
    """
    pieces = 1 if most is None else max(1, -(-rows // most))
    edges = [piece * rows // pieces for piece in range(pieces + 1)]
    return [end - start for start, end in pairwise(edges)]


def micro_batches(batch: Batch, most: int | None) -> list[Batch]:
    """Cut a batch into neighbouring rows that are differentiated at once; all are views."""
    rows = len(batch.target_B)
    if most is None or rows <= most:
        return [batch]
    sizes = cut_sizes(rows, most)
    weights = [None] * len(sizes) if batch.weight_B is None else batch.weight_B.split(sizes)
    columns = (batch.numeric_BF.split(sizes), batch.codes_BC.split(sizes))
    return [
        Batch(*tensors)
        for tensors in zip(*columns, batch.target_B.split(sizes), weights, strict=True)
    ]


def halved(micro_rows: int | None, batch_rows: int, num_parts: int) -> int | None:
    """Half as many rows at once as did not fit; None where that was one row already.

    Args:
        micro_rows: The most rows at once so far; None for all of a part.
        batch_rows: The rows of a global batch.
        num_parts: Among so many they are divided.

    Example:
        >>> halved(None, 100, 2), halved(25, 100, 2), halved(1, 100, 2)
        (25, 13, None)
    """
    whole = -(-batch_rows // num_parts)
    at_once = whole if micro_rows is None else min(micro_rows, whole)
    return None if at_once <= 1 else -(-at_once // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory for a tensor."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Not its text, which an error of the user's may fail to give.
    said = error.args[0] if isinstance(error, RuntimeError) and error.args else ""
    return isinstance(said, str) and any(word in said for word in MEMORY_WORDS)


@contextmanager
def memory_told() -> Iterator[None]:
    """Turn torch's errors of memory that runs out into ours, which crosses to the launcher.

    Raises:
        RankMemoryError: If memory runs out inside.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RankMemoryError(
            f"expected the step to fit into memory, found that it ran out: {_first_line(error)}. "
            "Lower `training.micro_batch`, or let it be `auto`; the result stays the same but for "
            "the last bits"
        ) from error


def free_memory() -> None:
    """Give back what an attempt that is over has left in this process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
