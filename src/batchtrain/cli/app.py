"""The commands. Each imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from batchtrain.cli.job_commands import (
    ProfileFile,
    ProfileName,
    list_jobs,
    logs,
    status,
    stop,
    submit,
)
from batchtrain.cli.options import Address, AllowCode, AsJson, Overrides, SpecFile, TakeOver
from batchtrain.cli.outcome import command_outcome, plain, print_json
from batchtrain.spec.load import load_spec
from batchtrain.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train PyTorch models from tables: one spec file, from raw rows to a trusted model.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BundleFolder = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="The bundle's folder, or its s3:// address.")
]
CustomClass = Annotated[
    str | None,
    typer.Option("--model", metavar="PACKAGE.MODULE:CLASS", help="The class of a custom model."),
]


class EngineOption(StrEnum):
    """The engines, as `engine` of a spec."""

    AUTO = "auto"
    EMBEDDED = "embedded"
    RAY = "ray"


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="batchtrain")


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table, or sample:NAME.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    out: Annotated[
        Path | None, typer.Option(help="The spec to write; left out, it is named after DATA.")
    ] = None,
) -> None:
    """Write a starter spec from a table."""
    with command_outcome():
        from batchtrain.cli.starter import write_starter

        path, notes = write_starter(data, target, out)
        print(f"wrote {path}\nnext  batchtrain run {path}")
        for note in notes:
            print(plain(f"note  {note}"))


@app.command()
def check(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every value in force.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find everything that is wrong with a spec, then hold it against the data."""
    with command_outcome(as_json=as_json):
        from batchtrain.models.assets import read_assets
        from batchtrain.preparation.stage import opened_input, survey_input
        from batchtrain.preparation.suspicion import suspicions

        loaded = load_spec(spec, overrides or [])
        read_assets(loaded)
        if loaded.spec.search is not None:
            from batchtrain.tuning.corners import check_space

            check_space(loaded)
        with opened_input(loaded, allow_code or ()) as source:
            found = survey_input(loaded, source)
            notes = suspicions(found)
        rows = {split: found.rows(split) for split in ("train", "valid", "test")}
        if resolved or as_json:
            from batchtrain.cli.resolve import resolve

            document, text = resolve(loaded, found)
        if resolved and not as_json:
            print(text, end="")
        elif as_json:
            print_json({"spec": str(spec), "rows": rows, "resolved": document, "notes": notes})
        else:
            columns = len(found.data.columns)
            print(f"{spec}: ok; {found.data.task} of {found.data.target!r} from {columns} columns")
            print(", ".join(f"{count} {split}" for split, count in rows.items()) + " rows")
        for change in found.changes:
            line = f"{change.what}: {change.where} ({change.count} rows), {change.detail}"
            print(plain(line), file=sys.stderr)
        for note in notes:
            print(plain(f"note: {note}"), file=sys.stderr)


@app.command()
def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run: rows, steps, memory, time, and where; start nothing."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.plan import planned, show_plan

        loaded = load_spec(spec, overrides or [])
        more: list[tuple[str, str]] = []
        if profile is None and profiles is None:
            document = planned(loaded, allow_code or [])
        else:
            from batchtrain.cli.plan_elsewhere import elsewhere_lines, planned_elsewhere
            from batchtrain.submission.profiles import find_profile

            found = find_profile(profile, profiles, loaded.path.parent)
            document = planned_elsewhere(loaded, found, allow_code or [], os.environ)
            more = [*elsewhere_lines(document["elsewhere"])]
        if as_json:
            print_json(document)
        else:
            show_plan(document, Console(), more=more)


