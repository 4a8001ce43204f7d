"""What a network of the user's may define beside `forward`, and the check that it does so right.

A class for `model.kind: custom` is called as `Class(inputs, **params)`, with `assets=` where the
spec has some. It may define any of these methods; docs/custom-models.md has them with an example.

- `loss(outputs_BK, batch) -> losses_B`: what is minimised, in place of `training.loss`.
- `train_step(batch) -> losses_B`: the whole forward pass of training, in place of `forward` and
  the loss: with mixed rows, several outputs, or noise.
- `valid_step(batch) -> (outputs_BK, losses_B)`: the same for measuring.

The losses are one number for each row, without its weight: weighting and dividing them is not the
network's business, so that the gradient is that of the global batch whatever the workers.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchtrain.errors import Problem, SpecError, TrainingError
from batchtrain.models.inputs import Batch, ModelInputs
from batchtrain.models.losses import Loss
from batchtrain.models.trying import values_restored
from batchtrain.spec.task import LOSSES_OF_TASK

__all__ = ["STEP_METHODS", "check_losses", "check_steps", "own_methods", "own_valid_step"]

STEP_METHODS = ("loss", "train_step", "valid_step")


def own_methods(network: type) -> tuple[str, ...]:
    """Those of `STEP_METHODS` that a class defines; torch's own modules have none of them."""
    return tuple(name for name in STEP_METHODS if callable(getattr(network, name, None)))


def own_valid_step(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The outputs [B, K] and each row's loss [B] as the network itself has them.

    The losses are None where it defines neither `valid_step` nor `loss`.
    """
    own = own_methods(type(model))
    if "valid_step" in own:
        outputs_BK, losses_B = model.valid_step(batch)
        return outputs_BK, losses_B
    outputs_BK = model(batch.numeric_BF, batch.codes_BC)
    return outputs_BK, model.loss(outputs_BK, batch) if "loss" in own else None


def check_losses(losses_B: Any, rows: int, method: str) -> None:
    """Make sure that there is one loss for each row, so that none is lost or counts twice.

    Raises:
        TrainingError: If the shape or the type is another.
    """
    if not isinstance(losses_B, Tensor):
        found = f"{type(losses_B).__name__}"
    elif losses_B.shape != (rows,) or not losses_B.is_floating_point():
        found = f"{losses_B.dtype} of shape {list(losses_B.shape)}"
    else:
        return
    raise TrainingError(
        f"{method}: for {rows} rows expected one loss for each, a floating-point tensor of shape "
        f"[{rows}], found {found}. Return the losses themselves (`reduction='none'`): they are "
        "weighted and averaged for you"
    )


def check_steps(model: nn.Module, inputs: ModelInputs, loss: Loss, name: str) -> None:
    """Try the methods of a network on a few rows of zeros, before any data is read.

    The model is left as it was; torch's generators are not, so that is the caller's business.

    Args:
        model: On the CPU, built.
        inputs: What it is built for.
        loss: The one in force; its name tells the type of a target.
        name: How messages call the model.

    Raises:
        SpecError: If an option of the loss would have no effect.
        TrainingError: If a method fails, or gives something of another shape or type.
    """
    own = own_methods(type(model))
    _refuse_shadows(model, own, name)
    if not own:
        return
    _refuse_smoothing(loss, own)
    batch = _probe_batch(inputs, loss)
    rows = len(batch.target_B)
    with values_restored(model):
        if "train_step" in own:
            model.train()
            losses_B = _tried(name, "train_step(batch)", lambda: _step_of(model)(batch))
            _check_trains(losses_B, rows, f"{name}: train_step(batch)")
        elif "loss" in own:
            model.train()
            outputs_BK = model(batch.numeric_BF, batch.codes_BC)
            call = f"{name}: loss(outputs_BK, batch)"
            losses_B = _tried(name, call, lambda: _loss_of(model)(outputs_BK, batch))
            _check_trains(losses_B, rows, call)
        model.eval()
        with torch.no_grad():
            _check_valid_step(model, own, batch, inputs, name)


def _check_valid_step(
    model: nn.Module, own: tuple[str, ...], batch: Batch, inputs: ModelInputs, name: str
) -> None:
    """Try what measuring does."""
    call = "valid_step(batch)" if "valid_step" in own else "loss(outputs_BK, batch)"
    found = _tried(name, call, lambda: own_valid_step(model, batch))
    outputs_BK, losses_B = found
    shape = (len(batch.target_B), inputs.num_outputs)
    if not isinstance(outputs_BK, Tensor) or outputs_BK.shape != shape:
        shown = (
            list(outputs_BK.shape) if isinstance(outputs_BK, Tensor) else type(outputs_BK).__name__
        )
        raise TrainingError(
            f"{name}: {call}: expected (outputs_BK, losses_B) with outputs of shape "
            f"{list(shape)}, found {shown}. Return what forward gives, then each row's loss"
        )
    if losses_B is not None:
        check_losses(losses_B, shape[0], f"{name}: {call}")


def _check_trains(losses_B: Any, rows: int, call: str) -> None:
    check_losses(losses_B, rows, call)
    if not losses_B.requires_grad:
        raise TrainingError(
            f"{call}: expected losses that depend on the parameters, found some without a "
            "gradient. Leave out `detach()`, `item()` and `torch.no_grad()`"
        )


def _refuse_shadows(model: nn.Module, own: tuple[str, ...], name: str) -> None:
    """Refuse an attribute that has the name of a method and is none: it would have no effect."""
    for each in STEP_METHODS:
        if each not in own and hasattr(model, each):
            raise TrainingError(
                f"{name}: expected {each!r} to be a method of the class, found an attribute of "
                f"the object, a {type(getattr(model, each)).__name__}. Define it with `def`, or "
                "give the attribute another name"
            )


def _refuse_smoothing(loss: Loss, own: tuple[str, ...]) -> None:
    replacing = [each for each in own if each != "valid_step"]
    if loss.label_smoothing and replacing:
        problem = Problem(
            where="",
            key="training.label_smoothing",
            message=f"it would have no effect: the model has a {replacing[0]} of its own",
            hint="Remove the key, and smooth the labels in the model",
        )
        raise SpecError([problem])


def _probe_batch(inputs: ModelInputs, loss: Loss) -> Batch:
    """Rows of zeros. Their number is not that of the outputs, for which it could be taken."""
    rows = 3 if inputs.num_outputs == 2 else 2
    is_class = loss.name in LOSSES_OF_TASK["classification"]
    return Batch(
        numeric_BF=torch.zeros(rows, inputs.num_numeric),
        codes_BC=torch.zeros(rows, len(inputs.cardinalities), dtype=torch.int64),
        target_B=torch.zeros(rows, dtype=torch.int64 if is_class else torch.float32),
    )


def _step_of(model: Any) -> Callable[[Batch], Any]:
    step: Callable[[Batch], Any] = model.train_step
    return step


def _loss_of(model: Any) -> Callable[[Tensor, Batch], Any]:
    loss: Callable[[Tensor, Batch], Any] = model.loss
    return loss


def _tried(name: str, call: str, method: Callable[[], Any]) -> Any:
    try:
        return method()
    except Exception as error:
        raise TrainingError(
            f"{name}: expected {call} to take a batch of zeros, found {type(error).__name__}: "
            f"{error}. Correct the method"
        ) from error
