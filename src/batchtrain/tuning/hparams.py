"""TensorBoard's HPARAMS tab of a search: every trial with its values, its scores and its state.

Each trial that is over is a session of the plugin: an event file in a folder of its own. All of it
follows from the table, so that writing it again gives the same bytes at the same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from batchtrain.storage import Storage
from batchtrain.training.event_files import event_bytes, first_event, scalar_event
from batchtrain.training.hyper_parameters import flat
from batchtrain.training.run_log import HyperParameter
from batchtrain.tuning.trials import Goal, TrialRecord

__all__ = ["hparams_file", "session_bytes", "write_hparams"]

STATE_KEY, EPOCHS_TAG = "trial.state", "epochs"
FILE_NAME = "events.out.tfevents.0000000001.trial"
"""TensorBoard reads what has `tfevents` in its name; ours must be the same each time."""

WALL_TIME = 1.0
"""Of all events. A clock has no place in what follows from the table; 0 would be left out."""

WRITERS = 8
"""Files are small and many, and each waits for a disk or an answer from far away."""


def write_hparams(
    storage: Storage,
    key: str,
    goals: Sequence[Goal],
    records: Sequence[TrialRecord],
    *,
    name: str = "trial",
) -> int:
    """Write the event file of each trial that is over, where it is not there yet.

    Args:
        storage: Where the search lies.
        key: The folder for TensorBoard, such as `<search root>/tensorboard`.
        goals: What the search makes as good as it can.
        records: The trials; those that are not over are left out.
        name: What the trials are called, before their numbers.

    Returns:
        How many files were written.
    """

    def write(record: TrialRecord) -> bool:
        file, content = hparams_file(key, record), session_bytes(record, goals, name=name)
        if storage.size(file) == len(content) and storage.read(file) == content:
            return False
        storage.write(file, content)
        return True

    over = [each for each in records if each.is_over]
    with ThreadPoolExecutor(min(WRITERS, max(1, len(over)))) as pool:
        return sum(pool.map(write, over))


def hparams_file(key: str, record: TrialRecord) -> str:
    """Where the event file of a trial lies."""
    return f"{key}/trial-{record.number:05d}/{FILE_NAME}"


def session_bytes(record: TrialRecord, goals: Sequence[Goal], *, name: str = "trial") -> bytes:
    """The event file of one trial."""
    return event_bytes(_events(record, goals, name))


def _events(record: TrialRecord, goals: Sequence[Goal], name: str) -> Iterator[Event]:
    yield first_event(WALL_TIME)
    values: dict[str, HyperParameter] = {
        name: found for key, value in record.values.items() for name, found in flat(value, key)
    }
    values[STATE_KEY] = record.state
    # Sessions of one name would be averaged, and they are listed in the order of the names.
    trial = f"{name}-{record.number:05d}"
    yield _event(hparams_pb(values, trial_id=trial, start_time_secs=WALL_TIME))
    for step, tag, value in _scalars(record, goals):
        yield scalar_event(tag, value, step, WALL_TIME)
    status = api_pb2.STATUS_FAILURE if record.state == "failed" else api_pb2.STATUS_SUCCESS
    yield _event(_session_end(SessionEndInfo(status=status, end_time_secs=WALL_TIME)))


def _event(summary: Summary) -> Event:
    return Event(step=0, wall_time=WALL_TIME, summary=summary)


def _session_end(info: SessionEndInfo) -> Summary:
    """As `tensorboard.plugins.hparams.summary.session_end_pb`, which needs TensorFlow."""
    content = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _scalars(record: TrialRecord, goals: Sequence[Goal]) -> Iterator[tuple[int, str, float]]:
    """The scores at the rungs, and last, as the tab shows the last, those of the model."""
    for epochs in sorted(each for each in record.rungs if each < record.epochs):
        for goal in goals:
            value = record.rungs[epochs].get(goal.metric)
            if value is not None and math.isfinite(value):
                yield epochs, goal.metric, value
    for goal in goals:
        value = record.scores.get(goal.metric)
        if value is not None and math.isfinite(value):
            yield record.epochs, goal.metric, value
    yield record.epochs, EPOCHS_TAG, float(record.epochs)
