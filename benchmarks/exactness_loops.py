"""What the benchmarks of exactness share: networks, plans, our loop in parts, the plain loop.

Shapes: N rows of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import Loss, make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.preparation.shards import SHARD_ROWS
from batchtrain.row_order import WINDOW_ROWS, RowOrder
from batchtrain.spec.model import MlpModel
from batchtrain.spec.run import Determinism, ResourcesSpec
from batchtrain.spec.training import CheckpointSpec, TrainingSpec
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.loop import Keeper, StepLosses, train_until_done
from batchtrain.training.machine import choose_machine, machine_in_force
from batchtrain.training.plan import TrainingPlan, make_plan
from batchtrain.training.ranks import OneRank, Ranks
from batchtrain.training.state import TrainState
from batchtrain.training.tracking import RunWatcher
from batchtrain.training.worker import GATHER_ROWS, ResidentSplit, ResidentWorker
from benchmarks.paired import Comparison, Spread, Taken, show, timed
from benchmarks.training_loops import NUM_FEATURES, OPTIMIZER, SEED, NowhereToSave

__all__ = [
    "LARGE",
    "SMALL",
    "TINY",
    "Effort",
    "GoesOn",
    "Network",
    "OurTraining",
    "Part",
    "PlainTraining",
    "begun",
    "made_order",
    "made_plan",
    "quiet_keeper",
    "shown",
]

MAX_EPOCHS = 10_000


@dataclass(frozen=True)
class Network:
    """An MLP of one size."""

    hidden: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"MLP {'-'.join(map(str, self.hidden))}"

    def build(self) -> nn.Module:
        """The model, with the same initial weights each time."""
        inputs = ModelInputs(num_numeric=NUM_FEATURES, cardinalities=(), num_outputs=2)
        return build_model(MlpModel(kind="mlp", hidden=self.hidden, dropout=0.0), inputs, seed=SEED)


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Paired rounds that count; where a round is short, there are more.
        share: Of the rows.
        networks: A small one and a large one.
    """

    rounds: int
    share: float
    networks: tuple[Network, Network]

    def rows(self, num_rows: int, *, at_least: int) -> int:
        """So many rows, or fewer for a quick look."""
        return max(at_least, int(num_rows * self.share))


@dataclass(frozen=True)
class Part:
    """What one case gave.

    Attributes:
        taken: By contender, each round.
        found: The ratios.
    """

    taken: Mapping[str, Sequence[Taken]]
    found: Sequence[Comparison] = ()


SMALL = Network((128, 64))
LARGE = Network((2048, 2048, 384))  # 5 million parameters
TINY = Network((64, 64))


