"""One training of each contender on the rows of one prepared table.

Every contender is measured on the test rows of our split. Ours trains on the training rows and
looks at the validation rows after each epoch; scikit-learn's, which need no validation rows, train
once on the training rows and once on both.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn
import yaml
from sklearn import metrics
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.pipeline import run_spec
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.spec.model import MlpModel
from batchtrain.spec.training import TrainingSpec
from batchtrain.training.plan import auto_batch_rows
from benchmarks.quality_tables import Case

__all__ = ["BOOSTING", "METRICS", "MLP", "OURS", "PEERS", "Bench", "Measured", "identity"]

OURS, MLP, BOOSTING = "batchtrain", "MLP", "HistGradientBoosting"
PEERS = (MLP, BOOSTING)

METRICS = {"classification": ("accuracy", "log_loss"), "regression": ("r2", "mae")}
"""The first is what the verdict goes by."""

_MODELS: Mapping[tuple[str, str], Any] = {
    ("classification", MLP): MLPClassifier,
    ("classification", BOOSTING): HistGradientBoostingClassifier,
    ("regression", MLP): MLPRegressor,
    ("regression", BOOSTING): HistGradientBoostingRegressor,
}


@dataclass(frozen=True)
class Measured:
    """What came of one training.

    Attributes:
        scores: Metric to value on the test rows.
        cpu_s: CPU seconds of the training alone.
    """

    scores: dict[str, float]
    cpu_s: float


class Bench:
    """One table, ready to be learned with any seed.

    Attributes:
        case: Which.
        table: Its raw rows.
        task: Classification or regression, once a split was prepared.
        rows: The rows of each split, likewise.
    """

    def __init__(self, case: Case, folder: Path, *, max_rows: int | None = None) -> None:
        """Write the spec, and the table where it is no sample, to a folder of their own.

        Args:
            case: The table.
            folder: An empty place; it must stay.
            max_rows: Only so many of the first rows, for a quick look.
        """
        self.case = case
        self.table = case.make() if max_rows is None else case.make().slice(0, max_rows)
        self.task = ""
        self.rows: dict[str, int] = {}
        source = f"sample:{case.sample}"
        if case.sample is None or max_rows is not None:
            source = f"{case.name}.parquet"
            pq.write_table(self.table, folder / source)
        # No other key: all else is what batchtrain does unaided.
        spec = {
            "version": 1,
            "name": case.name,
            "data": {"source": source, "target": case.target},
        }
        self._spec = folder / f"{case.name}.yaml"
        self._spec.write_text(yaml.safe_dump(spec), encoding="utf-8")
        self._folder = folder

    def prepared(self, seed: int) -> PreparedData:
        """The rows of each split, as the seed draws them."""
        prepared = run_spec(self._loaded(seed), last="prepare").prepared
        if prepared is None:
            raise RuntimeError(f"expected prepared rows of {self.case.name}, found none")
        self.task = prepared.task
        self.rows = {split: prepared.num_rows(split) for split in ("train", "valid", "test")}
        return prepared

    def ours(self, seed: int, overrides: Sequence[str] = ()) -> Measured:
        """Train with the defaults; the report of `batchtrain run` has the scores.

        Args:
            seed: Of the run.
            overrides: As of `--set`, to see what another choice would do.
        """
        self.prepared(seed)
        loaded = self._loaded(seed, overrides)
        started = time.process_time()
        run_spec(loaded, last="train")
        cpu_s = time.process_time() - started
        report = run_spec(loaded, last="evaluate").report
        found = report.metrics["test"] if report else {}
        scores = {name: found[name] for name in METRICS[self.task]}
        return Measured({name: value or 0.0 for name, value in scores.items()}, cpu_s)

    def peer(self, name: str, seed: int, *, with_valid: bool) -> Measured:
        """Train a model of scikit-learn as it comes, behind the usual preprocessing.

        Args:
            name: One of `PEERS`.
            seed: Of the split and of the model.
            with_valid: Whether it may train on the validation rows as well.
        """
        prepared = self.prepared(seed)
        splits = ("train", "valid") if with_valid else ("train",)
        features, target = self._raw(prepared, splits)
        model = _pipeline(_MODELS[self.task, name](random_state=seed))
        started = time.process_time()
        with threadpool_limits(1), warnings.catch_warnings():
            # That 200 epochs were not enough is part of the default.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, target)
        cpu_s = time.process_time() - started
        return Measured(self._scores(model, *self._raw(prepared, ("test",))), cpu_s)

    def _loaded(self, seed: int, overrides: Sequence[str] = ()) -> LoadedSpec:
        ours = (f"seed={seed}", f"storage={self._folder / 'runs'}")
        return load_spec(self._spec, [*ours, *overrides])

    def _raw(self, prepared: PreparedData, splits: Sequence[str]) -> tuple[Any, npt.NDArray[Any]]:
        """The raw rows of some of our splits, as a frame, and their targets."""
        numbers = np.sort(np.concatenate([prepared.load(split).row_id for split in splits]))
        rows = self.table.take(pa.array(numbers))
        return rows.drop_columns([self.case.target]).to_pandas(), rows[self.case.target].to_numpy()

    def _scores(self, model: Pipeline, features: Any, target: Any) -> dict[str, float]:
        with threadpool_limits(1):
            predicted = model.predict(features)
            if self.task == "regression":
                return {
                    "r2": float(metrics.r2_score(target, predicted)),
                    "mae": float(metrics.mean_absolute_error(target, predicted)),
                }
            shares = model.predict_proba(features)
        return {
            "accuracy": float(metrics.accuracy_score(target, predicted)),
            "log_loss": float(metrics.log_loss(target, shares, labels=model.classes_)),
        }


def identity(contender: str) -> str:
    """What a contender's results depend on beside table and seed, for whoever keeps them."""
    if contender != OURS:
        return f"scikit-learn {sklearn.__version__}"
    sections = (MlpModel(kind="mlp"), TrainingSpec())
    # The rule of `auto` for the rows of a batch is code, so some of its values stand for it.
    batches = [auto_batch_rows(2**power) for power in range(30)]
    defaults = [*(section.model_dump(mode="json") for section in sections), batches]
    return hashlib.sha256(json.dumps(defaults, sort_keys=True).encode()).hexdigest()[:12]


def _pipeline(model: Any) -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="mean"), StandardScaler())
    names = make_pipeline(
        SimpleImputer(strategy="most_frequent"),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    columns = ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("names", names, make_column_selector(dtype_exclude="number")),
        ]
    )
    return make_pipeline(columns, model)
