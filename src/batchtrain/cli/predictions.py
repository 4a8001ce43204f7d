"""`batchtrain predict`: one row, or a table, and what a person sees of it."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from batchtrain.cli.console import ConsoleProgress
from batchtrain.cli.outcome import plain, print_json
from batchtrain.engines.job_storage import check_job_output
from batchtrain.errors import DataError
from batchtrain.progress import Progress

__all__ = ["asked_rows", "predict_row", "predict_table"]


def asked_rows(
    data: str | None, out: Path | None, row: str | None
) -> dict[str, list[Any]] | tuple[str, Path]:
    """What to predict on: the values of one row, or a table and the file for its predictions.

    Raises:
        DataError: If the arguments give neither or both, or the file would not outlive a job.
    """
    values = _one_row(row) if row is not None else None
    if values is not None:
        if data is not None or out is not None:
            raise DataError("predict: expected DATA and --out, or --row, found both. Choose one")
        return values
    if data is None or out is None:
        raise DataError(
            "predict: expected DATA and --out FILE, or --row JSON, found neither pair. "
            "Such as: batchtrain predict BUNDLE new.csv --out predictions.parquet"
        )
    check_job_output(out)
    return data, out


def predict_row(loaded: Any, values: dict[str, list[Any]], *, as_json: bool) -> None:
    """Print the prediction for one row.

    Args:
        loaded: A `LoadedBundle`.
        values: The row, as a table of one row.
        as_json: Whether to print one JSON object.
    """
    from batchtrain.tables import frame_to_table

    table, counts = loaded.predict_table(frame_to_table(values))
    found = table.to_pylist()[0]
    for sentence in counts.sentences():
        print(plain(f"note: {sentence}"), file=sys.stderr)
    if as_json:
        print_json(found)
        return
    print(plain(f"{loaded.preprocessor.target.name}: {found['prediction']}"))
    for name, value in found.items():
        if name.startswith("probability_"):
            shown = "n/a" if value is None else f"{value:.4f}"
            print(plain(f"  {name.removeprefix('probability_')}: {shown}"))


def predict_table(
    loaded: Any,
    data: str,
    out: Path,
    *,
    engine: Literal["auto", "embedded", "ray"],
    address: str | None,
    as_json: bool,
) -> None:
    """Predict on a table and say what happened to its rows.

    Args:
        loaded: A `LoadedBundle`.
        data: As `data.source` of a spec.
        out: The file to write.
        engine: Which to use, as `engine` of a spec.
        address: A Ray cluster to join.
        as_json: Whether to print one JSON object as the last line.
    """
    from batchtrain.engines.session import RaySession
    from batchtrain.prediction.predict import predict_file

    console = Console(stderr=as_json)
    progress = ConsoleProgress(console, 1)
    with closing(progress), RaySession(address) as session:
        chosen = _chosen_engine(loaded, data, engine, session, progress)
        done = predict_file(loaded, data, out, base=Path.cwd(), progress=progress, engine=chosen)
    sentences = done.counts.sentences()
    if done.neutralised:
        sentences.append(
            f"{done.neutralised} cells that a spreadsheet would run were quoted with an apostrophe"
        )
    for sentence in sentences:
        print(plain(f"note: {sentence}"), file=sys.stderr)
    print(f"{done.counts.rows} predictions in {out}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        numbers = done.counts.to_json()
        print_json({"out": str(out), **numbers, "neutralised": done.neutralised})


def _chosen_engine(
    loaded: Any,
    data: str,
    asked: Literal["auto", "embedded", "ray"],
    session: Any,
    progress: Progress,
) -> Any:
    """The engine for a table; says which and why where nobody asked for one."""
    from batchtrain.engines.choice import choose_engine
    from batchtrain.engines.embedded import EmbeddedEngine
    from batchtrain.tables import open_source

    source = open_source(data, base=Path.cwd(), null_values=loaded.content["null_values"])
    size = sum(file.size for file in source.files)
    choice = choose_engine(asked, input_bytes=size, workers=1)
    if choice.name == "embedded":
        if session.is_attached and asked == "auto":
            progress.note(choice.why)
        return EmbeddedEngine()
    if asked == "auto":
        progress.note(choice.why)
    from batchtrain.engines.ray import RayEngine

    return RayEngine(session)


def _one_row(text: str) -> dict[str, list[Any]]:
    """One row as a table of one row."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"--row: expected a JSON object such as '{{\"Age\": 47}}', found {text!r} ({error}). "
            "Put single quotes around it for the shell"
        ) from error
    if not isinstance(values, dict) or not values:
        raise DataError(f"--row: expected a JSON object with the columns, found {text!r}")
    return {name: [value] for name, value in values.items()}
