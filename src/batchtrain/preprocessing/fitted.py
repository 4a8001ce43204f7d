"""The fitted preprocessor: what the training rows taught, as plain values that are JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from batchtrain.errors import ArtifactError
from batchtrain.preprocessing.fitted_wide import FittedWide, wide_from_json
from batchtrain.spec.task import Task
from batchtrain.tables.types import ColumnType

__all__ = ["FittedColumn", "FittedPreprocessor", "FittedTarget"]

Kind = Literal["numeric", "categorical", "boolean", "text", "vector", "image"]

FORMAT = 1

INPUT_TYPES: Mapping[Kind, ColumnType] = {
    "numeric": "number",
    "categorical": "string",
    "boolean": "boolean",
    "text": "string",
    "vector": "vector",
    "image": "image",
}


@dataclass(frozen=True)
class FittedColumn:
    """How one raw column becomes features.

    A numeric or boolean value `x` becomes `(x - offset) / divisor`; a categorical value becomes
    its place in `categories` plus one, or 0 where it is not among them. What a text, a vector or an
    image becomes is said by `wide`.

    Attributes:
        name: The raw column.
        kind: What it is.
        missing: The policy of the spec: `mean`, ..., `unknown`, `drop`, `error`.
        fill: What stands in for a missing value, in raw units; None where nothing does.
        indicator: Whether a numeric feature says that the value was missing.
        offset: Subtracted, in raw units.
        divisor: Divided by, in raw units; never 0.
        categories: Known values, in UTF-8 order.
        wide: How a text, a vector or an image becomes several features; else None.
    """

    name: str
    kind: Kind
    missing: str
    fill: float | str | bool | None = None
    indicator: bool = False
    offset: float = 0.0
    divisor: float = 1.0
    categories: tuple[str, ...] = ()
    wide: FittedWide | None = None

    @property
    def num_numeric(self) -> int:
        """How many numeric features this column gives."""
        if self.wide is not None:
            return self.wide.num_features
        return int(self.kind != "categorical") + int(self.indicator)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON; `wide` only where it says something."""
        document = asdict(self)
        if self.wide is None:
            del document["wide"]
        return document


@dataclass(frozen=True)
class FittedTarget:
    """What is predicted.

    Attributes:
        name: The raw column.
        task: Classification or regression.
        classes: Class names in UTF-8 order, by code; empty for regression.
    """

    name: str
    task: Task
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FittedPreprocessor:
    """From raw columns to the model's inputs; the order of `columns` is the order of features."""

    columns: tuple[FittedColumn, ...]
    target: FittedTarget

    @property
    def input_types(self) -> dict[str, ColumnType]:
        """The raw columns that are needed, in order, with their canonical types."""
        return {column.name: INPUT_TYPES[column.kind] for column in self.columns}

    @property
    def num_numeric(self) -> int:
        """F, the width of the numeric features."""
        return sum(column.num_numeric for column in self.columns)

    @property
    def num_wide(self) -> int:
        """How many of these are of texts, vectors and images."""
        return sum(column.num_numeric for column in self.columns if column.wide is not None)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """For each categorical column the number of codes, code 0 for unknown included."""
        return tuple(
            len(column.categories) + 1 for column in self.columns if column.kind == "categorical"
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the numeric features, then of the categorical ones."""
        numeric: list[str] = []
        for column in self.columns:
            if column.wide is not None:
                numeric += [f"{column.name}[{place}]" for place in range(column.wide.num_features)]
            elif column.kind != "categorical":
                numeric.append(column.name)
            if column.indicator:
                numeric.append(f"{column.name} is missing")
        return (*numeric, *(c.name for c in self.columns if c.kind == "categorical"))

    def to_json(self) -> dict[str, Any]:
        """The whole state as JSON; floats keep all their digits."""
        return {
            "format": FORMAT,
            "columns": [column.to_json() for column in self.columns],
            "target": asdict(self.target),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str) -> FittedPreprocessor:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: If it is of another format or not what `to_json` writes.
        """
        try:
            if document["format"] != FORMAT:
                raise ArtifactError(
                    f"expected format {FORMAT} of the preprocessing state in {where}, found "
                    f"{document['format']!r}. Use the batchtrain version that wrote it"
                )
            columns = tuple(
                FittedColumn(
                    **{
                        **column,
                        "categories": tuple(column["categories"]),
                        "wide": wide_from_json(column["kind"], column.get("wide")),
                    }
                )
                for column in document["columns"]
            )
            target = dict(document["target"])
            fitted_target = FittedTarget(**{**target, "classes": tuple(target["classes"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"expected a preprocessing state in {where}, found something else ({error!r}). "
                "Make the artifact anew"
            ) from error
        return cls(columns=columns, target=fitted_target)
