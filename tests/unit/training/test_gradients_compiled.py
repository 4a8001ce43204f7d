"""Compiled kernels give the gradient of the plain ones, for the batches that they are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import TrainingError
from batchtrain.models.arithmetic import plain_arithmetic
from batchtrain.models.build import build_model
from batchtrain.models.inputs import Batch, ModelInputs
from batchtrain.models.losses import make_loss
from batchtrain.spec.model import MlpModel
from batchtrain.training import choosing
from batchtrain.training.compiling import CompiledPass, Pass
from batchtrain.training.gradients import GradientRules, make_gradients
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.passes import make_forward
from batchtrain.training.ranks import OneRank
from tests.support.builders import mixed_table, run, spec_for, train_in_parts

CPU = torch.device("cpu")
INPUTS = ModelInputs(num_numeric=5, cardinalities=(3, 4), num_outputs=3)
CLASS_WEIGHTS = (0.5, 2.0, 1.0)


@pytest.fixture(autouse=True)
def in_a_training() -> Iterator[None]:
    """The settings that every training is in."""
    with plain_arithmetic(1), torch.random.fork_rng(devices=[]):
        yield


def new_model(dropout: float = 0.3) -> nn.Module:
    return build_model(
        MlpModel(kind="mlp", hidden=(16, 8), dropout=dropout), INPUTS, seed=1
    ).train()


def batch_of(num_rows: int, *, has_weights: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(num_rows)
    return Batch(
        torch.randn(num_rows, 5, generator=generator),
        torch.randint(0, 3, (num_rows, 2), generator=generator),
        torch.randint(0, 3, (num_rows,), generator=generator),
        torch.rand(num_rows, generator=generator) if has_weights else None,
    )


# ----------------------------------------------------------------------------------------------
# Which batches are compiled; nothing is compiled here


def passes_taken(
    sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[CompiledPass, list[str]]:
    """A pass whose graphs are made by nobody; what was taken for each batch."""
    taken: list[str] = []

    def plain(*_given: Any) -> Tensor:
        taken.append("plain")
        return torch.zeros(())

    def compiled(_self: CompiledPass, *given: Any) -> tuple[Callable[..., Any], Any]:
        taken.append("compiling")

        def graph(*given: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            taken.append(f"graph {len(given[0])}")
            return torch.zeros(()), [torch.ones_like(each) for each in new_model().parameters()]

        return graph, graph(*given[-1])

    monkeypatch.setattr(CompiledPass, "_compiled", compiled)
    forward: Pass = make_forward("float32", CPU)
    return CompiledPass(frozenset(sizes), plain=plain, forward=forward), taken


def test_each_size_is_compiled_once_and_the_short_last_batch_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differentiate, taken = passes_taken({8, 9}, monkeypatch)
    model, loss = new_model(), make_loss("cross_entropy")
    for rows in (8, 9, 8, 3, 9, 1):
        differentiate(model, loss, batch_of(rows), None)
    assert taken == [
        *("compiling", "graph 8", "compiling", "graph 9"),
        *("graph 8", "plain", "graph 9", "plain"),
    ]


def test_a_row_that_stands_in_is_not_what_kernels_are_made_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differentiate, taken = passes_taken({1}, monkeypatch)
    model = new_model()
    differentiate(model, make_loss("cross_entropy"), batch_of(1, has_weights=True), 1.0)
    weighted = make_loss("cross_entropy", row_weights=True)
    differentiate(model, weighted, batch_of(1, has_weights=True), 1.0)
    assert taken == ["plain", "compiling", "graph 1"]


def test_gradients_of_pieces_are_added_and_lie_as_the_parameters_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differentiate, _taken = passes_taken({4}, monkeypatch)
    model, loss = new_model(), make_loss("cross_entropy")
    for _ in range(3):
        differentiate(model, loss, batch_of(4), 12.0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.full_like(parameter, 3.0))
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize(
    ("batch_rows", "num_parts", "micro_rows", "sizes"),
    [
        (64, 1, None, {64}),
        (64, 1, 20, {16}),
        (65, 1, 20, {16, 17}),
        (10, 3, None, {3, 4}),
        (2, 8, None, {1}),
    ],
)
def test_kernels_are_made_for_the_pieces_of_a_whole_batch(
    batch_rows: int, num_parts: int, micro_rows: int | None, sizes: set[int]
) -> None:
    rules = GradientRules(micro_rows=micro_rows, compile=True, batch_rows=batch_rows)
    found = rules.make_pass(num_parts, CPU)
    assert isinstance(found, CompiledPass)
    assert found._sizes == sizes


# ----------------------------------------------------------------------------------------------
# When


def choices_for(
    folder: Path, *, epochs: int, compile_asked: Any = "auto", kind: str = "mlp", **training: Any
) -> tuple[MachineChoices, str]:
    training |= {"epochs": epochs, "compile": compile_asked}
    loaded = spec_for(folder, mixed_table(60), training=training)
    spec = loaded.spec
    if kind == "custom":
        spec = spec.model_copy(update={"model": SimpleNamespace(kind="custom")})
    rows = 100_000
    plan: Any = SimpleNamespace(batch_rows=1024, last_step=epochs * 98)
    prepared: Any = SimpleNamespace(num_rows=lambda _split: rows)
    here = choose_machine(loaded.spec.resources.model_copy(update={"device": "cpu"}))
    return choosing.choose_passes(here, spec, prepared, plan, INPUTS)


def test_auto_compiles_long_runs_of_our_own_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not choices_for(tmp_path, epochs=20)[0].compile
    assert choices_for(tmp_path, epochs=20_000)[0].compile
    assert not choices_for(tmp_path, epochs=20_000, kind="custom")[0].compile
    assert not choices_for(tmp_path, epochs=20_000, compile_asked=False)[0].compile
    assert not choices_for(tmp_path, epochs=20_000, max_time=20)[0].compile
    assert choices_for(tmp_path, epochs=1, compile_asked=True)[0].compile
    monkeypatch.setattr(choosing.shutil, "which", lambda _name: None)
    choices, why = choices_for(tmp_path, epochs=20_000)
    assert not choices.compile
    assert "there is no C++ compiler here. Install g++" in why
    assert choices_for(tmp_path, epochs=20)[1] == ""
    with pytest.raises(TrainingError, match=r"training\.compile: expected a compiler for cpu"):
        choices_for(tmp_path, epochs=1, compile_asked=True)


def test_a_wider_model_and_larger_batches_win_more() -> None:
    wide = build_model(MlpModel(kind="mlp", hidden=(256, 64)), INPUTS, seed=1)
    assert choosing.seconds_won(wide, 32) > choosing.seconds_won(new_model(), 32)
    assert choosing.seconds_won(wide, 1024) > choosing.seconds_won(wide, 32)


# ----------------------------------------------------------------------------------------------
# What comes of it; each compiles, for seconds


def gradient_of(
    model: nn.Module, *, is_compiled: bool, has_weights: bool, num_rows: int, **rules: Any
) -> tuple[Tensor, float]:
    loss = make_loss("cross_entropy", class_weights=CLASS_WEIGHTS, row_weights=has_weights)
    given = GradientRules(micro_rows=16, compile=is_compiled, batch_rows=32, **rules)
    gradients = make_gradients("order", OneRank(), CPU, seed=3, rules=given)
    wrapped = gradients.wrap(model, loss, batch_of(1))
    batch = batch_of(num_rows, has_weights=has_weights)
    model.zero_grad()
    value = gradients.gradient(wrapped, loss, [batch], num_rows, 5)
    assert all(each.grad.stride() == each.stride() for each in model.parameters())
    return torch.cat([each.grad.flatten() for each in model.parameters()]), float(value)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("has_weights", "precision", "apart"),
    [(False, "float32", 1e-6), (True, "float32", 1e-6), (True, "bfloat16", 2e-2)],
)
def test_the_gradient_is_that_of_the_plain_passes_with_the_same_dropout(
    has_weights: bool, precision: str, apart: float
) -> None:
    for num_rows in (32, 7):  # the second is not compiled
        found_P, found = gradient_of(
            new_model(),
            is_compiled=True,
            has_weights=has_weights,
            num_rows=num_rows,
            precision=precision,
        )
        expected_P, expected = gradient_of(
            new_model(),
            is_compiled=False,
            has_weights=has_weights,
            num_rows=num_rows,
            precision=precision,
        )
        torch.testing.assert_close(found_P, expected_P, rtol=0, atol=apart)
        assert found == pytest.approx(expected, abs=apart)


class Counting(nn.Module):
    """A user's: Python decides, the running mean is state, and one layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.unused = nn.Linear(2, 2)
        self.has_turned = False

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        outputs_BK = self.layers(numeric_BF)
        return -outputs_BK if self.has_turned else outputs_BK


