"""Train many trials of one shape together, each as if it were alone.

Every trial has the weights, the order of rows, the dropout, the schedule and the end that a run of
its own has; its numbers agree with that run's to float tolerance. In which pack a trial is may show
in the last bits: products of another number of matrices may be rounded otherwise.

A trial that is over leaves the program at the end of its epoch, so that which trials are computed
together is a function of their results alone: a pack that was cut and goes on gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import TrainingError
from batchtrain.models.build import build_model
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import ModelSpec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.facts import TrainingFacts
from batchtrain.training.machine import choose_machine, machine_in_force
from batchtrain.training.packed.layout import Layout
from batchtrain.training.packed.losses import BatchLosses
from batchtrain.training.packed.member import Member
from batchtrain.training.packed.network import PackedNetwork
from batchtrain.training.packed.program import Program
from batchtrain.training.packed.rows import packed_batches
from batchtrain.training.packed.rules import pack_key, why_not_packed
from batchtrain.training.packed.states import MemberState
from batchtrain.training.rows import Columns, ResidentSplit
from batchtrain.training.shards import ShardReader, StoredShards, read_pieces

__all__ = ["PackedTraining"]

FLUSH_STEPS = 64
"""Losses are read from the device, and a stop is looked for, every so many steps."""

DROPOUT_KEYS = {"mlp": ("dropout",), "resnet": ("hidden_dropout", "residual_dropout")}
"""The keys of a model that name shares of dropout, in the order in which its layers draw."""


class PackedTraining:
    """A pack of trials, between two epochs.

    Attributes:
        members: The trials in the order of their specs, those that are over too.
    """

    def __init__(
        self,
        specs: Sequence[LoadedSpec],
        prepared: PreparedData,
        *,
        states: Sequence[MemberState | None] | None = None,
        threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        shards: ShardReader | None = None,
    ) -> None:
        """Begin the trials, or go on with them, and read the rows.

        Args:
            specs: Of the trials, all with the same `pack_key`.
            prepared: The rows.
            states: What each goes on from, all of them that are not over at the same epoch; None
                for a trial that begins.
            threads: Of one operation; they show in the last bits.
            device: Where to train.
            shards: Reads the rows; left out, they are read from storage.

        Raises:
            ArtifactDamagedError: If a shard is not what it must be.
            ArtifactError: If a state is that of another shape.
            ValueError: If these trials cannot be in one pack.
        """
        all_facts = [TrainingFacts(loaded, prepared) for loaded in specs]
        _check_same(all_facts, prepared.artifact.manifest.fingerprint)
        self._machine = replace(choose_machine(ResourcesSpec(device=device)), threads=threads)
        first = all_facts[0]
        models = [facts.spec.model for facts in all_facts]
        # Its weights are not what is asked for.
        self._reference = build_model(_with_all_dropouts(models), first.inputs, seed=0)
        self._layout = Layout.of(self._reference)
        keys = _dropout_keys(models)
        repeats = len(self._new_network(first).dropout_widths) // max(1, len(keys))
        found = states or [None] * len(all_facts)
        self.members = [
            Member(facts, self._layout, state)
            for facts, state in zip(all_facts, found, strict=True)
        ]
        self._shares = {
            id(member): [getattr(model, key) for key in keys] * repeats
            for member, model in zip(self.members, models, strict=True)
        }
        if len({member.epoch for member in self._at_work()}) > 1:
            raise ValueError("expected trials that are at the end of the same epoch")
        self._facts = first
        with self._in_force() as torch_device:
            self._device = torch_device
            self._loss = first.loss.on(torch_device)
            reader = first.checked(shards or StoredShards(prepared))
            names = dict.fromkeys(["train", *first.measured])
            self._splits = {name: self._loaded(reader, name) for name in names}
        self._program: Program | None = None

    def train_to(
        self,
        epoch: int,
        *,
        on_epoch: Callable[[int, int], None] = lambda _epoch, _rows: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train all trials that are not over to the end of an epoch; False where it was stopped.

        A stop leaves them at the end of the last whole epoch, from which a later call or another
        pack goes on.

        Args:
            epoch: How many epochs are to be over.
            on_epoch: Told of each epoch that is over, and the rows trained in it over all trials.
            stop_requested: Whether somebody asked for a stop.
        """
        with self._in_force():
            self._leave_out_the_over()
            self._measure_the_untrained()
            while self._program is not None and self._program.members[0].epoch < epoch:
                if stop_requested():
                    return False
                trials, member = len(self._program.members), self._program.members[0]
                before, rows = member.epoch, member.plan.order.num_rows
                if not self._train_epoch(self._program, stop_requested):
                    return False
                self._leave_out_the_over()
                on_epoch(before + 1, trials * rows)
            self._check_finite()
        return True

    def states(self) -> list[MemberState]:
        """What all trials go on from, in the order of their specs."""
        return [member.state() for member in self.members]

    def _at_work(self) -> list[Member]:
        return [member for member in self.members if not member.is_over]

    def _leave_out_the_over(self) -> None:
        """Make the program anew where a trial of it is over."""
        members = self._at_work()
        if self._program is not None and len(members) == len(self._program.members):
            return
        for member in self.members:
            if member.is_over:
                # Views would keep the rows of all trials in memory.
                member.moving = [row_P.detach().to("cpu", copy=True) for row_P in member.moving]
        self._program = None
        if members:
            self._program = Program(
                members,
                self._new_network(self._facts),
                self._layout,
                self._loss,
                [self._shares[id(member)] for member in members],
                self._device,
            )

    def _measure_the_untrained(self) -> None:
        """Epoch 0 of the history, as every run has it."""
        if self._program is None or all(each.history for each in self._program.members):
            return
        self._record(self._program, [None] * len(self._program.members))
        self._leave_out_the_over()

    def _train_epoch(self, program: Program, stop_requested: Callable[[], bool]) -> bool:
        """Train an epoch; where a stop is asked for in a long one, everything is as before."""
        members = program.members
        first, steps = members[0].step, members[0].plan.steps_per_epoch
        before = program.copies() if steps > FLUSH_STEPS else None
        losses = _EpochLosses(len(members))
        plans = [member.plan for member in members]
        batches = packed_batches(self._splits["train"], plans, members[0].epoch)
        for taken, batch in enumerate(batches, 1):
            losses.add(program.step(batch, first + taken - 1), len(batch))
            if taken % FLUSH_STEPS == 0:
                losses.flush()
                if before is not None and taken < steps and stop_requested():
                    program.put_back(before)
                    # The optimizer has counted the steps; a new one begins at the trials' own.
                    self._program = None
                    return False
        losses.flush()
        for member, bad in zip(members, losses.first_bad(), strict=True):
            member.step = first + (steps if bad is None else bad[0] + 1)
            if bad is not None:
                member.error = (
                    f"expected a finite training loss, found {bad[1]} in step {first + bad[0]} "
                    f"(epoch {member.epoch + 1}). Lower `training.optimizer.lr`, or look for "
                    "extreme values in the data"
                )
            else:
                member.epoch += 1
        self._record(program, losses.means())
        return True

    def _record(self, program: Program, train_losses: Sequence[float | None]) -> None:
        """Measure all trials, and close the epoch of those that have not failed."""
        found: list[dict[str, float]] = [{} for _ in program.members]
        for split in self._facts.measured:
            scores = program.measure(self._splits[split], split)
            for member, mine, of_split in zip(program.members, found, scores, strict=True):
                if not math.isfinite(of_split["loss"]) and not member.error:
                    member.error = (
                        f"expected a finite loss on the {split} split, found {of_split['loss']}. "
                        "Lower `training.optimizer.lr`, or look for extreme values in the data"
                    )
                mine |= {f"{split}_{name}": value for name, value in of_split.items()}
        for member, train_loss, scores_of in zip(program.members, train_losses, found, strict=True):
            if not member.error and not member.is_recorded:
                _close_epoch(member, train_loss, scores_of)

    def _check_finite(self) -> None:
        """A trial whose last step gave weights that are not finite has failed.

        The loss of that step was finite, so nobody has noticed yet; see `Snapshot.to_bytes`.
        """
        for member in self.members:
            rows = torch.stack(member.moving)
            if not member.error and not bool(rows.isfinite().all()):
                member.error = (
                    f"expected finite weights after step {member.step}, found NaN or infinity. "
                    "Lower `training.optimizer.lr`, or look for extreme values in the data"
                )

    def _new_network(self, facts: TrainingFacts) -> PackedNetwork:
        return PackedNetwork(self._reference, facts.inputs.cardinalities)

    @contextmanager
    def _in_force(self) -> Iterator[torch.device]:
        with machine_in_force(self._machine) as device:
            yield device

    def _loaded(self, reader: ShardReader, split: str) -> ResidentSplit:
        prepared = self._facts.prepared
        bounds, edges = prepared.shard_bounds(split), [0, prepared.num_rows(split)]
        columns = Columns.of(prepared)
        with closing(read_pieces(reader, split, bounds, edges, columns, self._device)) as pieces:
            return next(pieces)


