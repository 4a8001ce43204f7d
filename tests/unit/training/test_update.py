"""What happens to a gradient before the step: clipped as torch clips, left out, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import DivergedError
from batchtrain.spec.training import TrainingSpec
from batchtrain.training import update as updating
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import TrainState
from batchtrain.training.update import make_update
from tests.support.loops import LoopRun, SmallNet, written

SGD = {"optimizer": {"kind": "sgd", "lr": 0.1}}


def gradients(model: nn.Module, scale: float = 1.0) -> None:
    """Leave some gradient in the parameters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def stepped(training: dict[str, Any], scale: float = 1.0) -> TrainState:
    """The state after one step along that gradient."""
    run = LoopRun({**SGD, **training})
    state = run.new_state()
    gradients(state.model, scale)
    make_update(run.spec, state, OneRank(), run.notes.append)(torch.ones(1))
    return state


def expected(clip: Any, scale: float) -> dict[str, Tensor]:
    """The weights after the same step, as plain torch takes it."""
    model = SmallNet()
    gradients(model, scale)
    clip(model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1, fused=True).step()
    return model.state_dict()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    ("training", "clip"),
    [
        ({"clip_norm": 0.5}, lambda each: nn.utils.clip_grad_norm_(each, 0.5)),
        ({"clip_value": 0.25}, lambda each: nn.utils.clip_grad_value_(each, 0.25)),
        ({}, lambda each: None),
    ],
)
def test_a_clipped_step_is_torchs_to_the_last_bit(training: Any, clip: Any, scale: float) -> None:
    found = stepped(training, scale).model.state_dict()
    for name, value in expected(clip, scale).items():
        assert torch.equal(found[name], value)


def test_clipping_has_an_effect_on_a_whole_training() -> None:
    runs = [
        LoopRun({**SGD, **training}).whole()
        for training in ({}, {"clip_norm": 0.05}, {"clip_value": 0.01}, {"clip_norm": 1e9})
    ]
    first = [state.model.layers[0].weight for state in runs]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[1], first[2])
    assert torch.equal(first[0], first[3])


def test_what_is_not_asked_for_is_the_optimizers_step_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(updating, "_CheckedUpdate", None)
    monkeypatch.setattr(updating, "get_total_norm", None)
    state = LoopRun(SGD).whole()
    assert state.step == 15
    parts = torch.ones(1)
    assert make_update(TrainingSpec(), state, OneRank(), print)(parts) is parts


class HalvingScaler:
    """As the scaler of float16: halves its scale after a gradient that is not finite."""

    def __init__(self) -> None:
        self.scale = 1024.0
        self.told: list[bool] = []

    def update(self, is_finite: bool) -> None:
        self.told.append(is_finite)
        if not is_finite:
            self.scale /= 2

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state(self, state: Any) -> None:
        self.scale = float(state["scale"])


@pytest.mark.parametrize("on_nan", ["stop", "skip", "roll_back"])
def test_a_scale_that_is_too_large_costs_a_step_and_nothing_more(on_nan: str) -> None:
    run = LoopRun({"on_nan": on_nan}, spoils=lambda _state, step: (INF if step in {0, 7} else 1, 1))
    state = run.new_state()
    state.scaler = HalvingScaler()
    before = written(state)
    assert run.go(state)
    assert state.scaler.told == [step not in {0, 7} for step in range(15)]
    assert state.scaler.scale == 256.0
    assert state.left_out.total == 2
    assert state.rolled_back == []
    assert [record.get("left_out_steps") for record in state.history] == [None, 1, 1, None]
    # Its loss is as good as any, but where nobody wants to see it.
    assert len(run.heard.losses) == (13 if on_nan == "skip" else 15)
    other = run.new_state()
    other.scaler = HalvingScaler()
    other.load_bytes(*written(state), where="memory")
    assert other.scaler.scale == 256.0
    assert written(other) == written(state) != before


def test_float16_whose_loss_is_no_number_stops_the_run_as_any_other() -> None:
    run = LoopRun({}, spoils=lambda _state, step: (NAN, NAN) if step == 6 else (1, 1))
    state = run.new_state()
    state.scaler = HalvingScaler()
    with pytest.raises(DivergedError, match="found nan in step 6"):
        run.go(state)


INF, NAN = float("inf"), float("nan")
