"""MLflow's view of a run: one MLflow run, however often the training was cut.

Everything that may wait for a server happens in a thread of its own, in order, so that a slow or
silent one costs the training nothing. No model goes there: MLflow would pickle it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.errors import Problem, SpecError
from batchtrain.spec.evaluation import MlflowSpec
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.run_log import Ended, HyperParameter, epoch_losses, epoch_scalars
from batchtrain.training.sending import Sender
from batchtrain.version import __version__

__all__ = ["MlflowLog", "check_mlflow", "has_final", "open_mlflow"]

BURST_SECONDS = 1.0
"""What waits is sent so often."""
FLUSH_SECONDS = 5.0
"""A checkpoint waits at most so long for what was said before it to be sent."""
CLOSE_SECONDS = 30.0
"""And the end of a training so long for the rest."""
MOST_WAITING = 500_000
"""With so many unsent numbers the server is given up."""
BATCH_NUMBERS = 900
"""MLflow takes 1000 metrics, parameters and tags in one request."""
PARAMETERS = 100
"""And 100 parameters."""
PARAMETER_CHARACTERS = 500
"""Servers before MLflow 2.8 take no longer ones."""

LOGGED_TAG = "batchtrain.logged"
"""How far the run is logged, as JSON; it is sent together with the numbers."""
REPORT_TAG = "batchtrain.report"
"""Of which evaluation report the final metrics are."""

STATUS: Mapping[Ended, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


def check_mlflow(loaded: LoadedSpec) -> None:
    """Find out before any work whether MLflow can be used where the spec asks for it.

    Raises:
        SpecError: If it is not installed.
    """
    if loaded.spec.tracking.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise SpecError(
            [
                Problem(
                    loaded.where("tracking.mlflow"),
                    "tracking.mlflow",
                    "expected the package mlflow, which is not installed here",
                    "Install it with: pip install 'batchtrain[mlflow]', or remove the key",
                )
            ]
        )


def has_final(loaded: LoadedSpec, layout: RunLayout, spec: MlflowSpec, report: str) -> bool:
    """Whether MLflow has the final metrics of a report; only our own record is asked."""
    return _record(loaded, layout, spec).read().get("report") == report


def open_mlflow(loaded: LoadedSpec, layout: RunLayout, spec: MlflowSpec) -> MlflowLog:
    """Begin to log a run, or go on with the MLflow run that an attempt before began.

    Nothing is asked of the server yet. What this raises is an error of MLflow's import.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    record = _record(loaded, layout, spec)
    if record.uri.startswith("file:"):
        # It refuses folders without this; what they cannot do (traces, models) is not used here.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        # What MLflow's import warns of is for those who use its other parts.
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401 - here, in the main thread, since filters are for all threads
    tracking = loaded.spec.tracking
    return MlflowLog(
        _Connection(record), every_steps=tracking.log_every_steps, monitored=tracking.monitor
    )


def _record(loaded: LoadedSpec, layout: RunLayout, spec: MlflowSpec) -> _Record:
    uri = _address(spec.uri, loaded.path.parent)
    return _Record(layout, uri, spec.experiment or loaded.spec.name)


def _address(uri: str, base: Path) -> str:
    """The address that MLflow takes; a folder counts from the spec file."""
    if uri == "databricks" or ":" in uri:
        return uri
    return (base / uri).resolve().as_uri()


@dataclass(frozen=True)
class _Record:
    """Which run of MLflow a run of ours is, as our storage remembers it.

    Attributes:
        layout: Where our run lies.
        uri: The address of MLflow.
        experiment: The name of the experiment.
    """

    layout: RunLayout
    uri: str
    experiment: str

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"{self.layout.root}/mlflow.json"

    def read(self) -> dict[str, str]:
        """With `run_id`, and `report` once the final metrics are logged; empty where none is."""
        try:
            found = json.loads(self.layout.storage.read(self.key))
            same = (found["uri"], found["experiment"]) == (self.uri, self.experiment)
            return {name: str(value) for name, value in found.items()} if same else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, **values: str) -> None:
        """Remember it."""
        document = {"uri": self.uri, "experiment": self.experiment, **values}
        self.layout.storage.write(self.key, canonical_json(document))


@dataclass(frozen=True)
class _Group:
    """Numbers of one step or one epoch, which are sent together or not at all."""

    by_epoch: bool
    step: int
    values: Mapping[str, float]
    heard: float


