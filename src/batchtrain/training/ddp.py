"""Several ranks' gradients averaged by torch's DDP, in an order that a restart does not change."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchtrain.errors import TrainingError
from batchtrain.models.trying import values_restored
from batchtrain.training.ranks import Ranks

__all__ = ["FlatMean", "check_reduced", "exact_ddp"]

WARM_UP_BACKWARDS = 2
"""DDP notes the order of the gradients in the first backward and cuts its buckets anew, once, at
the start of the second forward; the second backward makes sure that this is done."""


def exact_ddp(
    model: nn.Module,
    *,
    backward: Callable[[nn.Module], None],
    bucket_megabytes: float | None = None,
) -> DistributedDataParallel:
    """Wrap a model so that its gradients are averaged over the ranks, always in the same order.

    Plain DDP begins with one set of buckets and goes on with another, so the first step after a
    restart would add up in another order than it did without one; with three ranks or more that
    changes the last bits. Two backwards, whose gradients are thrown away, are done before the
    first step of every start.

    All ranks call this at the same time, with the same weights. Afterwards weights, buffers,
    `training` flags and the states of torch's random generators are what they were, and so are
    gradients: None where there was none, the same tensor with the same values where there was one.

    A parameter that no rank gives a gradient keeps none, as with one process. Which ones these are
    is found out once, by one more backward of the model alone. Where it finds none, each step has
    to use all of them; who takes the steps checks it, since DDP itself goes on without a word.

    Args:
        model: In the place where it trains; the default process group exists.
        backward: Computes any loss of the model that it is given, as a training step does, and
            calls `backward()` on it.
        bucket_megabytes: Gradients that are reduced together; torch's default where None.

    Raises:
        TrainingError: If no parameter of the model gets a gradient.
    """
    with _left_as_it_was(model):
        has_unused = _has_unused(model, backward)
        with _compiler_not_imported():
            wrapped = _LeanDdp(
                model,
                bucket_cap_mb=bucket_megabytes,
                find_unused_parameters=has_unused,
                **_without_buffers(),
            )
        for _ in range(WARM_UP_BACKWARDS):
            _forget_gradients(model)
            backward(wrapped)
    return wrapped


class _LeanDdp(DistributedDataParallel):
    """DDP that does not import torch's compiler, which takes two seconds of every rank's start.

    DDP would mark this method as one that is not to be compiled; what is compiled here is the
    model inside, before DDP has a part in it.
    """

    @contextmanager
    def _inside_ddp_forward(self) -> Iterator[None]:
        before = DistributedDataParallel._active_ddp_module
        DistributedDataParallel._active_ddp_module = self
        try:
            yield
        finally:
            DistributedDataParallel._active_ddp_module = before


@contextmanager
def _compiler_not_imported() -> Iterator[None]:
    """Answer what DDP asks torch's compiler when it is made, with the default, for a while.

    The answer only matters where DDP itself is compiled. A compiler that is imported already
    answers for itself.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    answers = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    vars(torch)["_dynamo"] = SimpleNamespace(utils=answers)
    try:
        yield
    finally:
        del vars(torch)["_dynamo"]


def check_reduced(wrapped: nn.Module) -> None:
    """Make sure that the latest backward has added up the gradients of all ranks.

    Raises:
        TrainingError: If DDP still waits for that of a parameter.
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    try:
        wrapped._check_reducer_finalized()
    except RuntimeError as error:
        raise TrainingError(
            "expected every forward to use the parameters that the first one used, found one that "
            "does not: several workers cannot add up their gradients then. Use each of them in "
            "each forward, times 0 where it is not wanted; or take `determinism: canonical`, or "
            "one worker"
        ) from error


@dataclass(frozen=True)
class FlatMean:
    """Takes the mean of all gradients over the ranks in one collective, always in one order.

    Attributes:
        used: The parameters that get a gradient on some rank; the others keep none.
        size: The number of ranks.
    """

    used: Sequence[nn.Parameter]
    size: int

    @classmethod
    def of(
        cls, model: nn.Module, ranks: Ranks, *, backward: Callable[[nn.Module], None]
    ) -> FlatMean:
        """Find out which parameters are used; all ranks call this at the same time.

        Args:
            model: In the place where it trains, with the same weights on all ranks.
            ranks: All of them; the default process group is theirs.
            backward: See `exact_ddp`.

        Raises:
            TrainingError: If no parameter gets a gradient.
        """
        wanted = [each for each in model.parameters() if each.requires_grad]
        with _left_as_it_was(model):
            _forget_gradients(model)
            backward(model)
            marks = [each.grad is not None for each in wanted]
        of_ranks = ranks.gather(marks)
        used = [each for each, *has in zip(wanted, *of_ranks, strict=True) if any(has)]
        if not used:
            raise _no_gradient(model)
        return cls(used, ranks.size)

    def take(self) -> None:
        """Put the mean over the ranks in the place of each gradient."""
        flat_P = torch.cat([_gradient(each).flatten() for each in self.used])
        dist.all_reduce(flat_P)
        flat_P /= self.size
        parts = flat_P.split([each.numel() for each in self.used])
        for each, part in zip(self.used, parts, strict=True):
            each.grad = torch.empty_like(each).copy_(part.view(each.shape))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _no_gradient(model: nn.Module) -> TrainingError:
    return TrainingError(
        f"{type(model).__name__}: expected at least one parameter to get a gradient, found "
        "none. Use the parameters in forward(), outside of torch.no_grad() and detach()"
    )


def _has_unused(model: nn.Module, backward: Callable[[nn.Module], None]) -> bool:
    """Whether a parameter that is to be trained gets no gradient on some rank.

    The ranks must agree: DDP's collectives depend on the answer.
    """
    _forget_gradients(model)
    backward(model)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = sum(parameter.grad is not None for parameter in wanted)
    if not used:
        raise _no_gradient(model)
    unused = torch.tensor([len(wanted) - used], device=wanted[0].device)
    dist.all_reduce(unused, op=dist.ReduceOp.MAX)
    return bool(unused.item())


def _without_buffers() -> dict[str, Any]:
    """The argument that keeps DDP from copying rank 0's buffers to all ranks at every step."""
    # torch 2.13 renamed it, and warns of the old name.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in names else "broadcast_buffers": False}


def _forget_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the model in training mode for a while, and everything back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with values_restored(model), torch.random.fork_rng(devices), torch.enable_grad():
            model.train()
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in flags:
            module.training = training
