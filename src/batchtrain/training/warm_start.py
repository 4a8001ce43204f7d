"""Begin with the weights of a bundle: which of them fit, and which begin new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.errors import TrainingError
from batchtrain.spec.training import WarmStart
from batchtrain.storage.opening import is_address

__all__ = ["other_inputs", "take_weights", "warm_start_bundle"]

MOST_NAMED = 8
"""So many weights that do not fit are named in a message."""


def warm_start_bundle(spec: WarmStart, folder: Path) -> ModelBundle:
    """Open the bundle that a spec names.

    Args:
        spec: The section.
        folder: The spec file's, from which a path starts.

    Raises:
        ArtifactMissingError: If there is no bundle.
        ArtifactError: If it is no bundle of this format.
    """
    if is_address(spec.bundle):
        return ModelBundle.open(spec.bundle)
    return ModelBundle.open(folder / Path(spec.bundle).expanduser())


def take_weights(model: nn.Module, bundle: ModelBundle, spec: WarmStart) -> dict[str, Any]:
    """Copy the bundle's weights into the model, by name.

    Args:
        model: It is changed in place.
        bundle: Whose weights are taken; its file is verified.
        spec: Whether all weights have to fit.

    Returns:
        What was done, as JSON: the bundle's `digest`, how many were `taken`, the names of those
        that begin `new`, and of those of the bundle that are `unused`.

    Raises:
        TrainingError: If a weight is missing or has another shape or type and all have to fit,
            or if none fits.
    """
    found = safetensors.torch.load(bundle.artifact.read("model.safetensors"))
    wanted: dict[str, Tensor] = model.state_dict()
    fitting = {
        name: found[name]
        for name, value in wanted.items()
        if name in found and _form(found[name]) == _form(value)
    }
    if len(fitting) < len(wanted) and (spec.match == "all" or not fitting):
        raise TrainingError(_misfits(wanted, found, bundle, spec))
    with torch.no_grad():
        for name, value in fitting.items():
            wanted[name].copy_(value)
    return {
        "bundle": bundle.artifact.manifest.digest,
        "taken": len(fitting),
        "new": [name for name in wanted if name not in fitting],
        "unused": [name for name in found if name not in fitting],
    }


def other_inputs(bundle: ModelBundle, preprocessing: Mapping[str, Any]) -> str | None:
    """Say where a bundle's features or classes are others than those of this run; None: nowhere.

    Weights of the same shape could then be of another column, or of another category.

    Args:
        bundle: Where the weights come from.
        preprocessing: The run's fitted preprocessor, as JSON.
    """
    theirs, mine = bundle.preprocessing_state(), preprocessing
    differing = [
        what
        for what, of in (("columns", _columns), ("categories", _categories), ("classes", _classes))
        if of(theirs) != of(mine)
    ]
    if not differing:
        return None
    return (
        f"the {' and '.join(differing)} of the bundle {bundle.artifact.url} are not those of this "
        "run: the weights that are taken from it may mean something else"
    )


def _columns(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(column["name"], column["kind"]) for column in state["columns"]]


def _categories(state: Mapping[str, Any]) -> list[Any]:
    return [column.get("categories") for column in state["columns"]]


def _classes(state: Mapping[str, Any]) -> Any:
    return state["target"].get("classes")


def _form(value: Tensor) -> tuple[Any, ...]:
    return (value.shape, value.dtype)


def _misfits(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    bundle: ModelBundle,
    spec: WarmStart,
) -> str:
    told = [
        f"{name!r} {_shown(value)} ({_shown(found[name]) if name in found else 'missing'})"
        for name, value in wanted.items()
        if name not in found or _form(found[name]) != _form(value)
    ]
    rest = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    how_many = "all weights" if spec.match == "all" else "at least one weight"
    return (
        f"training.warm_start: expected {how_many} of the model in the bundle "
        f"{bundle.artifact.url}, found others for {', '.join(told[:MOST_NAMED])}{rest}; what the "
        "bundle has is in brackets. "
        + (
            "Use `match: some` to begin these anew, or the bundle's own `model` section"
            if spec.match == "all"
            else "Use another bundle, or remove `warm_start`"
        )
    )


def _shown(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
