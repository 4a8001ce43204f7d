"""How trials are trained: which of them in packs, and which as runs of their own, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import Problem, SpecError
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.data import SPLITS
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.spec.model import LinearModel, MlpModel, ResNetModel
from batchtrain.spec.run import RunSpec
from batchtrain.spec.search import Pbt, SearchSpec, scheduler_of
from batchtrain.training.packed.rules import (
    auto_pack_size,
    num_parameters,
    pack_key,
    why_not_packed,
)
from batchtrain.training.plan import global_batch_rows, make_plan, row_order
from batchtrain.tuning.held import HELD_BYTES
from batchtrain.tuning.search import Shape
from batchtrain.tuning.trials import Goal

__all__ = ["Shapes"]

IN_PACKS = ("valid_loss", "valid_accuracy", "valid_r2", "parameters")
"""What the history of a packed trial has."""

SHORT_SECONDS = 1.0
CHUNK = 4
"""So many short trials, runs of their own each, are handed to an actor at once."""

STEP_SECONDS = 4e-4
"""What a step of a small model takes here, whatever its size."""
START_SECONDS = 0.1
"""What a run of its own takes besides its steps, here: checkpoint, history, event file."""

UNKNOWN_PARAMETERS = 100_000
ROW_BYTES = 24
"""Of a row besides its features: target, weight and number."""

PACKED_SPEED = 5.0
"""About so many times as fast is a pack, where packing pays."""

OPERATIONS_A_SECOND = 1e10
"""What one core does for larger ones: 6 for each parameter and row of a step."""


class Shapes:
    """Decides it from the values of a trial."""

    def __init__(
        self,
        loaded: LoadedSpec,
        search: SearchSpec,
        prepared: PreparedData,
        goals: Sequence[Goal],
    ) -> None:
        """Take what all trials share.

        Args:
            loaded: The spec of the search.
            search: Its section.
            prepared: The rows.
            goals: What is measured of each trial.
        """
        self._loaded = loaded
        self._search = search
        self._prepared = prepared
        self._goals = goals
        self._is_population = isinstance(scheduler_of(self._search), Pbt)
        self._may_chunk = self._search.scheduler == "none"
        # Not `seed`: rows that are split by it are refused, since trials could not be compared.
        self.changes_data = any(
            key == "data" or key.startswith("data.") for key in self._search.space
        )

    def of(self, values: Mapping[str, Any]) -> Shape:
        """The shape of a trial.

        Raises:
            SpecError: If it is a member of a population and cannot be packed.
        """
        try:
            spec = with_values(self._loaded, values).spec
        except SpecError:
            # Of a large space not all trials were tried before; this one will fail by itself.
            return Shape("alone", 1, is_pack=False, why_alone="its values do not go together")
        why = self._why_alone(spec)
        size = self._size(spec) if why is None else 1
        if self._is_population:
            if why is not None:
                raise _no_population(str(self._loaded.path), why)
            return Shape(self._key(spec), size, is_pack=True)
        if why is None and size == 1:
            why = "a step is so large that a pack would be no faster"
            if self._search.pack == 1:
                why = "`search.pack` is 1"
        if why is None:
            return Shape(self._key(spec), size, is_pack=True)
        chunk = CHUNK if self._may_chunk and self.seconds(spec) < SHORT_SECONDS else 1
        return Shape("alone", chunk, is_pack=False, why_alone=why)

    def rows(self, values: Mapping[str, Any]) -> int:
        """How many rows a trial trains that nothing ends early; none where it cannot begin."""
        try:
            spec = with_values(self._loaded, values).spec
        except SpecError:
            return 0
        plan = make_plan(spec.training, row_order(self._prepared, seed=spec.seed))
        return plan.rows_before(plan.last_step)

    def share(self, values: Mapping[str, Any]) -> float:
        """About how many times as long as the spec itself a trial takes, each by itself."""
        try:
            spec = with_values(self._loaded, values).spec
        except SpecError:
            return 0.0
        return self.seconds(spec) / self.seconds(self._loaded.spec)

    def seconds(self, spec: RunSpec) -> float:
        """About how long one core takes to train a spec by itself, at most."""
        plan = make_plan(spec.training, row_order(self._prepared, seed=spec.seed))
        operations = 6.0 * self._parameters(spec) * plan.batch_rows
        return plan.last_step * (STEP_SECONDS + operations / OPERATIONS_A_SECOND)

    def seconds_of_search(self, trials: int) -> float:
        """About how long one core takes for so many trials like the spec itself, at most."""
        spec = self._loaded.spec
        size = self._size(spec) if self._why_alone(spec) is None else 1
        if size == 1:
            return trials * (START_SECONDS + self.seconds(spec))
        return trials * self.seconds(spec) / PACKED_SPEED

    def _why_alone(self, spec: RunSpec) -> str | None:
        for goal in self._goals:
            if goal.metric not in IN_PACKS:
                return f"{goal.metric} is not measured in packs"
        prepared = self._prepared
        row_bytes = 4 * prepared.num_numeric + 8 * len(prepared.cardinalities) + ROW_BYTES
        if row_bytes * sum(prepared.num_rows(split) for split in SPLITS) > HELD_BYTES:
            return "there are more rows than a pack keeps in memory"
        return why_not_packed(spec)

    def _size(self, spec: RunSpec) -> int:
        if self._search.pack != "auto":
            return self._search.pack
        rows = global_batch_rows(spec.training, num_rows=self._prepared.num_rows("train"))
        return auto_pack_size(parameters=self._parameters(spec), batch_rows=rows)

    def _key(self, spec: RunSpec) -> str:
        data = self._prepared.artifact.manifest.fingerprint
        if self.changes_data:
            data = fingerprint_of(spec.data.model_dump(mode="json"))
        return pack_key(spec, data)

    def _parameters(self, spec: RunSpec) -> int:
        """How many numbers a model learns; of one that is never packed a guess."""
        if not isinstance(spec.model, LinearModel | MlpModel | ResNetModel):
            return UNKNOWN_PARAMETERS
        prepared = self._prepared
        return num_parameters(
            spec.model,
            num_numeric=prepared.num_numeric,
            cardinalities=prepared.cardinalities,
            num_outputs=max(1, prepared.num_classes),
        )


def _no_population(file: str, why: str) -> SpecError:
    return SpecError(
        [
            Problem(
                where=file,
                key="search.scheduler",
                message=f"pbt trains its population in packs, and this one cannot be: {why}",
                hint="Use asha, or change what stands in the way",
            )
        ]
    )