@pytest.mark.slow
@pytest.mark.long
def test_a_users_network_is_asked_again_in_each_call_and_keeps_its_state() -> None:
    loss = make_loss("cross_entropy")
    models = [Counting(), Counting()]
    ways = []
    for model, is_compiled in zip(models, (True, False), strict=True):
        rules = GradientRules(compile=is_compiled, batch_rows=12)
        gradients = make_gradients("order", OneRank(), CPU, seed=3, rules=rules)
        ways.append((gradients, gradients.wrap(model, loss, batch_of(1)), model))
    for has_turned in (False, True, False):
        found = []
        for gradients, wrapped, model in ways:
            model.has_turned = has_turned
            model.zero_grad()
            value = gradients.gradient(wrapped, loss, [batch_of(12)], 12, 5)
            assert model.unused.weight.grad is None
            used = [each.grad.flatten() for each in model.layers.parameters()]
            found.append(torch.cat([*used, value.reshape(1)]))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    for name, buffer in models[0].named_buffers():
        torch.testing.assert_close(buffer, models[1].get_buffer(name))
    assert int(models[0].layers[1].num_batches_tracked) == 3


class Forking(nn.Module):
    """A user's that no compiler can follow: the data decide what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        outputs_BK = self.layer(numeric_BF)
        return outputs_BK if float(outputs_BK.sum()) > 0 else -outputs_BK


@pytest.mark.slow
@pytest.mark.long
def test_a_network_that_cannot_be_compiled_is_an_error_that_says_what_to_do() -> None:
    loss, model = make_loss("cross_entropy"), Forking()
    rules = GradientRules(compile=True, batch_rows=12)
    gradients = make_gradients("order", OneRank(), CPU, seed=3, rules=rules)
    with pytest.raises(
        TrainingError, match=r"kernels of Forking, found.*`training.compile: false`"
    ):
        gradients.gradient(gradients.wrap(model, loss, batch_of(1)), loss, [batch_of(12)], 12, 0)


@pytest.mark.slow
@pytest.mark.long
def test_half_a_file_that_a_killed_process_left_among_the_kernels_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.utils import clear_caches  # seconds, which every run of tests would take

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    clear_caches()  # Those in memory, of the tests before.
    asked = {"is_compiled": True, "has_weights": False, "num_rows": 32}
    expected_P, expected = gradient_of(new_model(), **asked)
    kernels = list(tmp_path.rglob("*.main.so"))
    assert kernels
    for path in kernels:
        path.unlink()  # What is loaded stays as it is.
        path.touch()
    clear_caches()
    found_P, found = gradient_of(new_model(), **asked)
    assert [path.stat().st_size for path in kernels] == [0] * len(kernels)
    assert torch.equal(found_P, expected_P)
    assert found == expected


@pytest.mark.slow
@pytest.mark.long
def test_p1_a_compiled_run_that_is_stopped_ends_with_the_bytes_of_one_that_is_not(
    tmp_path: Path,
) -> None:
    for name in ("whole", "broken", "plain"):
        (tmp_path / name).mkdir()
    training = {"epochs": 2, "batch_size": 16, "compile": True}
    whole = run(spec_for(tmp_path / "whole", mixed_table(60), training=training), last="train")
    loaded = spec_for(tmp_path / "broken", mixed_table(60), training=training)
    broken = train_in_parts(loaded, [1, 3])
    plain = {**training, "compile": False}
    other = run(spec_for(tmp_path / "plain", mixed_table(60), training=plain), last="train")
    assert whole.trained is not None
    assert broken.trained is not None
    assert other.trained is not None
    assert broken.trained.machine()["compile"] is True
    assert broken.trained.inexact() == []
    digests = [each.trained.content["state_sha256"] for each in (whole, broken, other)]
    assert digests[0] == digests[1]
    # So that the test cannot pass where nothing is compiled.
    assert digests[2] != digests[0]


@pytest.mark.gpu
def test_kernels_for_a_gpu_give_the_same_gradient() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device, loss, found = torch.device("cuda"), make_loss("cross_entropy"), []
    numeric_BF, codes_BC, target_B = (
        each.to(device)
        for each in (batch_of(32).numeric_BF, batch_of(32).codes_BC, batch_of(32).target_B)
    )
    for is_compiled in (True, False):
        model = new_model(0.0).to(device)
        rules = GradientRules(compile=is_compiled, batch_rows=32)
        gradients = make_gradients("order", OneRank(), device, seed=3, rules=rules)
        gradients.gradient(model, loss, [Batch(numeric_BF, codes_BC, target_B)], 32, 0)
        found.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
