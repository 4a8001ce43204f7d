"""The model card of a bundle: Markdown that says what a model does, from what, and how well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from batchtrain.reporting.content import ColumnRow, ReportContent
from batchtrain.reporting.wording import count, measure, number, visible

__all__ = ["render_model_card"]

USE = """\
## How to use it

```sh
batchtrain predict BUNDLE new.csv --out predictions.parquet
```

```python
import batchtrain

predictions = batchtrain.load_bundle("BUNDLE").predict(frame)
```

`BUNDLE` is the bundle's folder, which holds `manifest.json`; this card lies two folders below it. A
table needs the columns under Inputs. The bundle holds no code: loading it runs none."""

MAX_CATEGORIES = 12
SMALL_SPLIT_ROWS = 1000

# Emphasis, code, links, tables, mathematics, and the addresses that some dialects make links of;
# at the start of a text also lists, headings and quotations.
MARKUP = re.compile(
    r"[\\`*{}\[\]|~$@:^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.|^[-+=#>]",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def render_model_card(content: ReportContent) -> str:
    """Render the card; the same content gives the same bytes.

    Names and texts of the content are escaped: they show as they are and mark nothing up.
    """
    sections = [
        _heading(content),
        _inputs(content),
        _data(content),
        _metrics(content),
        _limits(content),
        USE,
    ]
    return "\n\n".join(sections) + "\n"


def _heading(content: ReportContent) -> str:
    what = (
        f"Predicts **{_plain(content.target)}** ({_plain(content.task)}) for a row of a table. "
        f"{_plain(content.summary)}; {count(content.num_parameters)} parameters."
    )
    run = (
        f"Run {_plain(content.run_id)}, trained by batchtrain {_plain(content.version)}. "
        f"Verdict: **{content.verdict}**."
    )
    lines = [f"# Model card: {_plain(content.name)}", "", what, "", run]
    if content.requirements:
        lines.append("")
    lines += [
        f"- {_plain(row.metric)} {_plain(row.threshold)}: "
        f"{measure(row.value)}, {'passed' if row.passed else 'missed'}"
        for row in content.requirements
    ]
    target = next((row for row in content.columns if row.role == "target"), None)
    if target is not None and target.categories:
        lines += ["", f"Classes: {_listed(target.categories)}."]
    return "\n".join(lines)


def _inputs(content: ReportContent) -> str:
    rows = [
        (
            _plain(row.name),
            _plain(row.kind),
            _values(row),
            _plain(row.filled_with) if row.filled_with else "-",
        )
        for row in content.columns
        if row.role == "feature"
    ]
    return "## Inputs\n\n" + _table(("Column", "Kind", "Seen values", "A missing cell is"), rows)


def _data(content: ReportContent) -> str:
    rows = [(_plain(split.name), count(split.rows)) for split in content.splits]
    text = "## Data\n\n" + _table(("Split", "Rows"), rows)
    if not content.changes:
        return text + "\n\nNothing was dropped, filled or coerced."
    changes = [
        (_plain(row.what), _plain(row.where), count(row.count), _plain(row.detail))
        for row in content.changes
    ]
    return text + "\n\n" + _table(("Change", "Where", "Count", "Detail"), changes)


def _metrics(content: ReportContent) -> str:
    splits = list(content.metrics)
    names = dict.fromkeys(name for values in content.metrics.values() for name in values)
    if not names:
        return "## Metrics\n\nNo metric was computed."
    rows = [(_plain(name), *(_metric(content, split, name) for split in splits)) for name in names]
    text = "## Metrics\n\n" + _table(("Metric", *map(_plain, splits)), rows)
    return "\n\n".join([text, *map(_plain, content.loss_notes)])


def _metric(content: ReportContent, split: str, name: str) -> str:
    values = content.metrics[split]
    if name not in values:
        return "-"
    if values[name] is None:
        reason = content.metric_notes.get(split, {}).get(name, "not computed")
        return f"n/a ({_plain(reason)})"
    return measure(values[name])


def _limits(content: ReportContent) -> str:
    kinds = {row.kind for row in content.columns if row.role == "feature"}
    lines = ["It knows only rows like those that it was trained on."]
    if kinds & {"numeric", "vector"}:
        lines.append("Numbers outside of the seen ranges are extrapolated.")
    if "categorical" in kinds:
        lines.append("All categories that were not seen in training are treated as one.")
    if "text" in kinds:
        lines.append(
            "Texts count by their words, hashed; words that share a feature are one to it."
        )
    lines += [
        f"Metrics of the {_plain(split.name)} split rest on {count(split.rows)} rows: "
        f"one row is {number(1 / split.rows)} of a share such as accuracy."
        for split in content.splits
        if split.name != "train"
        and content.task == "classification"
        and 0 < split.rows < SMALL_SPLIT_ROWS
    ]
    lines += [_plain(warning) for warning in content.warnings]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _values(row: ColumnRow) -> str:
    if row.categories:
        return _listed(row.categories)
    if row.minimum is not None and row.maximum is not None:
        return f"{number(row.minimum)} to {number(row.maximum)}"
    return "-"


def _listed(values: Sequence[str]) -> str:
    text = ", ".join(map(_plain, values[:MAX_CATEGORIES]))
    rest = len(values) - MAX_CATEGORIES
    return f"{text} and {rest} more" if rest > 0 else text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;")
    return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", text))
