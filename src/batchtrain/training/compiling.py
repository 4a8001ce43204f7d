"""Forward and backward pass of some rows as kernels of their own, made by torch's compiler.

Both passes are one graph: the losses and the gradients of some rows as a function of the rows and
the weights. That leaves out what autograd does around each product, most of a small model's time.
Networks of this package do the same for every batch, so they are traced once, without the checks
before each call that a user's network needs: those take as long as a small step.

Draws of dropout are those of the uncompiled passes, so that the two agree but for rounding. A graph
is made for each number of rows that a whole batch is cut into, known before the first step; other
numbers, such as those of the short last batch, are not compiled. So what is compiled depends on
nothing that a resume could find otherwise.

Shapes: B rows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.training.micro_batches import is_out_of_memory

__all__ = ["CompiledPass", "Pass"]

Pass = Callable[[nn.Module, Loss, Batch, "Tensor | float | None"], Tensor]
"""Adds the gradient of some rows to that of the parameters; gives their loss. Its arguments are
those of `batchtrain.models.steps.batch_loss`."""

Graph = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]
"""From the tensors of a batch, a divisor and the model's tensors to the loss and the gradients."""

OWN_PACKAGE = __name__.partition(".")[0]

INDUCTOR: dict[str, Any] = {
    # The draws of the uncompiled model.
    "fallback_random": True,
    # What was compiled before lies there pickled, where others may write.
    "fx_graph_cache": False,
    # More are processes that would stay.
    "compile_threads": 1,
    # No kernel is chosen by the clock.
    "deterministic": True,
}


