"""The final metrics, put beside what a run was trained with; without torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.progress import Progress
from batchtrain.spec.evaluation import TensorBoardSpec
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import FolderStorage, Storage
from batchtrain.training.hyper_parameters import hyper_parameters
from batchtrain.training.mlflow_log import has_final, open_mlflow
from batchtrain.training.run_log import final_scalars

__all__ = ["OUTCOME", "record_outcome"]

OUTCOME = "events.out.tfevents.9999999999.final."
"""The beginning of the name of the event file with the final metrics, which is read after all
others; the report's fingerprint follows."""


def record_outcome(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    trained: TrainedModel,
    report: EvaluationReport,
    progress: Progress,
) -> None:
    """Tell the trackers the metrics of a report, once.

    A call that finds it done writes nothing. A tracker that fails costs a note.

    Args:
        loaded: The spec.
        prepared: The rows.
        layout: Where the run lies.
        trained: The model.
        report: What was measured.
        progress: Hears of what failed.
    """
    tracking = loaded.spec.tracking
    if tracking.tensorboard is not False:
        _noting(progress, "TensorBoard", lambda: _write_events(loaded, layout, trained, report))
    if tracking.mlflow is not None:
        _noting(progress, "MLflow", lambda: _tell_mlflow(loaded, prepared, layout, trained, report))


def _noting(progress: Progress, name: str, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the report is published, whoever shows it
        progress.note(f"{name} has not been told the final metrics: {error}")


def _fingerprint(report: EvaluationReport) -> str:
    return report.artifact.manifest.fingerprint[:12]


def _write_events(
    loaded: LoadedSpec, layout: RunLayout, trained: TrainedModel, report: EvaluationReport
) -> None:
    storage, folder = _events(loaded, layout)
    key = f"{folder}{OUTCOME}{_fingerprint(report)}"
    if storage.size(key) is not None:
        return
    others = [each for each in storage.list(folder.rstrip("/")) if OUTCOME in each]
    storage.write(key, _event_bytes(report, epoch=trained.content["best_epoch"]))
    # The newest report counts, as for the page beside the run.
    for other in others:
        storage.delete(other)


def _events(loaded: LoadedSpec, layout: RunLayout) -> tuple[Storage, str]:
    """The storage of the event files, and how their keys begin."""
    wanted = loaded.spec.tracking.tensorboard
    if isinstance(wanted, TensorBoardSpec):
        return FolderStorage(loaded.path.parent / wanted.dir), f"{layout.root}/"
    return layout.storage, f"{layout.tensorboard}/"


def _event_bytes(report: EvaluationReport, *, epoch: int) -> bytes:
    """An event file: a scalar for each metric, and the end of the session of the HParams plugin."""
    # Imported here, since a run that is only looked up needs none of it.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    from batchtrain.training.event_files import event_bytes, first_event, scalar_event

    now = time.time()
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=now)
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(
            plugin_data_pb2.HParamsPluginData(session_end_info=end)
        ),
        tensor=metadata.NULL_TENSOR,
    )
    scalars = final_scalars(report.metrics).items()
    return event_bytes(
        [
            first_event(now),
            *(scalar_event(tag, number, epoch, now) for tag, number in scalars),
            Event(step=epoch, wall_time=now, summary=Summary(value=[value])),
        ]
    )


def _tell_mlflow(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    trained: TrainedModel,
    report: EvaluationReport,
) -> None:
    wanted, fingerprint = loaded.spec.tracking.mlflow, _fingerprint(report)
    if wanted is None or has_final(loaded, layout, wanted, fingerprint):
        return
    content, machine = trained.content, trained.machine()
    log = open_mlflow(loaded, layout, wanted)
    try:
        log.hyper_parameters(
            hyper_parameters(
                loaded.spec,
                prepared,
                batch_rows=content["batch_rows"],
                loss=content["loss"],
                device=machine["device"],
                workers=machine["workers"],
            )
        )
        log.final(final_scalars(report.metrics), content["best_epoch"], report=fingerprint)
    finally:
        log.close("finished")
