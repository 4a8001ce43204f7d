"""Carry one spec from raw rows to a bundle, reusing whatever is already published."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar

from batchtrain.artifacts import BuildStatus, RunLayout
from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.job_storage import check_job_storage
from batchtrain.engines.session import RaySession
from batchtrain.evaluation.stage import evaluate
from batchtrain.export.stage import export
from batchtrain.models.assets import read_assets
from batchtrain.models.custom import check_allowed, code_hash
from batchtrain.preparation.own_rows import check_own_rows
from batchtrain.preparation.stage import open_input, prepare, refuse_storage_in_input
from batchtrain.progress import Progress
from batchtrain.reporting.content import StageRow
from batchtrain.spec.data import SPLITS
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from batchtrain.storage import Storage, open_storage, retried_calls
from batchtrain.surroundings import ChosenLauncher, chosen_engine, ray_session
from batchtrain.training.launcher import Launcher
from batchtrain.training.mlflow_log import check_mlflow
from batchtrain.training.outcome import record_outcome
from batchtrain.training.stage import run_layout, train

__all__ = [
    "STAGES",
    "RunResult",
    "StageName",
    "StageRecord",
    "check_custom_code",
    "prepared_rows",
    "run_spec",
]

StageName = Literal["prepare", "train", "evaluate", "export"]
STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "export")

ENDINGS = {
    "early_stopping": ", stopped early",
    "max_steps": ", at max_steps",
    "max_time": ", at max_time",
}
"""What is said of a training that did not reach its last epoch."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class StageRecord:
    """One stage of one call.

    Attributes:
        name: Which.
        status: Built, reused or resumed.
        rows: The rows that it handled.
        seconds: How long it took this time.
    """

    name: str
    status: BuildStatus
    rows: int
    seconds: float


@dataclass
class RunResult:
    """What a run has made so far; a stage that was not asked for leaves None."""

    run: str = ""
    run_dir: str = ""
    prepared: PreparedData | None = None
    trained: TrainedModel | None = None
    report: EvaluationReport | None = None
    report_page: str | None = None
    bundle: ModelBundle | None = None
    stages: list[StageRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "run": self.run or None,
            "run_dir": self.run_dir or None,
            "prepared": self.prepared.artifact.url if self.prepared else None,
            "report": self.report_page,
            "bundle": self.bundle.artifact.url if self.bundle else None,
            "stages": [asdict(stage) for stage in self.stages],
            "metrics": self.report.metrics if self.report else {},
        }


def run_spec(
    loaded: LoadedSpec,
    *,
    progress: Progress | None = None,
    last: StageName = "export",
    allow_code: Sequence[str] = (),
    storage: Storage | None = None,
    launcher: Launcher | None = None,
    take_over: bool = False,
    address: str | None = None,
) -> RunResult:
    """Run the stages in order, up to and with `last`.

    Calling again returns what is published and goes on where the last call stopped.

    Args:
        loaded: The spec.
        progress: Hears of every stage; left out, nobody does.
        last: The stage to end with.
        allow_code: Packages whose code a custom model may run.
        storage: Left out, what the spec names.
        launcher: Runs the ranks of the training; left out, it is chosen from the spec.
        take_over: Whether to go on with a training that another process seems to be writing.
        address: A Ray cluster to join; left out, the one that this process was started in, or a
            Ray of its own where the spec needs one.

    Raises:
        BatchtrainError: See `errors`; whatever was published before stays.
    """
    check_custom_code(loaded, allow_code)
    check_mlflow(loaded)
    if storage is None:
        check_job_storage(loaded)
    storage = storage or open_storage(loaded.spec.storage, loaded.path.parent)
    how = _How(allow_code=allow_code, launcher=launcher, take_over=take_over)
    watch = _Watch(progress or Progress())
    result = RunResult(stages=watch.records)
    try:
        with ray_session(loaded.spec.resources, storage, address) as session:
            _run_stages(loaded, storage, watch, result, last, how, session)
    finally:
        if retried := retried_calls(storage):
            watch.progress.note(f"{retried} calls to {storage.url()} failed and were made again")
    return result


