"""An optimizer's state as named tensors and JSON, for safetensors; nothing is pickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batchtrain.errors import ArtifactError

__all__ = ["load_optimizer", "optimizer_json", "optimizer_tensors"]

CHANGING_OPTIONS = ("lr", "initial_lr")
"""The options of a group that a schedule changes; all others come from the spec."""

SCALARS = ("step", "mu_product", "eta", "mu")
"""State that is one float32 number for each parameter, whatever the parameter's type and shape."""

FACTORS = {"row_var": -1, "col_var": -2}
"""State of Adafactor that has the parameter's shape but for one dimension of size 1: which."""


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Give the optimizer's tensors as `<state>/<parameter name>`, such as `exp_avg/linear.weight`.

    A parameter that has taken no step yet has none. The tensors are the live ones, wherever they
    are: write or copy them before the next step.

    Raises:
        ArtifactError: If the optimizer holds a parameter that the model does not name, or state
            that is not a tensor.
    """
    names = _names(optimizer, model)
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise ArtifactError(
                    f"optimizer state {key!r} of {names[parameter]!r}: expected a tensor, found "
                    f"{value!r}. {type(optimizer).__name__} cannot be checkpointed."
                )
            tensors[f"{key}/{names[parameter]}"] = value.detach().contiguous()
    return tensors


def optimizer_json(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Give the rest of the state as JSON: kind, each group's options and names, tensor names."""
    names = _names(optimizer, model)
    groups = [
        {
            "params": [names[parameter] for parameter in group["params"]],
            "options": _options(group),
        }
        for group in optimizer.param_groups
    ]
    return {
        "kind": type(optimizer).__name__,
        "groups": groups,
        "tensors": sorted(optimizer_tensors(optimizer, model)),
    }


def load_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
    *,
    changing: Collection[str] = (),
) -> None:
    """Put the state back, so that the next step is the one the saved optimizer would have taken.

    The tensors are copied; the learning rates, and what else may have changed, are taken from the
    document. The optimizer must
    have been built from the same spec, over the same model.

    Args:
        optimizer: A fresh one.
        model: The model whose parameters it holds.
        tensors: What `optimizer_tensors` gave.
        document: What `optimizer_json` gave.
        changing: Options besides the rate that may have changed since the optimizer was built.

    Raises:
        ArtifactError: If kind, options, names, shapes or types differ.
    """
    taken = {*CHANGING_OPTIONS, *changing}
    _check_same(optimizer_json(optimizer, model), document, taken)
    if sorted(tensors) != document["tensors"]:
        raise _differs(f"tensors {document['tensors']}", f"{sorted(tensors)}")
    index_of, groups = _indexed_groups(optimizer, model, document, taken)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in index_of:
            raise _differs(f"state for parameters {sorted(index_of)}", f"{key!r}")
        _check_tensor(key, value, parameters[name])
        state.setdefault(index_of[name], {})[kind] = _laid_out(kind, value, parameters[name])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _put_scalars(optimizer, tensors, parameters)


def _names(optimizer: Optimizer, model: nn.Module) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise _differs(
                    "an optimizer over the model's own parameters",
                    f"one of shape {list(parameter.shape)} that the model does not have",
                )
    return names


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options as JSON values: a tuple is a list there."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key != "params"
    }


def _check_same(present: Mapping[str, Any], saved: Mapping[str, Any], changing: set[str]) -> None:
    if present["kind"] != saved["kind"] or len(present["groups"]) != len(saved["groups"]):
        raise _differs(
            f"{saved['kind']} with {len(saved['groups'])} group(s)",
            f"{present['kind']} with {len(present['groups'])}",
        )
    for mine, theirs in zip(present["groups"], saved["groups"], strict=True):
        if mine["params"] != theirs["params"]:
            raise _differs(f"parameters {theirs['params']}", f"{mine['params']}")
        # Another version of torch may know other options; those that both know must agree.
        for key in sorted(set(mine["options"]) & set(theirs["options"]) - changing):
            if mine["options"][key] != theirs["options"][key]:
                raise _differs(f"{key} {theirs['options'][key]!r}", f"{mine['options'][key]!r}")


def _indexed_groups(
    optimizer: Optimizer, model: nn.Module, document: Mapping[str, Any], taken: Collection[str]
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Give torch's own form: parameters by running number, groups with the saved options."""
    names = _names(optimizer, model)
    index_of: dict[str, int] = {}
    groups = []
    for group, saved in zip(optimizer.param_groups, document["groups"], strict=True):
        for parameter in group["params"]:
            index_of[names[parameter]] = len(index_of)
        options = {key: saved["options"][key] for key in taken if key in saved["options"]}
        indices = [index_of[names[parameter]] for parameter in group["params"]]
        groups.append({**group, **options, "params": indices})
    return index_of, groups


def _check_tensor(key: str, value: Tensor, parameter: nn.Parameter) -> None:
    """Torch would cast in silence, and would notice another shape only at the next step."""
    kind = key.partition("/")[0]
    dtype, shape = parameter.dtype, list(parameter.shape)
    if kind in SCALARS:
        dtype, shape = torch.float32, []
    elif kind in FACTORS:
        shape[FACTORS[kind]] = 1
    if value.dtype != dtype or list(value.shape) != shape:
        raise _differs(
            f"{dtype} of shape {shape} for {key!r}", f"{value.dtype} of shape {list(value.shape)}"
        )


def _laid_out(kind: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy that lies in memory as its parameter does, as the fused kernels expect."""
    if kind in SCALARS or kind in FACTORS:
        return value.clone()
    return torch.empty_like(parameter, device=value.device).copy_(value)


def _put_scalars(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Put the numbers where a step keeps them: torch casts all but `step` to the parameter's type.

    It also moves them to the parameter's device, and a step that reads them would wait for it.
    """
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind in SCALARS and kind != "step":
            state = optimizer.state[parameters[name]]
            state[kind] = value.to(state["step"].device, copy=True)


def _differs(expected: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"optimizer state: expected {expected}, found {found}. The checkpoint belongs to another "
        "model or spec; start a new run."
    )