@app.command()
def run(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    take_over: TakeOver = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Prepare, train, evaluate and export; reuse what is published, resume what was cut."""
    _run(spec, overrides, allow_code, take_over, address=address, as_json=as_json, last="export")


@app.command()
def prepare(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Prepare the rows of a spec."""
    _run(spec, overrides, allow_code, address=address, as_json=as_json, last="prepare")


@app.command()
def train(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    take_over: TakeOver = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Train the model of a spec, after preparing its rows where that is not done yet."""
    _run(spec, overrides, allow_code, take_over, address=address, as_json=as_json, last="train")


@app.command()
def evaluate(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    take_over: TakeOver = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Measure the model of a spec and write its report, after training where needed."""
    _run(spec, overrides, allow_code, take_over, address=address, as_json=as_json, last="evaluate")


@app.command()
def export(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    take_over: TakeOver = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Export the bundle of an accepted model, after all that comes before."""
    _run(spec, overrides, allow_code, take_over, address=address, as_json=as_json, last="export")


@app.command()
def tune(
    spec: SpecFile,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Search for the best values; go on with a search that was cut, and run the best spec."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.running import tune_and_show

        loaded = load_spec(spec, overrides or [])
        tune_and_show(loaded, allow_code=allow_code or [], address=address, as_json=as_json)


@app.command()
def predict(
    bundle: BundleFolder,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="A table: file, glob or folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The .parquet or .csv file to write the predictions to.")
    ] = None,
    row: Annotated[
        str | None, typer.Option(metavar="JSON", help="One row instead, such as '{\"Age\": 47}'.")
    ] = None,
    engine: Annotated[
        EngineOption, typer.Option(help="What reads the table; auto: by its size.")
    ] = EngineOption.AUTO,
    address: Address = None,
    model: CustomClass = None,
    allow_code: AllowCode = None,
    as_json: AsJson = False,
) -> None:
    """Predict on a table, or on one row."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.predictions import asked_rows, predict_row, predict_table

        # A command that cannot be done is refused before torch is loaded for it.
        asked = asked_rows(data, out, row)
        from batchtrain.prediction.loaded import load_bundle

        loaded = load_bundle(bundle, model=model, allow_code=allow_code or [])
        if isinstance(asked, dict):
            predict_row(loaded, asked, as_json=as_json)
        else:
            predict_table(loaded, *asked, engine=engine.value, address=address, as_json=as_json)


@app.command()
def verify(
    bundle: BundleFolder,
    model: CustomClass = None,
    allow_code: AllowCode = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle: every file's hash, then the outputs for its golden rows."""
    with command_outcome(as_json=as_json):
        from batchtrain.artifacts.bundle import ModelBundle
        from batchtrain.export.verify import verify as verify_bundle
        from batchtrain.scoring import CustomCode

        code = CustomCode(model, allow_code or [], Path.cwd())
        found = verify_bundle(ModelBundle.open(bundle), code)
        how = "exactly" if found.exact else f"within {found.largest_difference:.1e}"
        print(f"ok: {found.files} files have their hashes, {found.rows} golden rows agree {how}")
        if as_json:
            print_json({"files": found.files, "rows": found.rows, "exact": found.exact})


@app.command("gc")
def collect_garbage(
    place: Annotated[
        str, typer.Argument(metavar="STORAGE", help="A folder, an address, or a spec file.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    older_than: Annotated[
        float, typer.Option(metavar="HOURS", help="Leave younger files: a run may write them.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Delete what was written and never published, such as files of killed runs."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.collect import collect, show_collected

        document = collect(place, dry_run=dry_run, older_than_hours=older_than)
        if as_json:
            print_json(document)
        else:
            show_collected(document)


@app.command()
def schema() -> None:
    """Print the JSON schema of a spec, for editors."""
    from batchtrain.spec.schema import schema_text

    print(schema_text(), end="")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"batchtrain {__version__}")
        raise typer.Exit


app.command()(submit)
app.command("list")(list_jobs)
app.command()(status)
app.command()(logs)
app.command()(stop)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Train PyTorch models from tables: one spec file, from raw rows to a trusted model."""


def _run(
    spec: Path,
    overrides: list[str] | None,
    allow_code: list[str] | None = None,
    take_over: bool = False,
    *,
    address: str | None,
    as_json: bool,
    last: Any,
) -> None:
    """Run the stages up to `last` and say where the results are."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.running import run_and_show

        loaded = load_spec(spec, overrides or [])
        run_and_show(
            loaded,
            last=last,
            allow_code=allow_code or [],
            take_over=take_over,
            address=address,
            as_json=as_json,
        )
