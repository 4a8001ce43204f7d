"""A spec with code of its own and a bucket: what a user brings reaches the ranks on all nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from batchtrain.tables.samples import write_sample
from tests.cluster.head import BIN, Head, starting_head
from tests.cluster.test_cluster import QUICK, assert_reused, digests
from tests.support.runs import finish
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, FakeS3, serving_s3, use_s3

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(300),
]

NETWORK = '''
"""A network, with a width that another file of the package has."""

import torch
from torch import nn

from own_nets.sizes import WIDTH


class Wide(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(size, 3) for size in inputs.cardinalities)
        width = inputs.num_numeric + 3 * len(inputs.cardinalities)
        self.layers = nn.Sequential(
            nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, inputs.num_outputs)
        )

    def forward(self, numeric_BF, codes_BC):
        embedded = [each(codes) for each, codes in zip(self.embed, codes_BC.unbind(1))]
        return self.layers(torch.cat([numeric_BF, *embedded], dim=1))
'''


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[FakeS3, str]]:
    """A server with one bucket, and its address."""
    with serving_s3() as served:
        yield served


@pytest.fixture(scope="module")
def head(s3: tuple[FakeS3, str]) -> Iterator[Head]:
    """Two nodes with two cores each, which alone have the credentials of the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3[1])
        with starting_head(num_cpus=2, second_node={}, second_cpus=2) as started:
            kept = {key: each for key, each in started.environ.items() if "AWS_" not in key}
            yield Head(started.dashboard, started.address, kept, started.folder)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with its rows and its package beside it, by relative paths."""
    folder = tmp_path_factory.mktemp("own")
    package = folder / "own_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sizes.py").write_text("WIDTH = 16\n")
    (package / "wide.py").write_text(NETWORK)
    write_sample("drug200", folder / "rows.csv")
    target = pd.read_csv(folder / "rows.csv").columns[-1]
    document = {
        "version": 1,
        "name": "own",
        "data": {"source": "rows.csv", "target": str(target)},
        "model": {"kind": "custom", "target": "own_nets.wide:Wide"},
        "resources": {"workers": 2},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("stages", ["together", "separate"])
def test_own_code_and_rows_reach_the_ranks_and_a_bucket_needs_no_credentials_here(
    head: Head,
    s3: tuple[FakeS3, str],
    spec: Path,
    tmp_path: Path,
    stages: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = f"s3://bucket/{stages}"
    words = ["--allow-code", "own_nets", "--stages", stages, "--address", head.dashboard]
    sets = [word for each in (*QUICK, f"storage={storage}") for word in ("--set", each)]

    done = subprocess.run(
        [BIN / "batchtrain", "submit", spec, *words, *sets],
        env=head.environ,
        capture_output=True,
        text=True,
        timeout=250,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert ACCESS_KEY not in done.stdout + done.stderr
    assert SECRET_KEY not in done.stdout + done.stderr
    one = "resources.workers=1"
    local = finish(spec, *QUICK, one, f"storage={tmp_path / 'here'}", allow_code=["own_nets"])
    use_s3(monkeypatch, s3[1])
    there = finish(spec, *QUICK, one, f"storage={storage}", allow_code=["own_nets"])
    assert_reused(there)
    assert digests(there) == digests(local)
