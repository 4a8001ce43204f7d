"""Training on Ray gives what training in one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.engines.session import RaySession
from batchtrain.errors import ClusterError, RankFailedError
from batchtrain.pipeline import run_spec
from batchtrain.spec.load import LoadedSpec
from tests.support.builders import mixed_table, spec_for
from tests.support.on_ray import train_on_ray
from tests.support.ranks import Told, compared, custom_spec, last_weights, train_ranks

pytestmark = pytest.mark.ray

ROWS = 103
"""Not divisible by any number of workers that is tried."""

TOLERANCE = 1e-5


def sgd_spec(folder: Path) -> LoadedSpec:
    """Three epochs of plain SGD without dropout."""
    return _spec(folder, model={"kind": "mlp", "hidden": [16], "dropout": 0.0})


def canonical_spec(folder: Path, **sections: Any) -> LoadedSpec:
    """The same with dropout and canonical gradients."""
    model = {"kind": "mlp", "hidden": [16], "dropout": 0.3}
    return _spec(folder, model=model, determinism="canonical", **sections)


def _spec(folder: Path, **sections: Any) -> LoadedSpec:
    folder.mkdir()
    training = {
        "epochs": 3,
        "batch_size": 16,
        "optimizer": {"kind": "sgd", "lr": 0.05},
    }
    return spec_for(folder, mixed_table(ROWS), training=training, **sections)


def hashes(made: PreparedData | EvaluationReport | None) -> dict[str, str]:
    assert made is not None
    return {name: file.sha256 for name, file in made.artifact.manifest.files.items()}


def require_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=TOLERANCE, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_sgd_gives_the_same_weights_on_any_number_of_workers(
    workers: int, tmp_path: Path, ray_session: RaySession
) -> None:
    alone = last_weights(train_ranks(sgd_spec(tmp_path / "alone")))
    told = Told()
    trained = train_on_ray(sgd_spec(tmp_path / "ray"), ray_session, workers, progress=told)
    require_close(last_weights(trained), alone)
    assert trained.machine()["workers"] == workers
    # The progress of rank 0 is seen in this process.
    assert told.epochs == [0, 1, 2, 3]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_canonical_training_gives_the_same_bytes_on_any_number_of_workers(
    workers: int, tmp_path: Path, ray_session: RaySession
) -> None:
    alone = train_ranks(canonical_spec(tmp_path / "alone"))
    trained = train_on_ray(canonical_spec(tmp_path / "ray"), ray_session, workers)
    assert compared(trained) == compared(alone)


def test_a_whole_run_with_four_workers_has_the_bytes_of_one_process(
    tmp_path: Path, ray_session: RaySession
) -> None:
    alone = run_spec(canonical_spec(tmp_path / "alone"))
    told = Told()
    spread = canonical_spec(tmp_path / "ray", engine="ray", resources={"workers": 4})
    result = run_spec(spread, progress=told)
    assert {stage.status for stage in result.stages} == {"built"}
    assert result.trained is not None
    assert alone.trained is not None
    assert compared(result.trained) == compared(alone.trained)
    assert hashes(result.prepared) == hashes(alone.prepared)
    found, expected = hashes(result.report), hashes(alone.report)
    for name in ("metrics.json", "predictions/valid.parquet", "predictions/test.parquet"):
        assert found[name] == expected[name]
    assert any("4 workers" in note for note in told.notes)
    assert result.trained.machine()["workers"] == 4
    # The progress of rank 0 is seen in this process.
    assert told.epochs == [0, 1, 2, 3]


def test_the_error_of_a_rank_names_the_line_and_the_log(
    tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = custom_spec(tmp_path / "net", RAISING_NET)
    with pytest.raises(RankFailedError) as caught:
        train_on_ray(loaded, ray_session, 2)
    text = str(caught.value)
    assert "expected rank 1 of 2 to go on, found ValueError: no such luck" in text
    assert "in forward: raise ValueError" in text
    assert len(text.splitlines()) < 8
    log = next((tmp_path / "net").rglob("attempt-1/rank-1.log"))
    assert str(log) in text
    assert "ValueError: no such luck" in log.read_text()


def test_what_the_cluster_can_never_give_is_refused_at_once(
    tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = _spec(tmp_path / "huge", resources={"workers": 64})
    with pytest.raises(ClusterError, match="expected 64 CPUs for 64 workers, found a cluster with"):
        run_spec(loaded, last="train")


RAISING_NET = '''
"""A network that raises on rank 1 in its fifth forward."""

import torch
import torch.distributed as dist
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.forwards = 0

    def forward(self, numeric, codes):
        self.forwards += 1
        if self.forwards == 5 and dist.is_initialized() and dist.get_rank() == 1:
            raise ValueError("no such luck")
        return self.linear(numeric)
'''
