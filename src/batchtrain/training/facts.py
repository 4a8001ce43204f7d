"""What a spec and its prepared data say together, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import Loss, make_loss, num_outputs, resolve_loss
from batchtrain.models.target_scale import TargetScale
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import RunSpec
from batchtrain.spec.task import class_weights_in_force, target_scale_in_force
from batchtrain.training.plan import TrainingPlan, make_plan, row_order
from batchtrain.training.rows import measured_splits
from batchtrain.training.shards import CheckedShards, ScaledShards, ShardReader

__all__ = ["TrainingFacts"]


@dataclass(frozen=True)
class TrainingFacts:
    """A spec and the rows that it is trained on.

    Attributes:
        loaded: The spec.
        prepared: The rows.
    """

    loaded: LoadedSpec
    prepared: PreparedData

    @property
    def spec(self) -> RunSpec:
        """The spec."""
        return self.loaded.spec

    @property
    def loss(self) -> Loss:
        """What is minimised, of targets that are scaled already."""
        training, prepared = self.spec.training, self.prepared
        return make_loss(
            resolve_loss(training.loss, prepared.task),
            label_smoothing=training.label_smoothing,
            class_weights=class_weights_in_force(training, prepared.classes, prepared.class_rows),
            row_weights=prepared.has_weights,
            target_scale=self.target_scale,
        )

    @property
    def target_scale(self) -> TargetScale | None:
        """How the targets are scaled before the model sees them; None where they are not."""
        prepared = self.prepared
        asked = target_scale_in_force(self.spec.training, prepared.task, self.spec.model.kind)
        statistics = prepared.target_statistics
        if asked == "none" or statistics is None:
            return None
        return TargetScale(*statistics)

    @property
    def inputs(self) -> ModelInputs:
        """The widths of the model."""
        prepared = self.prepared
        return ModelInputs(
            num_numeric=prepared.num_numeric,
            cardinalities=prepared.cardinalities,
            num_outputs=num_outputs(self.loss.name, prepared.task, prepared.num_classes),
        )

    @property
    def plan(self) -> TrainingPlan:
        """How far and in which steps to train."""
        order = row_order(self.prepared, seed=self.spec.seed)
        return make_plan(self.spec.training, order)

    @property
    def measured(self) -> list[str]:
        """The splits to look at after each epoch: valid, and those that `monitor` names."""
        return measured_splits(self.spec, self.prepared)

    def checked(self, shards: ShardReader) -> ShardReader:
        """A reader of the same rows, which are checked, with targets as the model learns them."""
        checked = CheckedShards(shards, self.prepared, self.inputs)
        return checked if self.target_scale is None else ScaledShards(checked, self.target_scale)
