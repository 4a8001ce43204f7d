"""The moving average of the weights: its formula, where it is used, and that a resume keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import ArtifactError
from batchtrain.models.losses import make_loss
from batchtrain.spec.training import Ema
from batchtrain.training.ema import WeightAverage
from batchtrain.training.measuring import measure
from batchtrain.training.state import TrainState, weights_of
from tests.support.loops import LoopRun, SmallNet, StopAfter, written


class NormedNet(SmallNet):
    """With buffers, a frozen weight, and a bias that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.same_bias = self.layers[3].bias

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return super().forward(self.norm(numeric_BF * self.frozen), codes_BC) + self.same_bias


def recorded(run: LoopRun) -> tuple[TrainState, list[dict[str, Tensor]]]:
    """A whole training, and the weights before the first step and after each."""
    state = run.new_state()
    weights = [weights_of(state.model)]
    run.go(state, StopAfter(looks=lambda state: weights.append(weights_of(state.model))))
    return state, weights


@pytest.mark.parametrize("ramp", [True, False])
@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_average_is_that_of_the_formula(ramp: bool, decay: float) -> None:
    run = LoopRun({"ema": {"decay": decay, "ramp": ramp}}, network=NormedNet)
    state, weights = recorded(run)
    trained = [name for name, each in state.model.named_parameters() if each.requires_grad]
    found = state.weights()
    for name in trained:
        average = weights[0][name].double()
        for step, after in enumerate(weights[1:], start=1):
            left = min(decay, (1 + step) / (10 + step)) if ramp else decay
            average = left * average + (1 - left) * after[name].double()
        torch.testing.assert_close(found[name].double(), average, rtol=1e-5, atol=1e-6)
        assert not torch.equal(found[name], weights[-1][name])
    for name in ("norm.running_mean", "norm.num_batches_tracked", "frozen"):
        assert torch.equal(found[name], weights[-1][name])
    assert torch.equal(found["same_bias"], found["layers.3.bias"])


def test_it_does_not_change_what_the_steps_learn() -> None:
    plain, averaged = LoopRun({}).whole(), LoopRun({"ema": {"decay": 0.9}}).whole()
    for name, value in weights_of(plain.model).items():
        assert torch.equal(value, weights_of(averaged.model)[name])
    assert plain.history[0] == averaged.history[0]
    losses = [[record["valid_loss"] for record in each.history[1:]] for each in (plain, averaged)]
    assert all(mine != theirs for mine, theirs in zip(*losses, strict=True))


def test_epochs_are_measured_with_it_and_the_best_weights_are_averages() -> None:
    run = LoopRun({"ema": {"decay": 0.95}}, network=NormedNet)
    state = run.whole()
    for record in state.history[1:]:
        if record["epoch"] == state.best_epoch:
            model = NormedNet()
            model.load_state_dict(dict(state.kept_weights()))
            worker = run.worker(state)
            assert measure(model, make_loss("mse"), worker, "valid")["loss"] == record["valid_loss"]
    # After the last epoch the model has its own weights again.
    assert not torch.equal(state.weights()["layers.0.weight"], state.model.layers[0].weight)


def test_an_error_while_the_averages_are_in_force_puts_the_weights_back() -> None:
    model = SmallNet()
    average = WeightAverage(Ema(), model)
    with torch.no_grad():
        model.layers[0].weight.add_(1)
    mine = weights_of(model)

    def fails() -> None:
        with average.in_force():
            assert not torch.equal(model.layers[0].weight, mine["layers.0.weight"])
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert all(torch.equal(value, mine[name]) for name, value in weights_of(model).items())


@pytest.mark.parametrize("stops", [(1,), (4, 1, 1), (5, 5), (14,)])
def test_a_resume_goes_on_with_the_same_average(stops: tuple[int, ...]) -> None:
    run = LoopRun({"ema": {"decay": 0.99}}, network=NormedNet)
    assert written(run.in_parts(*stops)) == written(run.whole())


def test_averages_of_another_model_are_refused() -> None:
    average = WeightAverage(Ema(), SmallNet())
    wrong: list[dict[str, Any]] = [{}, WeightAverage(Ema(), SmallNet(outputs=2)).tensors()]
    for tensors in wrong:
        with pytest.raises(ArtifactError, match=r"averages of this model's weights in here"):
            average.load(tensors, 1, where="here")
