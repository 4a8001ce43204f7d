"""What torch computes with is set for the whole process; no result may depend on who set it.

A notebook may have allowed products in 16 bits, as many guides advise, let the clock choose the
kernel of a convolution, or switched gradients off.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["plain_arithmetic"]


@contextmanager
def plain_arithmetic(threads: int) -> Iterator[None]:
    """Compute in plain float32 on so many threads, whatever was set; put it back afterwards.

    Threads of this process that want the same number go on side by side; one that wants another
    number waits until they are done.

    Args:
        threads: Of one operation; how rows are dealt to them shows in the last bits.
    """
    with (
        _settings.in_force(threads),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


class _Settings:
    """The settings of the process: the first who comes changes them, the last puts them back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads = 0
        self._inside: dict[int, int] = {}
        self._before: tuple[list[str], torch.dtype, bool] | None = None

    @contextmanager
    def in_force(self, threads: int) -> Iterator[None]:
        """Hold the settings for a block of code of this thread."""
        me = threading.get_ident()
        with self._changed:
            # Who is inside already, such as a callback of a training, cannot wait for itself.
            self._changed.wait_for(
                lambda: not self._inside or me in self._inside or self._threads == threads
            )
            if not self._inside:
                self._before, self._threads = _found(), threads
                _set(precisions=["ieee"] * len(_products()), dtype=torch.float32, benchmark=False)
            self._inside[me] = self._inside.get(me, 0) + 1
        # The number is kept for each thread by some builds of torch, and for all by others.
        mine = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(mine)
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                if not self._inside and self._before is not None:
                    _set(*self._before)
                self._changed.notify_all()


def _products() -> tuple[object, ...]:
    """Where torch keeps the precision of products of float32."""
    backends = torch.backends
    # mkldnn sets these where no type checker sees them.
    mkldnn = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)  # type: ignore[attr-defined]
    return (*mkldnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)  # type: ignore[attr-defined]


def _found() -> tuple[list[str], torch.dtype, bool]:
    precisions = [str(each.fp32_precision) for each in _products()]  # type: ignore[attr-defined]
    return precisions, torch.get_default_dtype(), torch.backends.cudnn.benchmark


def _set(precisions: list[str], dtype: torch.dtype, benchmark: bool) -> None:
    for each, precision in zip(_products(), precisions, strict=True):
        each.fp32_precision = precision  # type: ignore[attr-defined]
    torch.set_default_dtype(dtype)
    torch.backends.cudnn.benchmark = benchmark


_settings = _Settings()
