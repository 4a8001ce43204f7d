"""Tune: many trials over one preparation, and the best of them as an ordinary spec and run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.job_storage import check_job_storage
from batchtrain.engines.session import RaySession
from batchtrain.errors import Problem, SpecError, StorageError, TrainingError
from batchtrain.pipeline import RunResult, check_custom_code, prepared_rows, run_spec
from batchtrain.preparation.stage import open_input, prepare, refuse_storage_in_input
from batchtrain.progress import Progress
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.spec.search import DEFAULT_TRIALS, SearchSpec
from batchtrain.storage import Storage, open_storage
from batchtrain.surroundings import chosen_engine, ray_session
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.stage import run_layout
from batchtrain.tuning.best import best_text, best_values
from batchtrain.tuning.choice import choose_executor, unit_resources
from batchtrain.tuning.corners import check_space
from batchtrain.tuning.goals import goals_of
from batchtrain.tuning.held import held_rows
from batchtrain.tuning.here import Here
from batchtrain.tuning.hparams import write_hparams
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.loop import Executor, SearchLoop
from batchtrain.tuning.proposals import make_proposer
from batchtrain.tuning.running import UnitRunner
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.search import Search, SearchRules
from batchtrain.tuning.shapes import Shapes
from batchtrain.tuning.standing import SearchWatch
from batchtrain.tuning.table import run_summary, table_document
from batchtrain.tuning.trials import Goal, TrialRecord, best_trial

__all__ = ["SearchResult", "tune_spec"]

NOT_OF_THE_PLAN = {"trials", "max_time", "max_rows", "concurrent", "export"}
"""What may change without another search: how far it goes, not what is tried."""


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        layout: Where it lies.
        document: The table.
        best: The best trial; None where all failed.
        run: The ordinary run of the best spec; None where that was not asked for.
    """

    layout: SearchLayout
    document: Mapping[str, Any]
    best: TrialRecord | None
    run: RunResult | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        url = self.layout.storage.url
        return {
            "search": self.layout.root,
            "table": url(self.layout.table),
            "page": url(self.layout.page),
            "best_spec": url(self.layout.best_spec) if self.best else None,
            "best": self.best.to_json() if self.best else None,
            "trials": len(self.document["trials"]),
            "states": dict(Counter(each["state"] for each in self.document["trials"])),
            "run": self.run.to_json() if self.run else None,
        }


def tune_spec(
    loaded: LoadedSpec,
    *,
    progress: Progress | None = None,
    allow_code: Sequence[str] = (),
    storage: Storage | None = None,
    address: str | None = None,
) -> SearchResult:
    """Run the search of a spec, or go on with it; what is published is not done again.

    Args:
        loaded: The spec.
        progress: Hears of it.
        allow_code: Packages whose code a custom model may run.
        storage: Left out, what the spec names.
        address: A Ray cluster to join; see `run_spec`.

    Raises:
        SpecError: If the spec has no search, or the space does not suit it.
        InterruptedRunError: If Ctrl-C or SIGTERM came; calling again goes on from there.
        BatchtrainError: If something else than a trial failed; the same.
    """
    progress = progress or Progress()
    check_custom_code(loaded, allow_code)
    check_space(loaded)
    if storage is None:
        check_job_storage(loaded)
    storage = storage or open_storage(loaded.spec.storage, loaded.path.parent)
    with ray_session(loaded.spec.resources, storage, address) as session:
        tuning = _Tuning(loaded, storage, progress, tuple(allow_code), session)
        tuning.search()
        return tuning.finish(address)