class _EpochLosses:
    """The losses of an epoch's steps, added up one step after the other in float64."""

    def __init__(self, trials: int) -> None:
        self._waiting: list[tuple[Tensor, Tensor | int]] = []
        self._sum: npt.NDArray[np.float64] = np.zeros(trials)
        self._weight: npt.NDArray[np.float64] = np.zeros(trials)
        self._bad: list[tuple[int, float] | None] = [None] * trials
        self._read = 0

    def add(self, losses: BatchLosses, rows: int) -> None:
        """Take the losses of a step of so many rows."""
        weighs = rows if losses.weighs_K is None else losses.weighs_K
        self._waiting.append((losses.losses_K, weighs))

    def flush(self) -> None:
        """Read what is on the device."""
        if not self._waiting:
            return
        losses_SK = torch.stack([losses_K for losses_K, _ in self._waiting]).double().cpu().numpy()
        with np.errstate(all="ignore"):
            for step, (losses_K, (_, weight)) in enumerate(
                zip(losses_SK, self._waiting, strict=True), self._read
            ):
                counted: Any = weight if isinstance(weight, int) else weight.cpu().numpy()
                self._sum += losses_K * counted
                self._weight += counted
                for place in np.flatnonzero(~np.isfinite(losses_K)).tolist():
                    self._bad[place] = self._bad[place] or (step, float(losses_K[place]))
        self._read += len(self._waiting)
        self._waiting.clear()

    def first_bad(self) -> list[tuple[int, float] | None]:
        """For each trial the first step whose loss was not finite, and that loss."""
        return self._bad

    def means(self) -> list[float | None]:
        """The mean loss of each trial; None where its rows weigh nothing."""
        return [
            total / weight if weight else None
            for total, weight in zip(self._sum.tolist(), self._weight.tolist(), strict=True)
        ]


def _close_epoch(member: Member, train_loss: float | None, scores: dict[str, float]) -> None:
    try:
        member.close_epoch(train_loss, scores)
    except TrainingError as error:
        member.error = str(error)


def _dropout_keys(models: Sequence[ModelSpec]) -> list[str]:
    """The keys under which some trial drops something."""
    keys = DROPOUT_KEYS.get(models[0].kind, ())
    return [key for key in keys if any(getattr(model, key) > 0 for model in models)]


def _with_all_dropouts(models: Sequence[ModelSpec]) -> ModelSpec:
    """The model's section with every dropout layer that some trial has."""
    return models[0].model_copy(update=dict.fromkeys(_dropout_keys(models), 0.5))


def _check_same(all_facts: Sequence[TrainingFacts], fingerprint: str) -> None:
    for facts in all_facts:
        why_not = why_not_packed(facts.spec)
        if why_not is not None:
            raise ValueError(f"expected trials that can be packed: {why_not}")
    if len({pack_key(facts.spec, fingerprint) for facts in all_facts}) != 1:
        raise ValueError("expected trials of one shape, one at least")
