"""The dropout layers of a model, where their share is to change while it trains."""

from __future__ import annotations

from torch import nn

from batchtrain.errors import Problem, SpecError
from batchtrain.models.activations import new_activation
from batchtrain.spec.model import CnnModel, MlpModel, ModelSpec, ResNetModel

__all__ = ["DropoutLayer", "changing_dropout", "dropout_layers"]

DropoutLayer = (
    nn.Dropout
    | nn.Dropout1d
    | nn.Dropout2d
    | nn.Dropout3d
    | nn.AlphaDropout
    | nn.FeatureAlphaDropout
)
SUFFIX = "_dropout"


def dropout_layers(model: nn.Module) -> list[DropoutLayer]:
    """All of them, in the order of the model's modules."""
    return [module for module in model.modules() if isinstance(module, DropoutLayer)]


def changing_dropout(model: nn.Module, spec: ModelSpec) -> list[DropoutLayer]:
    """The dropout layers of a model that is to have some; those it lacks are added, of share 0.

    Those that are added draw nothing while their share is 0, and the names of all weights stay
    as they are without them: an artifact holds the same model.

    Args:
        model: It is changed in place.
        spec: What it was built from.

    Raises:
        SpecError: If there is no place for one.
    """
    if not dropout_layers(model):
        _add_dropout(model, spec)
    found = dropout_layers(model)
    if not found:
        problem = Problem(
            where="",
            key="training.changes",
            message=f"expected a model with dropout, since its share is to change, "
            f"found {spec.kind} without any",
            hint="Remove `dropout` from the changes, or give the network torch.nn.Dropout layers.",
        )
        raise SpecError([problem])
    return found


def _add_dropout(model: nn.Module, spec: ModelSpec) -> None:
    """Put a layer behind each activation of the hidden layers, where the spec's own would be."""
    if not isinstance(spec, MlpModel | CnnModel | ResNetModel):
        return
    hidden = model.get_submodule("blocks" if isinstance(spec, ResNetModel) else "layers")
    activation = type(new_activation(spec.activation))
    for sequence in list(hidden.modules()):
        if not isinstance(sequence, nn.Sequential):
            continue
        children = list(sequence.named_children())
        for name, _ in children:
            delattr(sequence, name)
        for name, child in children:
            sequence.add_module(name, child)
            if type(child) is activation:
                sequence.add_module(f"{name}{SUFFIX}", nn.Dropout(0.0))
