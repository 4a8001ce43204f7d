"""What all trials of a search have in common, whether they are trained in packs or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import (
    DataError,
    LauncherLostError,
    RankLostError,
    RankStuckError,
    SpecError,
    TrainingError,
)
from batchtrain.models.assets import read_assets
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import num_outputs, resolve_loss
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.training.plan import make_plan, row_order
from batchtrain.tuning.held import HeldShards
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.trials import Goal
from batchtrain.tuning.work import Member, MemberOutcome, Unit

__all__ = ["GO_ON", "NOT_OF_THE_TRIAL", "OF_THE_TRIAL", "Setting", "Teller", "shortened"]

ERROR_CHARACTERS = 500
GO_ON = "Run the same command again to go on from there"

OF_THE_TRIAL = (DataError, SpecError, TrainingError)
"""What a trial's values, its rows or its network bring about, a network that does not fit into
memory among them. All else ends the search before anything is recorded."""

NOT_OF_THE_TRIAL = (LauncherLostError, RankLostError, RankStuckError)
"""Of these, what befalls its processes: the same trial trains to its end another time."""


class Teller(Protocol):
    """Hears how far a unit is."""

    def __call__(self, number: int, epoch: int) -> None:
        """So many epochs of a trial are over; of a pack its first trial stands for all."""
        ...


@dataclass(frozen=True)
class Setting:
    """A search as its trials see it.

    Attributes:
        loaded: The spec of the search.
        prepared: Its data.
        layout: Where it lies.
        goals: What is measured of each trial.
        allow_code: Packages whose code a custom model may run.
        own_data: Whether trials may need other data than these, since the space says so.
        shards: Gives the rows of `prepared`, where they are in memory.
    """

    loaded: LoadedSpec
    prepared: PreparedData
    layout: SearchLayout
    goals: Sequence[Goal]
    allow_code: Sequence[str]
    own_data: bool
    shards: HeldShards | None

    def prepared_for(self, loaded: LoadedSpec) -> PreparedData:
        """The data of a trial: those of the search, unless the space changes them."""
        if not self.own_data:
            return self.prepared
        return prepare(loaded, self.layout.storage, Progress(), allow_code=self.allow_code)[0]

    def shards_of(self, prepared: PreparedData) -> HeldShards | None:
        """What gives the rows of a trial's data; None where they are not in memory."""
        return self.shards if prepared.artifact.url == self.prepared.artifact.url else None

    def scores(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        history: Sequence[Mapping[str, Any]],
        epoch: int | None = None,
    ) -> dict[str, float | None]:
        """Each goal's metric after an epoch, or after the last."""
        found = (each for each in reversed(history) if epoch is None or each["epoch"] == epoch)
        record: Mapping[str, Any] = next(found, {})
        return {
            goal.metric: float(_num_parameters(loaded, prepared, self.allow_code))
            if goal.metric == "parameters"
            else record.get(goal.metric)
            for goal in self.goals
        }

    def failed(self, member: Member, unit: Unit, error: Exception) -> MemberOutcome:
        """What comes of a trial that an error of its own ended.

        How far it came may be known only where it was trained last, so that one that began counts
        with all rows to the end of the unit: the same on every machine, and never too few.
        """
        rows = 0
        if isinstance(error, TrainingError):
            spec = with_values(self.loaded, member.values).spec
            plan = make_plan(spec.training, row_order(self.prepared, seed=spec.seed))
            is_last = unit.last_epoch >= unit.full_epochs
            end = plan.last_step if is_last else plan.end_of(unit.last_epoch - 1)
            rows = plan.rows_before(end)
        return MemberOutcome(member.number, "failed", rows=rows, error=shortened(str(error)))


def shortened(error: str) -> str:
    """The first line of an error: what is below it names places of this attempt."""
    line = next(iter(error.splitlines()), "")
    return line if len(line) <= ERROR_CHARACTERS else f"{line[:ERROR_CHARACTERS]}..."


def _num_parameters(loaded: LoadedSpec, prepared: PreparedData, allow_code: Sequence[str]) -> int:
    """How many numbers the model of a trial learns."""
    spec = loaded.spec
    loss = resolve_loss(spec.training.loss, prepared.task)
    inputs = ModelInputs(
        num_numeric=prepared.num_numeric,
        cardinalities=prepared.cardinalities,
        num_outputs=num_outputs(loss, prepared.task, prepared.num_classes),
    )
    model = build_model(
        spec.model,
        inputs,
        seed=spec.seed,
        allow_code=allow_code,
        search=loaded.path.parent,
        assets=read_assets(loaded),
    )
    return sum(each.numel() for each in model.parameters() if each.requires_grad)
