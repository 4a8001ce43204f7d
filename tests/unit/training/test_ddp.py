"""Several ranks: what they gather, and that a restart changes no bit of their training."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchtrain.errors import TrainingError
from batchtrain.models.optimizers import build_optimizer
from batchtrain.spec.optimizers import Adam
from batchtrain.testing.gloo import run_gloo
from batchtrain.testing.processes import Report
from batchtrain.training.ddp import exact_ddp
from batchtrain.training.ranks import GlooRanks, OneRank

STEPS = 20
RESUMED_AT = (1, 7, 13)
FEATURES = 24
SMALL_BUCKET = 0.02
"""Megabytes: about two layers of `DeepNet`, so that there are several buckets."""


class DeepNet(nn.Module):
    """Eight layers; with a part that is not used, where asked for."""

    def __init__(self, *, has_unused: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(8):
            layers += [nn.Linear(FEATURES * 2, FEATURES * 2), nn.Tanh()]
        self.stem = nn.Linear(FEATURES, FEATURES * 2)
        self.layers = nn.Sequential(*layers, nn.Dropout(0.2))
        self.head = nn.Linear(FEATURES * 2, 1)
        self.unused = nn.Linear(FEATURES, FEATURES) if has_unused else None

    def forward(self, features_BF: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(features_BF)))


class CountingNet(nn.Module):
    """Changes everything that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 1)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("late", None)

    def forward(self, features_BF: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.late = torch.ones(1)
        with torch.no_grad():
            self.frozen.mul_(2)
        noisy_BF = nn.functional.dropout(features_BF, 0.5, self.training)
        return self.linear(self.norm(noisy_BF))


def rows(step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(6, FEATURES, generator=generator)


def warm_up(model: nn.Module) -> None:
    model(rows(10**6, 0)).square().mean().backward()


def wrap_exactly(model: nn.Module) -> nn.Module:
    return exact_ddp(model, backward=warm_up, bucket_megabytes=SMALL_BUCKET)


def wrap_plainly(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, bucket_cap_mb=SMALL_BUCKET)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from model.state_dict().values()
    for state in optimizer.state_dict()["state"].values():
        yield from state.values()


def digest_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    digest = hashlib.sha256()
    for value in tensors_of(model, optimizer):
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_on(
    wrap: Callable[[nn.Module], nn.Module],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    first_step: int,
) -> Iterator[int]:
    wrapped = wrap(model)
    for step in range(first_step, STEPS):
        torch.manual_seed(1000 * step + rank)
        optimizer.zero_grad()
        wrapped(rows(step, rank)).square().mean().backward()
        optimizer.step()
        yield step + 1


def clone(value: Any) -> Any:
    """A deep copy of a state dict."""
    if isinstance(value, dict):
        return {key: clone(each) for key, each in value.items()}
    if isinstance(value, list):
        return [clone(each) for each in value]
    return value.clone() if isinstance(value, Tensor) else value


def new_run(*, has_unused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = DeepNet(has_unused=has_unused)
    spec = Adam(kind="adam", lr=1e-2, weight_decay=0.1)
    # Not torch's own, whose first step imports a compiler in each rank.
    return model, build_optimizer(spec, model.parameters(), fused=True)


def train_and_resume(
    ranks: GlooRanks,
    report: Report,
    *,
    wrap: Callable[[nn.Module], nn.Module],
    has_unused: bool = False,
) -> dict[str, str]:
    """Train through, and again from some steps with a new wrapper, as a new process does."""
    model, optimizer = new_run(has_unused=has_unused)
    saved = {}
    for step in train_on(wrap, model, optimizer, ranks.rank, 0):
        if step in RESUMED_AT:
            saved[step] = clone(model.state_dict()), clone(optimizer.state_dict())
    digests = {"whole": digest_of(model, optimizer)}
    for step, (weights, moments) in saved.items():
        model, optimizer = new_run(has_unused=has_unused)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        for _ in train_on(wrap, model, optimizer, ranks.rank, step):
            pass
        digests[str(step)] = digest_of(model, optimizer)
    return digests


@pytest.mark.parametrize("has_unused", [False, True])
@pytest.mark.parametrize("size", [3, pytest.param(4, marks=pytest.mark.long)])
def test_f01_resume_with_three_and_four_ranks_changes_no_bit(size: int, has_unused: bool) -> None:
    found = run_gloo(partial(train_and_resume, wrap=wrap_exactly, has_unused=has_unused), size)
    assert len({digest for digests in found for digest in digests.values()}) == 1


@pytest.mark.parametrize("size", [3, pytest.param(4, marks=pytest.mark.long)])
def test_f01_the_model_is_one_on_which_plain_ddp_does_change_bits(size: int) -> None:
    """A check of the test above: were the bits the same here, it could not fail."""
    found = run_gloo(partial(train_and_resume, wrap=wrap_plainly), size)
    assert len({digests["whole"] for digests in found}) == 1
    # One step in another order may by chance round to the same; not each time.
    assert len(set(found[0].values())) > 1


def state_around_wrap(ranks: GlooRanks, report: Report, *, has_gradients: bool) -> dict[str, Any]:
    torch.manual_seed(5)
    model = CountingNet()
    model.norm.eval()
    if has_gradients:
        model.linear.weight.grad = torch.full_like(model.linear.weight, 2.5)
    before = clone(dict(model.state_dict()))
    given = model.linear.weight.grad
    random = torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    wrapped = exact_ddp(model, backward=warm_up)
    gradient = model.linear.weight.grad
    after = model.state_dict()
    return {
        "names": list(before) == list(after),
        "values": all(torch.equal(before[name], after[name]) for name in before),
        "late": model.late is None,
        "random": torch.equal(random, torch.get_rng_state()),
        "flags": flags == [module.training for module in model.modules()],
        "gradient": gradient is given and (given is None or bool((given == 2.5).all())),
        "others": all(parameter.grad is None for parameter in model.norm.parameters()),
        "wraps": wrapped.module is model,
    }


@pytest.mark.parametrize("has_gradients", [False, True])
def test_the_warm_up_leaves_everything_as_it_was(has_gradients: bool) -> None:
    found = run_gloo(partial(state_around_wrap, has_gradients=has_gradients), 2)
    for checks in found:
        assert all(checks.values()), checks


def mean_gradients(ranks: GlooRanks, report: Report) -> list[Any]:
    model, _ = new_run(has_unused=True)
    model.eval()  # no dropout
    alone: list[list[Tensor]] = []
    for rank in range(ranks.size):
        model.zero_grad()
        model(rows(0, rank)).square().mean().backward()
        alone.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    wrapped = wrap_exactly(model)
    wrapped(rows(0, ranks.rank)).square().mean().backward()
    together = [p.grad for p in model.parameters() if p.grad is not None]
    means = [torch.stack(each).mean(dim=0) for each in zip(*alone, strict=True)]
    return [
        all(torch.allclose(a, b, atol=1e-7) for a, b in zip(together, means, strict=True)),
        [name for name, p in model.named_parameters() if p.grad is None],
    ]


def test_gradients_are_the_mean_over_ranks_and_an_unused_parameter_has_none() -> None:
    expected = [True, ["unused.weight", "unused.bias"]]
    assert run_gloo(mean_gradients, 3) == [expected] * 3


class Detached(nn.Module):
    """Its parameter never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FEATURES, 1))

    def forward(self, features_BF: Tensor) -> Tensor:
        return (features_BF.requires_grad_() @ self.weight.detach())[:, :1]


def wrap_detached(ranks: GlooRanks, report: Report) -> None:
    exact_ddp(Detached(), backward=warm_up)


def test_a_model_without_gradients_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"Detached: expected at least one parameter to get a"):
        run_gloo(wrap_detached, 2)


FLOATS = [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf]


def gather_all(ranks: GlooRanks, report: Report) -> list[Any]:
    found: list[Any] = [ranks.gather([ranks.rank, FLOATS])]
    # Around the 248 bytes that fit into the first collective, on one rank and on all.
    for length in (0, 245, 246, 247, 5000):
        found.append([len(text) for text in ranks.gather("x" * length)])
        found.append([len(text) for text in ranks.gather("x" * (length * ranks.rank))])
    found.append(ranks.gather({"umlaut": "ä", "rank": ranks.rank}))
    return [*found, math.isnan(ranks.gather(math.nan)[0])]


def test_all_ranks_gather_the_same_values_in_the_order_of_the_ranks() -> None:
    expected: list[Any] = [[[rank, FLOATS] for rank in range(3)]]
    for length in (0, 245, 246, 247, 5000):
        expected += [[length] * 3, [0, length, 2 * length]]
    expected += [[{"umlaut": "ä", "rank": rank} for rank in range(3)], True]
    found = run_gloo(gather_all, 3)
    assert [repr(each) for each in found] == [repr(expected)] * 3


def test_one_rank_gathers_its_own_value() -> None:
    ranks = OneRank()
    assert (ranks.rank, ranks.size, ranks.gather({"loss": 0.1})) == (0, 1, [{"loss": 0.1}])


WITHOUT_COMPILER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from batchtrain.training.ddp import check_reduced, exact_ddp

store = dist.FileStore(sys.argv[1], 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
rows = torch.ones(4, 3)
wrapped = exact_ddp(nn.Linear(3, 2), backward=lambda model: model(rows).sum().backward())
wrapped(rows).sum().backward()
check_reduced(wrapped)
assert wrapped.module.weight.grad is not None
dist.destroy_process_group()
print("torch._dynamo" in sys.modules, hasattr(torch._dynamo.utils, "get_optimize_ddp_mode"))
"""


def test_ddp_starts_without_torchs_compiler_which_is_there_for_whoever_asks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path / "store")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
