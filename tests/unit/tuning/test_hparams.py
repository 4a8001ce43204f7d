"""TensorBoard's own reader finds every trial in the HPARAMS tab, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from batchtrain.storage import FolderStorage
from batchtrain.tuning.hparams import write_hparams
from batchtrain.tuning.trials import Goal, TrialRecord
from tests.support.builders import all_files

GOALS = [Goal("valid_loss", "min"), Goal("parameters", "min")]
RECORDS = [
    TrialRecord(
        0,
        "finished",
        {"training.optimizer.lr": 0.01, "model.hidden": [8, 4], "model.activation": "relu"},
        epochs=16,
        best_epoch=12,
        scores={"valid_loss": 0.25, "parameters": 90.0},
        rungs={4: {"valid_loss": 0.5, "parameters": 90.0}, 16: {"valid_loss": 0.3}},
    ),
    TrialRecord(
        1,
        "stopped",
        {"training.optimizer.lr": 0.5},
        epochs=4,
        best_epoch=4,
        scores={"valid_loss": 2.0, "parameters": 90.0},
        rungs={4: {"valid_loss": 2.0}},
    ),
    TrialRecord(2, "failed", {"training.optimizer.lr": 9.0}, epochs=1, error="no"),
    TrialRecord(3, "running", {"training.optimizer.lr": 0.1}),
    TrialRecord(12345, "finished", {}, epochs=1, scores={"valid_loss": float("nan")}),
]


def tab(folder: Path) -> dict[str, dict[str, Any]]:
    """What the HPARAMS tab lists: a session's folder to its values, scores and status."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    asked = RequestContext()
    context = backend_context.Context(TBContext(data_provider=provider))
    experiment = context.experiment_from_metadata(
        asked,
        "",
        include_metrics=True,
        hparams_run_to_tag_to_content=context.hparams_metadata(asked, ""),
        data_provider_hparams=[],
    )
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN],
        col_params=[api_pb2.ColParams(metric=each.name) for each in experiment.metric_infos],
        aggregation_type=api_pb2.AGGREGATION_AVG,
        include_metrics=True,
    )
    handler = list_session_groups.Handler(asked, context, "", request)
    return {
        group.name: {
            "sessions": [each.name for each in group.sessions],
            "status": [api_pb2.Status.Name(each.status) for each in group.sessions],
            "values": {
                name: getattr(value, value.WhichOneof("kind"))
                for name, value in ((name, group.hparams[name]) for name in group.hparams)
            },
            "scores": {
                each.name.tag: (each.training_step, round(each.value, 6))
                for each in group.metric_values
            },
        }
        for group in handler.run().session_groups
    }


def test_the_tab_lists_each_trial_that_is_over_with_values_scores_and_state(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    assert write_hparams(storage, "search/tensorboard", GOALS, RECORDS) == 4
    found = tab(tmp_path / "search/tensorboard")
    assert list(found) == ["trial-00000", "trial-00001", "trial-00002", "trial-12345"]
    assert found["trial-00000"] == {
        "sessions": ["trial-00000"],
        "status": ["STATUS_SUCCESS"],
        "values": {
            "training.optimizer.lr": 0.01,
            "model.hidden": "8-4",
            "model.activation": "relu",
            "trial.state": "finished",
        },
        # The score is that of the model, not that of the last rung.
        "scores": {"valid_loss": (16, 0.25), "parameters": (16, 90.0), "epochs": (16, 16.0)},
    }
    assert found["trial-00001"]["values"]["trial.state"] == "stopped"
    assert found["trial-00001"]["scores"]["valid_loss"] == (4, 2.0)
    assert found["trial-00002"]["status"] == ["STATUS_FAILURE"]
    assert set(found["trial-00002"]["scores"]) == {"epochs"}
    assert set(found["trial-12345"]["scores"]) == {"epochs"}


def test_writing_again_writes_nothing_and_a_trial_that_went_on_is_there_once(
    tmp_path: Path,
) -> None:
    storage = FolderStorage(tmp_path)
    write_hparams(storage, "tb", GOALS, RECORDS)
    before = {name: (tmp_path / name).read_bytes() for name in all_files(tmp_path)}
    assert write_hparams(storage, "tb", GOALS, RECORDS) == 0
    assert {name: (tmp_path / name).read_bytes() for name in all_files(tmp_path)} == before
    ended = TrialRecord(3, "finished", {"training.optimizer.lr": 0.1}, 2, 2, {"valid_loss": 0.5})
    assert write_hparams(storage, "tb", GOALS, [*RECORDS[:3], ended]) == 1
    assert tab(tmp_path / "tb")["trial-00003"]["scores"]["valid_loss"] == (2, 0.5)
    assert len(all_files(tmp_path)) == len(before) + 1


@pytest.mark.parametrize("name", ["drug200", "a b"])
def test_the_bytes_depend_on_the_table_alone(tmp_path: Path, name: str) -> None:
    for place in ("one", "two"):
        write_hparams(FolderStorage(tmp_path / place), "tb", GOALS, RECORDS, name=name)
    one, two = (
        [(tmp_path / p / n).read_bytes() for n in all_files(tmp_path / p)] for p in ("one", "two")
    )
    assert one == two