class MlflowLog:
    """Logs to MLflow the numbers that TensorBoard shows; the hyper-parameters once."""

    name = "MLflow"

    def __init__(
        self, connection: _Connection, *, every_steps: int, monitored: Sequence[str]
    ) -> None:
        """Begin to send, from a thread.

        Args:
            connection: To one MLflow run.
            every_steps: Every how many steps `Loss/train` is sent.
            monitored: The splits whose scores are sent.
        """
        self._connection = connection
        self._every_steps = every_steps
        self._monitored = monitored
        self._waiting: list[_Group] = []
        self._next_step = 0
        self._is_late = False
        self._last_burst = time.monotonic()
        self._sender = Sender(most_waiting=MOST_WAITING)
        self._sender.put(connection.connect)

    def hyper_parameters(self, values: Mapping[str, HyperParameter]) -> None:
        """See `RunLog.hyper_parameters`."""
        self._sender.put(lambda: self._connection.send_parameters(values))

    def steps(self, first_step: int, losses: Sequence[float]) -> None:
        """See `RunLog.steps`."""
        heard = time.time()
        if first_step < self._next_step:
            # The training went back, as after a loss that is not finite: the steps are taken anew.
            self._send()
            self._sender.put(lambda: self._connection.go_back(first_step))
        self._next_step = first_step + len(losses)
        for place in range(-first_step % self._every_steps, len(losses), self._every_steps):
            group = _Group(False, first_step + place, {"Loss/train": losses[place]}, heard)
            self._waiting.append(group)
        self._send_in_bursts()

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `RunLog.epoch`."""
        losses = {f"loss/{name}": value for name, value in epoch_losses(record).items()}
        values = {**losses, **epoch_scalars(record, self._monitored)}
        self._waiting.append(_Group(True, int(record["epoch"]), values, time.time()))
        self._send_in_bursts()

    def final(self, values: Mapping[str, float], epoch: int, *, report: str) -> None:
        """Log the metrics of an evaluation report, once for each report."""
        self._sender.put(lambda: self._connection.send_final(values, epoch, report))

    def flush(self) -> None:
        """See `RunLog.flush`."""
        self._send()
        # One that was late once is not waited for again before it has caught up.
        self._is_late = not self._sender.wait(0 if self._is_late else FLUSH_SECONDS)

    def close(self, ended: Ended) -> None:
        """See `RunLog.close`.

        Raises:
            TimeoutError: If MLflow has not taken everything in time.
        """
        patience = 0.0
        try:
            self._send()
            self._sender.put(lambda: self._connection.set_status(STATUS[ended]))
            patience = CLOSE_SECONDS
        finally:
            self._sender.close(patience)

    def _send_in_bursts(self) -> None:
        if time.monotonic() - self._last_burst >= BURST_SECONDS:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._last_burst = time.monotonic()
        if waiting:
            self._sender.put(lambda: self._connection.send(waiting), numbers=len(waiting))


class _Connection:
    """One MLflow run; used by one thread."""

    def __init__(self, record: _Record) -> None:
        self._record = record
        self._client: Any = None
        self._run_id = ""
        self._is_new = False
        self._report = ""
        self._logged = {"step": -1, "epoch": -1}

    def connect(self) -> None:
        """Go on with the run that our storage names, or begin one and write its id there."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        uri = self._record.uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._run_id = self._record.read().get("run_id", "")
        if self._run_id:
            try:
                tags = self._client.get_run(self._run_id).data.tags
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self._logged |= json.loads(tags.get(LOGGED_TAG, "{}"))
                self._report = tags.get(REPORT_TAG, "")
                self._client.update_run(self._run_id, status="RUNNING")
                return
        self._begin()

    def _begin(self) -> None:
        layout = self._record.layout
        tags = {
            "mlflow.source.name": "batchtrain",
            "batchtrain.run": layout.storage.url(layout.root),
            "batchtrain.version": __version__,
        }
        run = self._client.create_run(self._experiment_id(), run_name=layout.root, tags=tags)
        self._run_id, self._is_new = run.info.run_id, True
        self._record.write(run_id=self._run_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._record.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Another run may have made it this very moment.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def send_parameters(self, values: Mapping[str, HyperParameter]) -> None:
        """Log the hyper-parameters of a run that is new; they cannot be changed later."""
        from mlflow.entities import Param

        if not self._is_new:
            return
        entries = [Param(name, str(value)[:PARAMETER_CHARACTERS]) for name, value in values.items()]
        for start in range(0, len(entries), PARAMETERS):
            self._client.log_batch(self._run_id, params=entries[start : start + PARAMETERS])

    def send(self, groups: Sequence[_Group]) -> None:
        """Log what was not logged before; where it is, its numbers are the same."""
        from mlflow.entities import Metric, RunTag

        for batch in _batches([group for group in groups if self._is_unsent(group)]):
            metrics = [
                Metric(name, value, int(group.heard * 1000), group.step)
                for group in batch
                for name, value in group.values.items()
            ]
            logged = dict(self._logged)
            for group in batch:
                logged["epoch" if group.by_epoch else "step"] = group.step
            tag = RunTag(LOGGED_TAG, json.dumps(logged))
            self._client.log_batch(self._run_id, metrics=metrics, tags=[tag])
            self._logged = logged

    def go_back(self, step: int) -> None:
        """Log this step and those after it once more; MLflow shows the newer values."""
        self._logged["step"] = min(self._logged["step"], step - 1)

    def send_final(self, values: Mapping[str, float], epoch: int, report: str) -> None:
        """Log the metrics of a report, if they are not those that were logged last."""
        from mlflow.entities import Metric, RunTag

        if self._report != report:
            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, epoch) for name, value in values.items()]
            tag = RunTag(REPORT_TAG, report)
            self._client.log_batch(self._run_id, metrics=metrics, tags=[tag])
        self._record.write(run_id=self._run_id, report=report)

    def set_status(self, status: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run_id, status=status)

    def _is_unsent(self, group: _Group) -> bool:
        return group.step > self._logged["epoch" if group.by_epoch else "step"]


def _batches(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Whole groups, as many as a request takes."""
    batch: list[_Group] = []
    numbers = 0
    for group in groups:
        if batch and numbers + len(group.values) > BATCH_NUMBERS:
            yield batch
            batch, numbers = [], 0
        batch.append(group)
        numbers += len(group.values)
    if batch:
        yield batch
