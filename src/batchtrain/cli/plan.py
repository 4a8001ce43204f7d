"""What `batchtrain plan` shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchtrain.cli.outcome import plain
from batchtrain.reporting.wording import duration
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import Storage

__all__ = ["planned", "show_plan"]

FEW_RUNGS = 8
UNITS = ("B", "kB", "MB", "GB", "TB")


def planned(
    loaded: LoadedSpec, allow_code: Sequence[str], *, storage: Storage | None = None
) -> dict[str, Any]:
    """What would run, as `--json` prints it; `storage` is where results are looked for."""
    from batchtrain.tuning.corners import check_space
    from batchtrain.tuning.forecast import forecast
    from batchtrain.tuning.planning import plan_document, plan_run

    if loaded.spec.search is not None:
        check_space(loaded)
    run = plan_run(loaded, allow_code=allow_code, storage=storage)
    search = forecast(loaded, run.task.prepared) if loaded.spec.search is not None else None
    return plan_document(run, search)


def show_plan(
    document: Mapping[str, Any], console: Console, *, more: Iterable[tuple[str, str]] = ()
) -> None:
    """Print what `plan_document` gave, for people: a word, and beside it what there is to say.

    Args:
        document: The plan.
        console: Where.
        more: Lines of the same form that come at the end.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold", min_width=9)
    table.add_column(overflow="fold")
    lines = [*_run_lines(document)]
    if document["search"] is not None:
        lines += _search_lines(document["search"])
    lines += more
    last = ""
    for word, text in lines:
        table.add_row("" if word == last else word, Text(plain(text)))
        last = word
    console.print(table)


def _run_lines(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rows, batches, model = document["rows"], document["batches"], document["model"]
    memory, features = document["memory"], document["features"]
    splits = ", ".join(f"{rows[split]:,} {split}" for split in ("train", "valid", "test"))
    dropped = f", {rows['dropped']:,} dropped" if rows["dropped"] else ""
    yield "rows", f"{splits}{dropped}"
    widths = f"{features['numeric']:,} numeric, {features['categorical']:,} categorical"
    yield "features", f"{widths}; {document['task']}"
    epoch = f"{_some(batches['per_epoch'], 'batch', 'es')} of {_some(batches['rows'], 'row')}"
    yield "steps", f"{batches['steps']:,}: {_some(batches['epochs'], 'epoch')} of {epoch}"
    count = "an unknown number of" if model["parameters"] is None else f"{model['parameters']:,}"
    yield "model", f"{model['kind']}, {count} parameters"
    free = "" if memory["available"] is None else f", of {_size(memory['available'])} that are free"
    kept = "stay in memory" if memory["kept"] == "resident" else "are read in each epoch"
    yield "memory", f"{_size(memory['rows'])} of rows, which {kept}{free}"
    if memory["model"] is not None:
        yield "memory", f"{_size(memory['model'])} of weights, gradients and moments"
    yield "where", document["engine"]["why"]
    yield "where", f"{document['workers']['why']}; device {document['device']}"
    yield from _time_lines(document["time"])
    for note in document["notes"]:
        yield "note", note
    there = document["published"]
    left = [stage for stage in ("prepare", "train") if stage not in there]
    done = f"{' and '.join(there)} done already; " if there else ""
    todo = f"{' and '.join(left)} would run" if left else "nothing would be trained"
    yield "stages", f"{done}{todo}"


def _time_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found["seconds"] is None:
        yield "time", found["source"]
        return
    step = found["step_seconds"] * 1000
    yield "time", f"about {duration(found['seconds'])} of training, {step:.3g} ms a step"
    yield "time", found["source"]


def _search_lines(search: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    goals = ", ".join(f"{each['mode']} {each['metric']}" for each in search["goals"])
    yield (
        "search",
        f"{search['trials']:,} trials, {search['algorithm']}" + (f"; {goals}" if goals else ""),
    )
    several = f"; {search['concurrent']:,} at a time" if search["concurrent"] > 1 else ""
    yield "search", f"{search['where']}{several}"
    for key, words in search["space"].items():
        yield "space", f"{key}: {words}"
    if search["scheduler"] != "none":
        settings = ", ".join(f"{name} {value}" for name, value in search["settings"].items())
        scheduler = f"{search['scheduler']} ({settings})" if settings else search["scheduler"]
        yield "scheduler", scheduler
    for bracket in search["brackets"]:
        # Who is stopped by ASHA follows from the results; HyperBand has its numbers before.
        how_sure = "about" if search["scheduler"] == "asha" else "at most"
        yield "rungs", f"{how_sure} {_rungs_words(bracket['rungs'], bracket['trials'])}"
    for shape in search["shapes"]:
        yield "packs", _shape_words(shape)
    expected, most = search["rows_expected"], search["rows_at_most"]
    fewer = f"; about {expected:,} are expected" if expected < most else ""
    yield "trained", f"{most:,} rows at most{fewer}"
    if search["seconds"] is not None:
        yield "trained", f"very roughly {duration(search['seconds'])} of training on this machine"
    for note in search["notes"]:
        yield "note", note


def _rungs_words(rungs: Sequence[int], trials: Sequence[int]) -> str:
    """How many trials come to each rung; of many rungs those in the middle are left out."""
    words = [f"{count:,} to epoch {epochs:,}" for epochs, count in zip(rungs, trials, strict=True)]
    if len(words) > FEW_RUNGS:
        words = [*words[: FEW_RUNGS // 2], "...", words[-1]]
    return ", ".join(words)


def _shape_words(shape: Mapping[str, Any]) -> str:
    trials = _some(shape["trials"], "trial")
    if not shape["packs"]:
        return f"{trials} alone{': ' * bool(shape['why_alone'])}{shape['why_alone']}"
    of = f" with {shape['shape']}" if shape["shape"] else ""
    return f"{trials}{of} in {_some(shape['packs'], 'pack')}"


def _some(how_many: int, what: str, several: str = "s") -> str:
    return f"{how_many:,} {what}{'' if how_many == 1 else several}"


def _size(size: float) -> str:
    """Bytes as people read them.

    Example:
        >>> _size(120), _size(3_450_000)
        ('120 B', '3.5 MB')
    """
    number, unit = float(size), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number /= 1000
        unit += 1
    return f"{number:.1f} {UNITS[unit]}" if unit else f"{size:.0f} B"
