"""The `data` section: where rows come from, what the columns are, how rows are split."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "SPLITS",
    "BooleanColumn",
    "CategoricalColumn",
    "ColumnSpec",
    "DataSpec",
    "Fractions",
    "NumericColumn",
    "OrderedSplit",
    "RandomSplit",
    "SplitSpec",
    "StratifiedSplit",
]

SPLITS = ("train", "valid", "test")

DEFAULT_NULL_VALUES = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "?")


Column = TypeVar("Column", "NumericColumn", "CategoricalColumn", "BooleanColumn")


class NumericColumn(SpecModel):
    """A number. It reaches the model as float32, after filling and scaling."""

    kind: Literal["numeric"]
    missing: Literal["mean", "median", "most_frequent", "constant", "drop", "error"] = "mean"
    """What a missing value becomes; the statistics come from the training rows alone."""
    fill_value: float | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a second feature that is 1 where the value was missing."""
    scale: Literal["standard", "minmax", "robust", "none"] = "standard"

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> NumericColumn:
        return _check_fill(self)


class CategoricalColumn(SpecModel):
    """One of a set of names. Code 0 is for values that the training rows do not have."""

    kind: Literal["categorical"]
    missing: Literal["unknown", "most_frequent", "constant", "drop", "error"] = "unknown"
    """`unknown` gives a missing value code 0, as an unseen one."""
    fill_value: str | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a numeric feature that is 1 where the value was missing."""

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> CategoricalColumn:
        return _check_fill(self)


class BooleanColumn(SpecModel):
    """True or false. It reaches the model as 1.0 or 0.0."""

    kind: Literal["boolean"]
    missing: Literal["most_frequent", "constant", "drop", "error"] = "most_frequent"
    fill_value: bool | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a second feature that is 1 where the value was missing."""

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> BooleanColumn:
        return _check_fill(self)


def _check_fill(column: Column) -> Column:
    if column.missing == "constant" and column.fill_value is None:
        raise ValueError("`missing: constant` needs a `fill_value`")
    if column.missing != "constant" and column.fill_value is not None:
        raise ValueError(f"`fill_value` has no effect with `missing: {column.missing}`")
    return column


ColumnSpec = Annotated[
    NumericColumn | CategoricalColumn | BooleanColumn, Field(discriminator="kind")
]


class Fractions(SpecModel):
    """The share of the rows in each split; a split may be empty, except train."""

    train: float = Field(gt=0, le=1)
    valid: float = Field(default=0.0, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _sum_is_one(self) -> Fractions:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the fractions must add up to 1, found {total:.6g}")
        return self

    def of(self, split: str) -> float:
        """The share of one split, by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]


DEFAULT_FRACTIONS = Fractions(train=0.7, valid=0.1, test=0.2)


class RandomSplit(SpecModel):
    """Rows are dealt to the splits at random."""

    kind: Literal["random"]
    fractions: Fractions = DEFAULT_FRACTIONS
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The seed of the split alone; the run's seed where it is not given."""


class StratifiedSplit(SpecModel):
    """As random, with every class in the same proportions in every split."""

    kind: Literal["stratified"]
    fractions: Fractions = DEFAULT_FRACTIONS
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The seed of the split alone; the run's seed where it is not given."""


class OrderedSplit(SpecModel):
    """The first rows train, the next validate, the last test; nothing is shuffled."""

    kind: Literal["ordered"]
    fractions: Fractions = DEFAULT_FRACTIONS


SplitSpec = Annotated[RandomSplit | StratifiedSplit | OrderedSplit, Field(discriminator="kind")]


class DataSpec(SpecModel):
    """Where the rows come from and what they mean."""

    source: str = Field(min_length=1, max_length=4096)
    """A CSV or Parquet file, a glob, a folder, or `sample:NAME`; relative to the spec file."""
    target: str = Field(min_length=1)
    """The column to predict."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """`auto`: regression for a target of floats or of many integers, else classification."""
    columns: dict[str, ColumnSpec] = {}
    """What a feature column is; what is not declared is inferred from all rows."""
    exclude: tuple[str, ...] = ()
    """Columns that are left out."""
    null_values: tuple[str, ...] = DEFAULT_NULL_VALUES
    """The CSV cells that mean "missing"."""
    split: SplitSpec | None = None
    """Left out: stratified for classification, random for regression."""
    lanes: int | None = Field(default=None, ge=1, le=4096)
    """Parts of the training rows that workers can hold apart. Left out: 1, and 64 from 1 GiB on."""

    @model_validator(mode="after")
    def _each_column_has_one_role(self) -> DataSpec:
        if self.target in self.exclude:
            raise ValueError(f"the target {self.target!r} cannot be excluded")
        if self.target in self.columns:
            raise ValueError(
                f"the target {self.target!r} is declared under columns; set `data.task` instead"
            )
        both = sorted(set(self.columns) & set(self.exclude))
        if both:
            raise ValueError(f"declared and excluded at once: {', '.join(map(repr, both))}")
        return self
