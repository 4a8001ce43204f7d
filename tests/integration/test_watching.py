"""A run on a platform, watched in its TensorBoard: through TensorBoard's own web application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.runs import SPECS

ARGUMENTS = ["", "--load_fast=false", "--reload_interval=0", "--samples_per_plugin=scalars=1000"]


def page_of(folder: Path) -> Client:
    """TensorBoard's pages of a folder of runs, without a network."""
    with warnings.catch_warnings():
        # Its page imports an old part of html5lib.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard import default, program
        from tensorboard.backend import application
        from tensorboard.backend.event_processing.data_ingester import LocalDataIngester

    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=[*ARGUMENTS, f"--logdir={folder}"])
    ingester = LocalDataIngester(board.flags)
    multiplexer = ingester.deprecated_multiplexer
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = ingester.data_provider
    return Client(
        application.TensorBoardWSGIApp(
            board.flags, board.plugin_loaders, provider, board.assets_zip_provider, multiplexer
        )
    )


def answer(reply: Any) -> Any:
    assert reply.status_code == 200, reply.get_data(as_text=True)
    return json.loads(reply.get_data(as_text=True))


@pytest.mark.slow
def test_seed_3_11_watched_in_the_tensorboard_of_a_platform(tmp_path: Path) -> None:
    folder = tmp_path / "of the platform"
    # As a platform starts it: a process of its own, in a folder of its own, by the entry point.
    done = subprocess.run(
        [
            *(sys.executable, str(SPECS.parent / "pipeline.py")),
            *("--spec", str(SPECS / "popularity.yaml")),
            *("--set", f"storage={tmp_path / 'storage'}"),
            *("--set", f'tracking.tensorboard={{"dir": "{folder}"}}'),
        ],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    page = page_of(folder)
    runs = answer(page.get("/data/plugin/scalars/tags"))
    run = next(name for name in runs if not name.endswith(("loss_training", "loss_test")))
    assert run.startswith("popularity/")
    assert {"Loss/train", "Accuracy/test", "learning_rate"} <= set(runs[run])
    assert set(runs[f"{run}/loss_training"]) == {"loss"}
    losses = answer(page.get(f"/data/plugin/scalars/scalars?tag=Loss/train&run={run}"))
    assert [step for _wall, step, _value in losses] == list(range(250))

    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10}
    found = answer(page.post("/data/plugin/hparams/session_groups", json=asked))
    (group,) = found["sessionGroups"]
    assert group["hparams"]["training.batch_size"] == 32
    assert group["hparams"]["training.optimizer.kind"] == "sgd"
    metrics = {each["name"]["tag"]: each["value"] for each in group["metricValues"]}
    (report,) = (tmp_path / "storage").glob("popularity/*/reports/*/files/*/metrics.json")
    expected = json.loads(report.read_text())["metrics"]["test"]
    for name, value in expected.items():
        if value is not None:
            assert metrics[f"final/test/{name}"] == pytest.approx(value, rel=1e-6)
