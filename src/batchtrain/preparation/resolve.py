"""Hold the `data` section against the table's schema, and fill in what it leaves open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchtrain.errors import Problem
from batchtrain.preparation.split_columns import split_column_problem
from batchtrain.spec.data import (
    BooleanColumn,
    CategoricalColumn,
    ColumnSpec,
    ColumnSplit,
    DataSpec,
    FilesSplit,
    GroupSplit,
    ImageColumn,
    NumericColumn,
    RandomSplit,
    SourceSplit,
    SplitSpec,
    StratifiedSplit,
    TextColumn,
    TimeSplit,
    VectorColumn,
    split_column,
)
from batchtrain.spec.suggest import did_you_mean
from batchtrain.tables import TableSchema, Unsupported

__all__ = ["Change", "ResolvedColumns", "TargetFacts", "resolve_columns", "resolve_task"]

MAX_INTEGER_CLASSES = 20
"""An integer target with more distinct values than this is taken for a quantity."""


INFERRED: Mapping[str, ColumnSpec] = {
    "integer": NumericColumn(kind="numeric"),
    "number": NumericColumn(kind="numeric"),
    "boolean": BooleanColumn(kind="boolean"),
    "string": CategoricalColumn(kind="categorical"),
}
"""What an undeclared column is, by its type."""

READABLE: Mapping[str, tuple[str, ...]] = {
    "vector": ("list<", "large_list<", "fixed_size_list<", "a JSON list"),
    "image": ("binary", "large_binary", "fixed_size_binary", "struct<"),
}
"""Kind to the types that only it reads, and only where it is declared; by how their names begin."""


@dataclass(frozen=True)
class Change:
    """Something that was dropped, filled, coerced or left out; the report lists them all.

    Attributes:
        what: One word: excluded, dropped, filled, unseen.
        where: The column, or the split.
        count: Rows or cells.
        detail: One sentence.
    """

    what: str
    where: str
    count: int
    detail: str


@dataclass(frozen=True)
class ResolvedColumns:
    """Every feature column with its kind, in the order of the table."""

    columns: dict[str, ColumnSpec]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class TargetFacts:
    """What the target column holds, over all rows.

    Attributes:
        type: Its canonical type.
        distinct: How many different values, missing ones not counted.
    """

    type: str
    distinct: int


def resolve_columns(
    data: DataSpec, schema: TableSchema, where: Callable[[str], str], *, is_text: bool
) -> ResolvedColumns | list[Problem]:
    """Give every column of the table its kind, or list all that is wrong.

    Args:
        data: The section as it was written.
        schema: The columns and types, from a scan of all rows.
        where: Dotted key to `file:line:column`.
        is_text: Whether the files hold text, so that a column of numbers has fractions or points.
    """
    names = list(schema.columns)
    by = split_column(data.split)
    problems = [
        _no_such_column(key, name, names, where)
        for key, name in (
            ("data.target", data.target),
            *([("data.weight", data.weight)] if data.weight is not None else []),
            *([("data.split.column", by)] if by is not None else []),
            *((f"data.columns.{name}", name) for name in data.columns),
            *((f"data.exclude.{place}", name) for place, name in enumerate(data.exclude)),
        )
        if name not in schema.columns
    ]
    problems.extend(_split_problems(data, schema, where))
    columns: dict[str, ColumnSpec] = {}
    changes: list[Change] = []
    for name in names:
        if name == data.target or name in data.exclude:
            continue
        found = schema.columns[name]
        if name == data.weight:
            problems.extend(_weight_problems(name, found, where))
            continue
        declared = data.columns.get(name)
        if name == by and declared is None:
            detail = "it decides the split, and is a feature only where it is declared"
            changes.append(Change("excluded", name, schema.num_rows, detail))
        elif declared is not None:
            problem = _declared_problem(name, declared, schema, where, is_text)
            problems.extend([problem] if problem else [])
            columns[name] = declared
        elif isinstance(found, Unsupported):
            problems.append(_unsupported(name, found, None, where))
        elif schema.missing.get(name, 0) == schema.num_rows:
            detail = "no row has a value in this column"
            changes.append(Change("excluded", name, schema.num_rows, detail))
        else:
            columns[name] = INFERRED["string" if name in schema.wide else found]
    if not columns and not problems:
        problems.append(
            Problem(
                where("data"),
                "data",
                f"expected at least one feature column, found none besides the target "
                f"{data.target!r}",
                "Exclude fewer columns, or use a table with more",
            )
        )
    return problems or ResolvedColumns(columns=columns, changes=tuple(changes))


def resolve_task(
    data: DataSpec,
    target: TargetFacts,
    where: Callable[[str], str],
    *,
    own_splits: Sequence[str] = (),
) -> tuple[str, SplitSpec] | list[Problem]:
    """Decide between classification and regression, and how rows are split.

    Floats, and integers of more than 20 different values, are a quantity; all else is a class.

    Args:
        data: The section as it was written.
        target: What the target holds.
        where: Dotted key to `file:line:column`.
        own_splits: The splits that the source itself has.
    """
    task = data.task
    if task == "auto":
        quantity = target.type == "number" or (
            target.type == "integer" and target.distinct > MAX_INTEGER_CLASSES
        )
        task = "regression" if quantity else "classification"
    problems = list(_target_problems(data, task, target, where))
    split = data.split or _usual_split(task, own_splits)
    problems.extend(_own_split_problems(split, own_splits, where))
    if task == "regression" and split.kind == "stratified":
        problems.append(
            Problem(
                where("data.split.kind"),
                "data.split.kind",
                f"a stratified split needs classes, but the target {data.target!r} is a quantity",
                "Use `kind: random`, or set `data.task: classification`",
            )
        )
    return problems or (task, split)


def _usual_split(task: str, own_splits: Sequence[str]) -> SplitSpec:
    """The rule where the spec has none."""
    if own_splits:
        return SourceSplit(kind="source")
    if task == "classification":
        return StratifiedSplit(kind="stratified")
    return RandomSplit(kind="random")


def _own_split_problems(
    split: SplitSpec, own_splits: Sequence[str], where: Callable[[str], str]
) -> Iterable[Problem]:
    """Splits of the source and of the spec that contradict each other."""
    key = "data.split"
    if isinstance(split, SourceSplit | FilesSplit):
        if not own_splits:
            message = "expected a source that has splits of its own, found one that has none"
            yield Problem(where(key), key, message, "Use another kind, or leave the key out")
    elif own_splits:
        yield Problem(
            where(key),
            key,
            f"the source has splits of its own ({', '.join(dict.fromkeys(own_splits))}), "
            f"which `kind: {split.kind}` would mix",
            "Leave the key out, or name one of them as the source, such as `SOURCE/train`",
        )


def _split_problems(
    data: DataSpec, schema: TableSchema, where: Callable[[str], str]
) -> Iterable[Problem]:
    """What is wrong with the column that decides the split."""
    rule = data.split
    if isinstance(rule, TimeSplit | GroupSplit | ColumnSplit) and rule.column in schema.columns:
        problem = split_column_problem(rule, schema.columns[rule.column], where)
        yield from [problem] if problem else []


def _target_problems(
    data: DataSpec, task: str, target: TargetFacts, where: Callable[[str], str]
) -> Iterable[Problem]:
    if target.distinct < 2:
        what = "two classes" if task == "classification" else "two different values"
        yield Problem(
            where("data.target"),
            "data.target",
            f"expected at least {what} in the column {data.target!r}, found {target.distinct}",
            "There is nothing to learn from this target; choose another column or more rows",
        )
    if task == "regression" and target.type in {"string", "boolean"}:
        yield Problem(
            where("data.task"),
            "data.task",
            f"regression needs numbers, but the column {data.target!r} holds "
            f"{'text' if target.type == 'string' else 'true and false'}",
            "Set `data.task: classification`, or choose another target",
        )


def _no_such_column(key: str, name: str, names: list[str], where: Callable[[str], str]) -> Problem:
    close = did_you_mean(name, names)
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f"Did you mean {close!r}?" if close else f"The columns are {listed}"
    return Problem(where(key), key, f"the table has no column {name!r}", hint)


def _weight_problems(
    name: str, found: str | Unsupported, where: Callable[[str], str]
) -> Iterable[Problem]:
    """What no weight can be read from; single bad values are found when rows are read."""
    if isinstance(found, Unsupported) or found not in {"integer", "number"}:
        held = {"string": "text", "boolean": "true and false"}.get(str(found), str(found))
        yield Problem(
            where("data.weight"),
            "data.weight",
            f"expected numbers in the column of weights {name!r}, found {held}",
            "Convert the column, or name another one",
        )


def _declared_problem(
    name: str,
    declared: ColumnSpec,
    schema: TableSchema,
    where: Callable[[str], str],
    is_text: bool,
) -> Problem | None:
    """What a declared kind cannot read."""
    found = schema.columns[name]
    if isinstance(found, Unsupported):
        if found.arrow_type.startswith(READABLE.get(declared.kind, ())):
            return None
        return _unsupported(name, found, declared, where)
    if name in schema.wide and isinstance(declared, NumericColumn):
        return Problem(
            where(f"data.columns.{name}.kind"),
            f"data.columns.{name}.kind",
            f"column {name!r} is declared numeric but holds whole numbers beyond 2**53, up to "
            "which a number is exact",
            f"Declare it categorical, or take it out and add `exclude: [{name}]` under data",
        )
    if isinstance(declared, CategoricalColumn) and found == "number" and not is_text:
        return None  # whole numbers, where one is missing; else the cells say it when they are read
    is_empty = schema.missing.get(name, 0) == schema.num_rows
    return _kind_mismatch(name, declared, "no value" if is_empty else found, where)


def _unsupported(
    name: str, found: Unsupported, declared: ColumnSpec | None, where: Callable[[str], str]
) -> Problem:
    if declared is None:
        key = "data"
        message = f"column {name!r} holds {found}, which is read as no kind by itself"
        instead = _instead(found)
    else:
        key = f"data.columns.{name}"
        message = f"column {name!r} is declared {declared.kind} but holds {found}"
        instead = "convert the column"
    hint = f"Add `exclude: [{name}]` under data, or {instead}"
    return Problem(where(key), key, message, hint)


def _instead(found: Unsupported) -> str:
    """What else to do about a column of a type that a scan does not know."""
    kind = next(
        (kind for kind, types in READABLE.items() if found.arrow_type.startswith(types)), ""
    )
    settings = {"vector": "size: LENGTH", "image": "height: ROWS, width: COLUMNS"}.get(kind)
    is_other_struct = found.arrow_type.startswith("struct<") and "bytes: " not in found.arrow_type
    if settings is None or is_other_struct:
        return "convert the column"
    return f"declare it under `data.columns` as `{{kind: {kind}, {settings}}}`"


def _kind_mismatch(
    name: str, declared: ColumnSpec, found: str, where: Callable[[str], str]
) -> Problem | None:
    """What a declared kind cannot read; single bad values are found when rows are read."""
    key = f"data.columns.{name}.kind"
    if isinstance(declared, VectorColumn | ImageColumn):
        hint = "Text of CSV files and JSON lines cannot hold images: use Parquet or Arrow files"
        if isinstance(declared, VectorColumn):
            hint = (
                "A cell of a CSV file cannot hold lists: use Parquet or Arrow files, or arrays in "
                "JSON lines"
            )
        held = {"string": "text", "boolean": "true and false", "no value": found}
        return Problem(
            where(key),
            key,
            f"column {name!r} is declared {declared.kind} but holds {held.get(found, 'numbers')}",
            hint,
        )
    if isinstance(declared, CategoricalColumn | TextColumn) and found == "number":
        return Problem(
            where(key),
            key,
            f"column {name!r} is declared {declared.kind} but holds numbers with fractions",
            "Declare it numeric, or round it in the table",
        )
    if isinstance(declared, CategoricalColumn | NumericColumn | TextColumn) and found == "boolean":
        return Problem(
            where(key),
            key,
            f"column {name!r} is declared {declared.kind} but holds true and false",
            "Declare it boolean",
        )
    return None
