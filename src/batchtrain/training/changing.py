"""Puts the values of `training.changes` into force: a pure function of the epoch, never state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from batchtrain.models.dropout import DropoutLayer, changing_dropout
from batchtrain.models.optimizers import decays
from batchtrain.spec.changes import ChangingValue, value_at
from batchtrain.spec.run import RunSpec
from batchtrain.spec.training import TrainingSpec

__all__ = ["ValueChanges"]

OPTIONS: tuple[ChangingValue, ...] = ("weight_decay", "momentum")
"""Those that are options of the optimizer's groups and nobody else sets."""


class ValueChanges:
    """Sets the values of an epoch, whatever was in force before; the rate is the schedule's.

    Attributes:
        options: The options of the optimizer's groups that it sets.
    """

    def __init__(
        self,
        training: TrainingSpec,
        optimizer: Optimizer,
        layers: Sequence[DropoutLayer] = (),
    ) -> None:
        """Remember the values to begin with.

        Args:
            training: The section, with changes.
            optimizer: As it was built.
            layers: The dropout layers whose share changes.
        """
        self._changes = training.changes
        self._optimizer = optimizer
        self._first = [dict(group) for group in optimizer.param_groups]
        self._decays = [
            decays(training.optimizer, group["params"]) for group in optimizer.param_groups
        ]
        self.options = frozenset(each for each in OPTIONS if self._is_changed(each))
        self._dropout = layers
        self._first_shares = [layer.p for layer in layers]

    @classmethod
    def of(cls, spec: RunSpec, model: nn.Module, optimizer: Optimizer) -> ValueChanges | None:
        """The changes of a run; None where its spec has none.

        Args:
            spec: Of the run.
            model: It gets dropout layers where it has none and a change asks for them.
            optimizer: As it was built.

        Raises:
            SpecError: If the model has no place for a dropout that a change asks for.
        """
        if not spec.training.changes:
            return None
        has_dropout = spec.training.changes_dropout
        layers = changing_dropout(model, spec.model) if has_dropout else []
        return cls(spec.training, optimizer, layers)

    def take_force(self, epoch: int) -> None:
        """Set the values of the steps of an epoch; the first is 0."""
        for name in self.options:
            value = value_at(self._changes, name, epoch)
            groups = zip(self._optimizer.param_groups, self._first, self._decays, strict=True)
            for group, first, decays_here in groups:
                changes_here = value is not None and (name != "weight_decay" or decays_here)
                group[name] = value if changes_here else first[name]
        share = value_at(self._changes, "dropout", epoch)
        for layer, first_share in zip(self._dropout, self._first_shares, strict=True):
            layer.p = first_share if share is None else share

    def _is_changed(self, name: ChangingValue) -> bool:
        return any(getattr(change, name) is not None for change in self._changes)