class CompiledPass:
    """A `Pass` that is compiled for batches of certain sizes, each when the first one comes."""

    def __init__(self, sizes: frozenset[int], *, plain: Pass, forward: Pass) -> None:
        """Compile nothing yet.

        Args:
            sizes: The numbers of rows to compile for.
            plain: For all other batches.
            forward: The loss of some rows, differentiable; what `plain` begins with.
        """
        self._sizes = sizes
        self._plain = plain
        self._forward = forward
        self._model: nn.Module | None = None
        self._graphs: dict[int, Graph] = {}
        self._trained: list[nn.Parameter] = []
        self._tensors: list[Tensor] = []
        self._divisors: dict[float, Tensor] = {}

    def __call__(
        self, model: nn.Module, loss: Loss, batch: Batch, denominator: Tensor | float | None
    ) -> Tensor:
        """See `Pass`."""
        rows = len(batch.target_B)
        # The row that stands in where a rank has none is the only one with a weight then.
        if rows not in self._sizes or (batch.weight_B is not None) != loss.has_row_weights:
            return self._plain(model, loss, batch, denominator)
        if model is not self._model:
            self._take(model)
        graph = self._graphs.get(rows)
        given = [*_tensors_of(batch), self._divisor(denominator, batch), *self._tensors]
        with torch.no_grad():
            value, gradients = (
                self._first(model, loss, batch, given) if graph is None else graph(*given)
            )
            passed("step.forward")
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                _add(parameter, gradient)
        passed("step.backward")
        return value

    def _take(self, model: nn.Module) -> None:
        self._model = model
        self._graphs.clear()
        self._trained = [each for each in model.parameters() if each.requires_grad]
        self._tensors = list(_named_tensors(model).values())

    def _divisor(self, denominator: Tensor | float | None, batch: Batch) -> Tensor:
        """The denominator as a tensor: as a number it would be part of the graph."""
        if isinstance(denominator, Tensor):
            return denominator
        number = float(len(batch.target_B)) if denominator is None else denominator
        if number not in self._divisors:
            self._divisors[number] = torch.tensor(
                number, dtype=torch.float32, device=batch.target_B.device
            )
        return self._divisors[number]

    def _first(
        self, model: nn.Module, loss: Loss, batch: Batch, given: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Compile and call: once, since a call may draw, and may change a buffer."""
        with _quietly():
            try:
                graph, found = self._compiled(model, loss, batch, given)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise TrainingError(
                    f"training.compile: expected torch.compile to make kernels of "
                    f"{type(model).__name__}, found {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:500]}. Set `training.compile: false`"
                ) from error
        self._graphs[len(batch.target_B)] = graph
        return found

    def _compiled(
        self, model: nn.Module, loss: Loss, batch: Batch, given: Sequence[Tensor]
    ) -> tuple[Graph, tuple[Tensor, Sequence[Tensor | None]]]:
        # They import a compiler, which takes seconds.
        from torch._inductor.exc import InductorError
        from torch._inductor.utils import fresh_cache

        has_weight = batch.weight_B is not None
        step = _gradients_of(model, loss, self._forward, has_weight=has_weight)
        try:
            graph = _compile(step, model, given)
            return graph, graph(*given)
        except (ImportError, InductorError) as error:
            if is_out_of_memory(error):
                raise
            # A process that was killed may have left half a file among the kernels made earlier.
            with fresh_cache():
                graph = _compile(step, model, given)
                return graph, graph(*given)


def _gradients_of(model: nn.Module, loss: Loss, forward: Pass, *, has_weight: bool) -> Graph:
    """The loss of some rows and its gradients as a function of tensors alone."""
    step = _Step(model, loss, forward, has_weight=has_weight)
    names = list(_named_tensors(model))
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    num_rows_tensors = 5 if has_weight else 4

    def gradients(*given: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        values = dict(zip(names, given[num_rows_tensors:], strict=True))
        with torch.enable_grad():
            leaves = {name: values[name].detach().requires_grad_() for name in trained}
            inside = {f"model.{name}": leaves.get(name, value) for name, value in values.items()}
            loss_value = functional_call(step, inside, given[:num_rows_tensors])
            found = torch.autograd.grad(loss_value, list(leaves.values()), allow_unused=True)
        return loss_value.detach(), found

    return gradients


class _Step(nn.Module):
    """The loss of a batch as the output of a module, whose weights can be put in its place."""

    def __init__(self, model: nn.Module, loss: Loss, forward: Pass, *, has_weight: bool) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._forward = forward
        self._has_weight = has_weight

    def forward(self, *given: Tensor) -> Tensor:
        """Take the tensors of a batch and the divisor; give the loss."""
        weight_B = given[3] if self._has_weight else None
        batch = Batch(given[0], given[1], given[2], weight_B)
        return self._forward(self.model, self._loss, batch, given[-1])


def _compile(step: Graph, model: nn.Module, given: Sequence[Tensor]) -> Graph:
    # It imports a compiler, which takes seconds.
    import torch._dynamo.config
    import torch._inductor.config

    with torch._inductor.config.patch(INDUCTOR):
        if _is_our_own(model):
            return _traced(step, given)
    # What the network asks of Python is checked again in each call.
    found = torch.compile(step, fullgraph=True, dynamic=False, options=INDUCTOR)

    def call(*given: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return found(*given)

    return call


def _is_our_own(model: nn.Module) -> bool:
    """Whether all of a model is code of this package and of torch."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return packages <= {OWN_PACKAGE, "torch"}


def _traced(step: Graph, given: Sequence[Tensor]) -> Graph:
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    def flat(*given: Tensor) -> list[Tensor | None]:
        # Anything nested would be taken apart and put together in each call.
        value, gradients = step(*given)
        return [value, *gradients]

    example: list[Any] = [each.detach().clone() for each in given]
    devices = sorted({each.get_device() for each in example if each.is_cuda})
    with torch.random.fork_rng(devices):
        graph = make_fx(flat)(*example)
    found: Callable[..., Sequence[Any]] = torch._inductor.compile(graph, example)

    def call(*given: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        value, *gradients = found(*given)
        return value, gradients

    return call


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what a compiler remarks about itself out of the terminal."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _tensors_of(batch: Batch) -> list[Tensor]:
    found = [batch.numeric_BF, batch.codes_BC, batch.target_B]
    return found if batch.weight_B is None else [*found, batch.weight_B]


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers: what is not handed over would be a constant of the graph."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _add(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    if parameter.grad is not None:
        parameter.grad.add_(gradient)
        return
    if gradient.stride() != parameter.stride():
        # The fused kernels take for granted that it lies in memory as the parameter does.
        gradient = torch.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient
