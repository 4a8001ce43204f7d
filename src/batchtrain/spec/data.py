"""The `data` section: where rows come from, what the columns are, how rows are split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from batchtrain.spec.base import SpecModel
from batchtrain.spec.columns import (
    BooleanColumn,
    CategoricalColumn,
    ColumnSpec,
    ImageColumn,
    NumericColumn,
    TextColumn,
    VectorColumn,
)

__all__ = [
    "SPLITS",
    "BooleanColumn",
    "CategoricalColumn",
    "ColumnSpec",
    "ColumnSplit",
    "DataSpec",
    "FilesSplit",
    "Fractions",
    "GroupSplit",
    "ImageColumn",
    "NumericColumn",
    "OrderedSplit",
    "RandomSplit",
    "SourceSplit",
    "SplitSpec",
    "StratifiedSplit",
    "TextColumn",
    "TimeSplit",
    "VectorColumn",
    "may_have_rows",
    "split_column",
    "with_source",
]

SPLITS = ("train", "valid", "test")

OWN_ROWS = re.compile(r"custom:(?P<target>.*)")
"""A source that is a class of the user's."""

DEFAULT_NULL_VALUES = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "?")


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


class TimeSplit(SpecModel):
    """As ordered, by the values of a column: the earliest rows train, the latest test.

    Rows of one time stay in the order of the input.
    """

    kind: Literal["time"]
    column: str = Field(min_length=1)
    """Numbers, dates or times; as text `2026-11-21` or `2026-11-21T08:30:00Z`. It is a feature
    only where it is declared under `data.columns`."""
    fractions: Fractions = DEFAULT_FRACTIONS


class GroupSplit(SpecModel):
    """Groups of rows are dealt at random; no group is in two splits.

    The shares are met as near as whole groups allow.
    """

    kind: Literal["group"]
    column: str = Field(min_length=1)
    """What rows of one group share, such as a patient or a user. It is a feature only where it is
    declared under `data.columns`."""
    fractions: Fractions = DEFAULT_FRACTIONS
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The seed of the split alone; the run's seed where it is not given."""


SplitValues = Annotated[tuple[str | int | bool, ...], Field(min_length=1)]


class ColumnSplit(SpecModel):
    """A column says of each row in which split it is. The column is no feature."""

    kind: Literal["column"]
    column: str = Field(min_length=1)
    """A column of names, whole numbers, or true and false."""
    train: SplitValues | None = None
    """The values of the training rows. Where no list is given: train, valid and test."""
    valid: SplitValues | None = None
    """The values of the rows that validate; left out beside other lists, there are none."""
    test: SplitValues | None = None
    """The values of the rows that test; left out beside other lists, there are none."""

    @model_validator(mode="after")
    def _each_value_has_one_split(self) -> ColumnSplit:
        if self.train is None and (self.valid, self.test) != (None, None):
            raise ValueError("`train` lists no value; list those of the training rows as well")
        values = [value for split in SPLITS for value in self.values_of(split)]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"a value belongs to one split, found {twice[0]!r} twice")
        return self

    def values_of(self, split: str) -> tuple[str, ...]:
        """The values of one split as the text that a column has for them."""
        lists = {"train": self.train, "valid": self.valid, "test": self.test}
        if not any(lists.values()):
            return (split,)
        return tuple(
            str(value).lower() if isinstance(value, bool) else str(value)
            for value in lists[split] or ()
        )


class FilesSplit(SpecModel):
    """Each split is a source of its own; rows are numbered through train, valid and test."""

    kind: Literal["files"]
    train: str = Field(min_length=1, max_length=4096)
    """The rows that train, as `data.source`, which may be left out then."""
    valid: str | None = Field(default=None, min_length=1, max_length=4096)
    """The rows that validate, as `data.source`."""
    test: str | None = Field(default=None, min_length=1, max_length=4096)
    """The rows that test, as `data.source`."""

    def sources(self) -> dict[str, str]:
        """Split to source, for the splits that have one."""
        every = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: source for split, source in every.items() if source is not None}


class SourceSplit(SpecModel):
    """The splits that the source itself has, as a folder of the `datasets` library may."""

    kind: Literal["source"]


SplitSpec = Annotated[
    RandomSplit
    | StratifiedSplit
    | OrderedSplit
    | TimeSplit
    | GroupSplit
    | ColumnSplit
    | FilesSplit
    | SourceSplit,
    Field(discriminator="kind"),
]


def may_have_rows(rule: SplitSpec, split: str) -> bool:
    """Whether a rule sends rows to a split; what only the source knows is answered with yes."""
    if isinstance(rule, ColumnSplit):
        return bool(rule.values_of(split))
    if isinstance(rule, FilesSplit):
        return split in rule.sources()
    return isinstance(rule, SourceSplit) or rule.fractions.of(split) > 0


def split_column(rule: SplitSpec | None) -> str | None:
    """The column that decides the split, where one does."""
    return rule.column if isinstance(rule, TimeSplit | GroupSplit | ColumnSplit) else None


def _source_may_be_left_out(schema: dict[str, Any]) -> None:
    """`source` is required except with `split: {kind: files}`, which a schema cannot well say."""
    schema["required"] = [name for name in schema["required"] if name != "source"]


class DataSpec(SpecModel):
    """Where the rows come from and what they mean."""

    model_config = ConfigDict(json_schema_extra=_source_may_be_left_out)

    source: str = Field(min_length=1, max_length=4096)
    """A CSV, JSON lines, Parquet or Arrow file, a glob, a folder, `hf:./FOLDER`,
    `hf:NAME@REVISION` or `sample:NAME`; relative to the spec file. It may be left out with
    `split: {kind: files}`."""
    params: dict[str, Any] = {}
    """Keyword arguments of the class, for `custom:`."""
    target: str = Field(min_length=1)
    """The column to predict."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """`auto`: regression for a target of floats or of many integers, else classification."""
    weight: str | None = Field(default=None, min_length=1)
    """A column of numbers from 0 on: what each row weighs in the losses. It is no feature, and
    predictions do not need it; the metrics of the report count every row once."""
    columns: dict[str, ColumnSpec] = {}
    """What a feature column is; what is not declared is inferred from all rows."""
    exclude: tuple[str, ...] = ()
    """Columns that are left out."""
    null_values: tuple[str, ...] = DEFAULT_NULL_VALUES
    """The CSV cells and JSON values that mean "missing"."""
    split: SplitSpec | None = None
    """Left out: the splits of the source where it has some, else stratified for classification and
    random for regression."""
    lanes: int | None = Field(default=None, ge=1, le=4096)
    """Parts of the training rows that workers can hold apart. Left out: 1, and 64 from 1 GiB on."""

    @property
    def own_rows(self) -> str | None:
        """The class that yields the rows, for `custom:`; None where the source is files."""
        match = OWN_ROWS.fullmatch(self.source)
        return match["target"] if match else None

    @model_validator(mode="after")
    def _params_are_of_a_class(self) -> DataSpec:
        if self.params and self.own_rows is None:
            raise ValueError(
                "`data.params` are arguments of a class, and have no effect without "
                "`source: custom:package.module:Class`"
            )
        return self

    @model_validator(mode="after")
    def _each_column_has_one_role(self) -> DataSpec:
        if self.target in self.exclude:
            raise ValueError(f"the target {self.target!r} cannot be excluded")
        if self.target in self.columns:
            raise ValueError(
                f"the target {self.target!r} is declared under columns; set `data.task` instead"
            )
        if self.weight is not None and self.weight in (self.target, *self.columns, *self.exclude):
            raise ValueError(
                f"the column of weights {self.weight!r} cannot be the target, a feature under "
                "columns or excluded as well; it is no feature in any case"
            )
        both = sorted(set(self.columns) & set(self.exclude))
        if both:
            raise ValueError(f"declared and excluded at once: {', '.join(map(repr, both))}")
        return self

    @model_validator(mode="after")
    def _the_split_has_its_own_column_or_files(self) -> DataSpec:
        column = split_column(self.split)
        if column is not None and column in (self.target, self.weight):
            raise ValueError(f"`split.column` {column!r} is the target or the column of weights")
        if isinstance(self.split, ColumnSplit) and column in self.columns:
            raise ValueError(f"`split.column` {column!r} is no feature; take it out of columns")
        if isinstance(self.split, FilesSplit) and self.source != self.split.train:
            raise ValueError(
                "`source` differs from `split.train`; with `split: {kind: files}` leave it out"
            )
        return self


def with_source(document: Any) -> Any:
    """A spec as plain values; `data.source` is filled in where `split: {kind: files}` names it."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or "source" in data:
        return document
    split = data.get("split")
    if not isinstance(split, dict) or split.get("kind") != "files" or "train" not in split:
        return document
    return {**document, "data": {"source": split["train"], **data}}
