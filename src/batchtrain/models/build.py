"""Build a model from its spec: the same spec, inputs and seed give the same weights.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchtrain.errors import Problem, SpecError, TrainingError
from batchtrain.models.arithmetic import plain_arithmetic
from batchtrain.models.cnn import CnnNet
from batchtrain.models.custom import load_custom
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.linear import LinearNet
from batchtrain.models.losses import Loss
from batchtrain.models.mlp import MlpNet
from batchtrain.models.protocol import check_steps
from batchtrain.models.resnet import ResidualNet
from batchtrain.spec.model import CnnModel, CustomModel, MlpModel, ModelSpec, ResNetModel

__all__ = ["build_model", "describe_model"]

PROBE_ROWS = 2


def build_model(
    spec: ModelSpec,
    inputs: ModelInputs,
    *,
    seed: int,
    allow_code: Sequence[str] = (),
    search: Path | None = None,
    assets: Mapping[str, bytes] | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """Build the model on the CPU, in training mode.

    The initial weights depend on spec, inputs and seed alone, and torch's global generator is
    left as it was. (A custom class that draws from another generator than torch's is on its own.)
    Two rows are passed through the model once, so that a wrong shape is found before any data is.

    Args:
        spec: Which network.
        inputs: The widths that it is built for.
        seed: Of the initial weights.
        allow_code: The packages whose code may run, for `custom`.
        search: The spec file's folder, for `custom`.
        assets: The files that a custom class needs, by name; see `assets`.
        loss: What is to be minimised: the steps of a custom class are tried with it. Left out,
            they are not tried, as where the model only predicts.

    Raises:
        SpecError: If a custom class is refused, not found, or does not take the `params`, or if
            the numeric features are not the image that `cnn` is told of, or no layer of an `mlp`
            can be the residual one that it asks for.
        TrainingError: If a custom class fails, gives outputs of another shape or type, or has state
            that is no tensor.
    """
    # A caller may have set another default type for the process.
    with plain_arithmetic(threads=1), torch.random.fork_rng(devices=[]):
        # Before the seed: a module that is imported for the first time may draw numbers.
        construct = _constructor(spec, inputs, allow_code, search, assets or {})
        # Not torch.manual_seed, which would also queue a seed for CUDA devices that start later.
        torch.default_generator.manual_seed(seed)
        model = construct()
        _check_outputs(model, inputs, spec)
        if loss is not None:
            check_steps(model, inputs, loss, _name_of(spec))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"{_name_of(spec)}: expected at least one parameter to train, found none. Register "
            "the weights as nn.Parameter."
        )
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise TrainingError(
                f"{_name_of(spec)}: expected all state to be parameters and buffers, found "
                f"{name!r} of type {type(value).__name__}. Register it as a buffer: artifacts hold "
                "tensors."
            )
    return model.train()


def describe_model(model: nn.Module) -> list[dict[str, Any]]:
    """Describe each parameter: name, shape, dtype, count, device and whether it is trained."""
    return [
        {
            "name": name,
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "count": parameter.numel(),
            "device": str(parameter.device),
            "trained": parameter.requires_grad,
        }
        for name, parameter in model.named_parameters()
    ]


def _constructor(
    spec: ModelSpec,
    inputs: ModelInputs,
    allow_code: Sequence[str],
    search: Path | None,
    assets: Mapping[str, bytes],
) -> Callable[[], nn.Module]:
    """Do all that is not to depend on the seed; what is left builds the model."""
    if isinstance(spec, CustomModel):
        network = load_custom(spec.target, allow_code, search=search)
        return partial(_build_custom, spec, network, inputs, assets)
    if isinstance(spec, MlpModel):
        return partial(MlpNet, spec, inputs)
    if isinstance(spec, ResNetModel):
        return partial(ResidualNet, spec, inputs)
    if isinstance(spec, CnnModel):
        return partial(CnnNet, spec, inputs)
    return partial(LinearNet, inputs)


def _build_custom(
    spec: CustomModel, network: type, inputs: ModelInputs, assets: Mapping[str, bytes]
) -> nn.Module:
    # The class may change its arguments; the spec must stay what it is.
    arguments = copy.deepcopy(spec.params)
    if assets or spec.assets:
        arguments["assets"] = dict(assets)
    _check_signature(spec, network, inputs, arguments)
    try:
        model = network(inputs, **arguments)
    except Exception as error:
        raise TrainingError(
            f"{_name_of(spec)}: expected {network.__name__}(inputs, **params) to build a model, "
            f"found {type(error).__name__}: {error}. inputs was {inputs!r}, params {spec.params!r}"
            f", assets {sorted(assets)}."
        ) from error
    if not isinstance(model, nn.Module):
        raise TrainingError(
            f"{_name_of(spec)}: expected an nn.Module, found {model!r}. Remove `__new__`."
        )
    return model


def _check_signature(
    spec: CustomModel, network: type, inputs: ModelInputs, arguments: dict[str, Any]
) -> None:
    """Tell parameters that the class does not take from errors inside of it."""
    signature = inspect.signature(network)
    try:
        signature.bind(inputs, **arguments)
    except TypeError as error:
        problem = Problem(
            where="",
            key="model.params",
            message=f"{network.__name__}{signature} is called as {network.__name__}(inputs, "
            f"**params), found params {spec.params!r}: {error}",
            hint="The first argument is a batchtrain.models.inputs.ModelInputs, the others are "
            "the keys of `params`, and `assets` where the spec has some.",
        )
        raise SpecError([problem]) from error


def _check_outputs(model: nn.Module, inputs: ModelInputs, spec: ModelSpec) -> None:
    """Pass two rows through the model; this also gives lazy layers their shapes."""
    numeric_BF = torch.zeros(PROBE_ROWS, inputs.num_numeric)
    codes_BC = torch.zeros(PROBE_ROWS, len(inputs.cardinalities), dtype=torch.int64)
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(numeric_BF, codes_BC)
    except Exception as error:
        raise TrainingError(
            f"{_name_of(spec)}: expected forward(numeric_BF, codes_BC) to take float32 "
            f"{list(numeric_BF.shape)} and int64 {list(codes_BC.shape)}, found "
            f"{type(error).__name__}: {error}. Correct its forward."
        ) from error
    expected = f"a float32 tensor of shape {[PROBE_ROWS, inputs.num_outputs]}"
    if not isinstance(outputs, torch.Tensor):
        found = repr(type(outputs))
    elif outputs.dtype != torch.float32 or outputs.shape != (PROBE_ROWS, inputs.num_outputs):
        found = f"{outputs.dtype} of shape {list(outputs.shape)}"
    else:
        return
    raise TrainingError(
        f"{_name_of(spec)}: for {PROBE_ROWS} rows expected {expected}, found {found}. The model "
        "must give one row of `inputs.num_outputs` numbers for each row."
    )


def _name_of(spec: ModelSpec) -> str:
    return (
        f"model.target {spec.target!r}" if isinstance(spec, CustomModel) else f"model {spec.kind}"
    )
