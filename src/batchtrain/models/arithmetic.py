"""What torch computes with is set for the whole process; no result may depend on who set it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["plain_arithmetic"]


@contextmanager
def plain_arithmetic(threads: int) -> Iterator[None]:
    """Compute in plain float32 on so many threads, whatever was set; put it back afterwards.

    A notebook may have allowed products in 16 bits, as many guides advise, or switched gradients
    off, or another type on.

    Args:
        threads: Of one operation; how rows are dealt to them shows in the last bits.
    """
    # mkldnn sets its attributes where no type checker sees them.
    products = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    precisions = [each.fp32_precision for each in products]
    threads_before, type_before = torch.get_num_threads(), torch.get_default_dtype()
    for each in products:
        each.fp32_precision = "ieee"
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(type_before)
        torch.set_num_threads(threads_before)
        for each, precision in zip(products, precisions, strict=True):
            each.fp32_precision = precision