@dataclass
class _Tuning:
    """One call of `tune_spec`."""

    loaded: LoadedSpec
    storage: Storage
    progress: Progress
    allow_code: tuple[str, ...]
    session: RaySession

    @cached_property
    def spec(self) -> SearchSpec:
        """The `search` section."""
        return search_of(self.loaded)

    @cached_property
    def goals(self) -> Sequence[Goal]:
        """What is to become best."""
        return goals_of(self.spec, self.loaded.spec.training)

    @cached_property
    def prepared(self) -> PreparedData:
        """The rows, which all trials share."""
        refuse_storage_in_input(self.loaded, self.storage)
        engine = chosen_engine(self.loaded, open_input(self.loaded), self.session, self.progress)
        self.progress.stage_started("prepare")
        began = time.monotonic()
        prepared, status = prepare(
            self.loaded, self.storage, self.progress, engine=engine, allow_code=self.allow_code
        )
        seconds = time.monotonic() - began
        self.progress.stage_finished("prepare", status, prepared_rows(prepared)[1], seconds)
        return prepared

    @cached_property
    def layout(self) -> SearchLayout:
        """Where the search lies: its id is that of the run without it, and of what is tried."""
        run = run_layout(self.loaded, self.prepared, self.storage)
        plan = self.spec.model_dump(mode="json", exclude=NOT_OF_THE_PLAN)
        if self.spec.algorithm == "tpe":
            # Another version of it proposes other values from the same results.
            plan["optuna"] = version("optuna")
        search_id = fingerprint_of({"run": run.run_id, "search": plan})[:12]
        return SearchLayout(self.storage, self.loaded.spec.name, search_id)

    @cached_property
    def shapes(self) -> Shapes:
        """How trials are trained."""
        return Shapes(self.loaded, self.spec, self.prepared, self.goals)

    @cached_property
    def state(self) -> Search:
        """The state of the search."""
        return Search(search_rules(self.loaded, self.goals, self.shapes))

    def search(self) -> None:
        """Carry out what is left of it."""
        loop = SearchLoop(
            self.state,
            self.layout,
            SearchWatch(
                self.goals, trials=self.state.rules.trials, trial_rows=self.shapes.rows({})
            ),
            self.progress,
            self.document,
            self.spec.max_time,
        )
        executor, why = self._executor()
        if why:
            self.progress.note(why)
        self.progress.stage_started("search")
        began = time.monotonic()
        try:
            with stop_on_signals() as stop_requested:
                executor(loop, stop_requested)
        finally:
            with suppress(StorageError):
                loop.close()
        done = len(self.state.trials())
        self.progress.stage_finished(
            "search",
            "resumed" if loop.reused else "built",
            f"{done} trials",
            time.monotonic() - began,
        )

    def _note_machine(self) -> None:
        """Record what the last bits depend on at the first start, and say where it differs now.

        Only where this process trains: a driver on Ray may have no GPU that its trials are to have.

        Raises:
            SpecError: If this machine has not what the spec asks for.
        """
        now, key = choose_machine(self.loaded.spec.resources), self.layout.record
        if self.storage.create(key, canonical_json(now.to_json())):
            return
        then = MachineChoices.from_bytes(self.storage.read(key), where=self.storage.url(key))
        for name, (before, here) in then.differences(now).items():
            self.progress.note(
                f"{name} is {here!r} here, and was {before!r} where the search began: the last "
                "bits of trials to come may differ from those of one machine"
            )

    def _executor(self) -> tuple[Executor, str]:
        """What carries the search out, and why it is not this process."""
        runner = UnitRunner(
            self.loaded,
            self.prepared,
            self.layout,
            self.goals,
            self.allow_code,
            own_data=self.shapes.changes_data,
            rows=held_rows(self.prepared),
        )
        spec = self.loaded.spec
        choice = choose_executor(
            spec,
            seconds=self.shapes.seconds_of_search(self.state.rules.trials),
            is_attached=self.session.is_attached,
            cores=os.cpu_count() or 1,
        )
        if not choice.on_ray:
            self._note_machine()
            return Here(runner), choice.why
        # Imported here, since a small search needs no Ray.
        from batchtrain.tuning.on_tune import OnTune

        concurrent = None if self.spec.concurrent == "auto" else self.spec.concurrent
        resources = unit_resources(spec.resources, self.session.resources(), concurrent)
        return OnTune(runner, self.session, resources), choice.why

    def document(self, run: RunResult | None = None) -> dict[str, Any]:
        """The table as it is now."""
        return table_document(
            self.loaded.spec.name, self.spec, self.goals, self.state, run_summary(run)
        )

    def finish(self, address: str | None) -> SearchResult:
        """Write what people look at, then run the best spec as any other.

        Raises:
            TrainingError: If all trials failed.
            ModelRejectedError: If the best model misses a threshold of the spec.
        """
        records = self.state.trials()
        best = best_trial(records, self.goals)
        if best is None:
            self._show(self.document(), records)
            raise TrainingError(
                f"expected a trial with a score, found none among {len(records)}: "
                f"{self._why_none(records)}. The table is {self.storage.url(self.layout.table)}"
            )
        values = best_values(best.number, self.state)
        text = best_text(self.loaded, values, best, self.goals, self.storage)
        self.storage.write(self.layout.best_spec, text.encode())
        run = None
        try:
            if self.spec.export:
                run = run_spec(
                    with_values(self.loaded, values),
                    progress=self.progress,
                    allow_code=self.allow_code,
                    storage=self.storage,
                    address=address,
                )
        finally:
            # Also where the run's model is rejected, or Ctrl-C comes.
            self._show(self.document(run), records)
        return SearchResult(self.layout, self.document(run), best, run)

    def _why_none(self, records: Sequence[TrialRecord]) -> str:
        """Why no trial can be the best."""
        errors = [each.error for each in records if each.error]
        if errors:
            return errors[0]
        if any(each.epochs for each in records):
            return f"`{self.goals[0].metric}` is undefined for each of them. Choose another metric"
        return "none began. Give it more `search.max_time` or `search.max_rows`"

    def _show(self, document: Mapping[str, Any], records: Sequence[TrialRecord]) -> None:
        """Write the table, the page and the event files, where they are not there already."""
        # Imported here: it brings matplotlib.
        from batchtrain.reporting.search import render_search

        self.storage.write(self.layout.table, canonical_json(dict(document)))
        self.storage.write(self.layout.page, render_search(document).encode())
        write_hparams(self.storage, self.layout.tensorboard, self.goals, records)


def search_of(loaded: LoadedSpec) -> SearchSpec:
    """The `search` section of a spec.

    Raises:
        SpecError: If it has none.
    """
    if loaded.spec.search is None:
        raise SpecError(
            [
                Problem(
                    where=str(loaded.path),
                    key="search",
                    message="expected a section that says what is tried, found none",
                    hint="Write search: {space: {training.optimizer.lr: {log_uniform: [1e-4, "
                    "1e-1]}}}",
                )
            ]
        )
    return loaded.spec.search


def search_rules(loaded: LoadedSpec, goals: Sequence[Goal], shapes: Shapes) -> SearchRules:
    """What the search of a spec goes by."""
    spec, seed = search_of(loaded), loaded.spec.seed
    proposer = make_proposer(spec, seed, goals)
    known = [each for each in (proposer.total, spec.trials) if each is not None]
    trials = min(known, default=DEFAULT_TRIALS)
    cohorts = cohorts_of(
        spec, epochs=loaded.spec.training.epochs, trials=trials, goal=goals[0], seed=seed
    )
    return SearchRules(goals, proposer, cohorts, shapes.of, shapes.rows, trials, spec.max_rows)