def made_order(num_rows: int, lanes: int = 1) -> RowOrder:
    """The order that prepared data of so many rows have."""
    shards_per_lane = max(1, -(-num_rows // (lanes * SHARD_ROWS)))
    return RowOrder(num_rows, lanes, shards_per_lane, WINDOW_ROWS, SEED)


def made_plan(num_rows: int, batch_rows: int) -> TrainingPlan:
    """A plan that no benchmark comes to the end of."""
    return make_plan(TrainingSpec(epochs=MAX_EPOCHS, batch_size=batch_rows), made_order(num_rows))


def begun(network: Network) -> TrainState:
    """A training of which no step was taken."""
    model = network.build()
    optimizer = build_optimizer(OPTIMIZER, model.parameters(), fused=True)
    schedule = build_schedule(None, optimizer, MAX_EPOCHS)
    return TrainState(model, optimizer, schedule, early_stop=None)


class GoesOn:
    """A keeper that neither looks nor saves."""

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        """See `batchtrain.training.loop.Keeper`."""
        return True


def quiet_keeper(ranks: Ranks) -> StateKeeper:
    """The keeper of a run as it is after most steps: it looks, and nothing is due."""
    saver = NowhereToSave() if ranks.rank == 0 else None
    return StateKeeper(CheckpointSpec(), ranks, saver, stop_requested=lambda: False)


class OurTraining:
    """The loop of `batchtrain train`, some epochs a call, with parts that can be exchanged."""

    def __init__(
        self,
        rows: SplitRows,
        plan: TrainingPlan,
        network: Network,
        *,
        ranks: Ranks | None = None,
        keeper: Keeper | None = None,
        determinism: Determinism = "order",
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.state = begun(network)
        self.keeper = keeper or quiet_keeper(ranks or OneRank())
        self._plan = plan
        self._loss = make_loss("cross_entropy")
        self._within = within
        self._machine = choose_machine(ResourcesSpec())
        self._worker = _WrapsOnce(
            plan, {"train": rows}, torch.device("cpu"), ranks=ranks, determinism=determinism
        )

    def __call__(self) -> Taken:
        """Train one more epoch."""
        with machine_in_force(self._machine), self._within():
            return timed(self.train)

    def train(self, epochs: int = 1) -> None:
        """Train more epochs."""
        plan = replace(self._plan, epochs=self.state.epoch + epochs)
        train_until_done(
            self.state, self._worker, plan, self._loss, RunWatcher.silent(), self.keeper, ()
        )


class _WrapsOnce(ResidentWorker):
    """A worker that wraps its model in the first turn; what that takes is measured apart."""

    _wrapped: nn.Module | None = None

    def wrap(self, model: nn.Module, loss: Loss) -> nn.Module:
        """See `Worker.wrap`."""
        if self._wrapped is None:
            self._wrapped = super().wrap(model, loss)
        return self._wrapped


class PlainTraining:
    """The same model, batches, loss and optimizer, with nothing that a repetition needs.

    Rows come as `torch.randperm` gives them, cut among the ranks as a DistributedSampler does. No
    dropout is seeded, no point named, nobody asked between two steps. The losses are kept on the
    device and read once an epoch.
    """

    def __init__(
        self,
        rows: SplitRows,
        plan: TrainingPlan,
        network: Network,
        *,
        ranks: Ranks | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.loss = float("nan")
        self._ranks = ranks or OneRank()
        self._split = ResidentSplit.of(rows, torch.device("cpu"))
        self._batch_rows = plan.batch_rows // self._ranks.size
        self._model = wrap(network.build())
        self._optimizer = build_optimizer(OPTIMIZER, self._model.parameters(), fused=True)
        self._loss = make_loss("cross_entropy")
        self._epoch = 0

    def __call__(self) -> Taken:
        """Train one more epoch."""
        return timed(self._train)

    def _train(self) -> None:
        same_on_all = torch.Generator().manual_seed(self._epoch)
        self._epoch += 1
        rows_N = torch.randperm(len(self._split), generator=same_on_all)
        rows_N = rows_N[self._ranks.rank :: self._ranks.size]
        losses = []
        self._model.train()
        for block in rows_N.split(max(self._batch_rows, GATHER_ROWS // self._ranks.size)):
            for batch in self._split.gathered(block, self._batch_rows):
                self._optimizer.zero_grad()
                loss = self._loss(self._model(batch.numeric_BF, batch.codes_BC), batch)
                loss.backward()
                self._optimizer.step()
                losses.append(loss.detach())
        self.loss = float(torch.stack(losses).mean())


def shown(
    title: str,
    taken: Mapping[str, Sequence[Taken]],
    found: Sequence[Comparison],
    *,
    steps: int,
) -> None:
    """Print ratios, and what they are of in microseconds a step."""
    lines = []
    for each in found:
        ours = Spread.of([run.wall_s for run in taken[each.ours]]).median
        theirs = Spread.of([run.wall_s for run in taken[each.theirs]]).median
        lines.append(
            [
                f"{each.ours} / {each.theirs}",
                f"{each.wall:.3f}",
                f"{each.cpu:.3f}",
                f"{1e6 * ours / steps:,.0f} / {1e6 * theirs / steps:,.0f}",
                str(each.rounds),
            ]
        )
    show(title, ["", "on the clock", "by CPU time", "us a step", "rounds"], lines)