def _run_stages(
    loaded: LoadedSpec,
    storage: Storage,
    watch: _Watch,
    result: RunResult,
    last: StageName,
    how: _How,
    session: RaySession,
) -> None:
    """Run one stage after the other, and put what each made into the result."""
    refuse_storage_in_input(loaded, storage)
    engine = chosen_engine(loaded, open_input(loaded), session, watch.progress)
    result.prepared = prepared = watch.stage(
        "prepare",
        lambda: prepare(
            loaded, storage, watch.progress, engine=engine, allow_code=how["allow_code"]
        ),
        prepared_rows,
    )
    if last == "prepare":
        return
    layout = run_layout(loaded, prepared, storage)
    result.run, result.run_dir = layout.root, storage.url(layout.root)
    how["launcher"] = how["launcher"] or ChosenLauncher(
        loaded, prepared, session, watch.progress, engine=engine
    )
    result.trained = trained = watch.stage(
        "train",
        partial(train, loaded, prepared, layout, watch.progress, **how),
        lambda made: (prepared.num_rows("train"), _trained_detail(made)),
    )
    if last == "train":
        return
    result.report = report = watch.stage(
        "evaluate",
        lambda: evaluate(
            loaded,
            prepared,
            trained,
            layout,
            watch.progress,
            stages=_stage_rows(watch.records, layout),
            allow_code=how["allow_code"],
            engine=engine,
        ),
        lambda made: (_scored_rows(prepared), _measured(made)),
    )
    for note in report.notes:
        watch.progress.note(f"note      {note}")
    result.report_page = _show_report(report, layout)
    record_outcome(loaded, prepared, layout, trained, report, watch.progress)
    if last == "evaluate":
        return
    result.bundle = watch.stage(
        "export",
        lambda: export(loaded, prepared, trained, report, layout, allow_code=how["allow_code"]),
        lambda made: (made.num_golden, f"a bundle with {made.num_golden} golden rows"),
    )


class _How(TypedDict):
    """How a model is trained; nothing of this is part of its fingerprint."""

    allow_code: Sequence[str]
    launcher: Launcher | None
    take_over: bool


def check_custom_code(loaded: LoadedSpec, allow_code: Sequence[str]) -> None:
    """Find a class that may not run, or what is not there, before any work."""
    check_own_rows(loaded, allow_code)
    if isinstance(loaded.spec.model, CustomModel):
        check_allowed(loaded.spec.model.target, allow_code)
        code_hash(loaded.spec.model.target, search=loaded.path.parent)
        read_assets(loaded)


class _Watch:
    """Times each stage and tells the progress about it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.records: list[StageRecord] = []

    def stage(
        self,
        name: StageName,
        make: Callable[[], tuple[Made, BuildStatus]],
        describe: Callable[[Made], tuple[int, str]],
    ) -> Made:
        """Run one stage and record it."""
        self.progress.stage_started(name)
        started = time.monotonic()
        made, status = make()
        seconds = time.monotonic() - started
        rows, detail = describe(made)
        self.records.append(StageRecord(name, status, rows, round(seconds, 3)))
        self.progress.stage_finished(name, status, detail, seconds)
        return made


def prepared_rows(prepared: PreparedData) -> tuple[int, str]:
    """The rows of the input, and in words how many there are in each split."""
    rows = {split: prepared.num_rows(split) for split in SPLITS}
    total = int(prepared.content["input_rows"])
    dropped = total - sum(rows.values())
    parts = ", ".join(f"{count} {split}" for split, count in rows.items() if count)
    return total, f"{total} rows: {parts}" + (f", {dropped} dropped" if dropped else "")


def _trained_detail(trained: TrainedModel) -> str:
    content = trained.content
    stopped = ENDINGS.get(content["ended_by"], "")
    return f"{content['epochs']} epochs{stopped}, best {content['best_epoch']}"


def _scored_rows(prepared: PreparedData) -> int:
    return sum(prepared.num_rows(split) for split in SPLITS)


def _measured(report: EvaluationReport) -> str:
    split = next(name for name in ("test", "valid", "train") if name in report.metrics)
    name, value = next(iter(report.metrics[split].items()))
    shown = "undefined" if value is None else f"{value:.4g}"
    return f"{split} {name} {shown}"


def _stage_rows(records: Sequence[StageRecord], layout: RunLayout) -> list[StageRow]:
    """The stages so far, each with the time that it took when it was built."""
    built: dict[str, dict[str, Any]] = {}
    written = b""
    with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
        written = layout.storage.read(layout.stage_log)
        found = json.loads(written)
        built = {name: dict(entry) for name, entry in found.items() if "seconds" in entry}
    for record in records:
        if record.status != "reused" or record.name not in built:
            built[record.name] = asdict(record)
    log = canonical_json(built)
    # A run that only reuses writes nothing, so that it works on a storage that is read-only.
    if log != written:
        layout.storage.write(layout.stage_log, log)
    return [
        StageRow(record.name, record.status, record.rows, built[record.name]["seconds"])
        for record in records
    ]


def _show_report(report: EvaluationReport, layout: RunLayout) -> str:
    """Put the page where a person looks for it: beside the run, under a name that stays."""
    page = report.page()
    where = layout.storage.url(layout.report_page)
    with suppress(FileNotFoundError):
        if layout.storage.read(layout.report_page) == page:
            return where
    layout.storage.write(layout.report_page, page)
    return where
