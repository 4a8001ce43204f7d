"""`python -m batchtrain.testing.chaos SPEC --seed S --points N`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from batchtrain.cli.outcome import command_outcome
from batchtrain.errors import TrainingError
from batchtrain.testing.killing import Chaos, ChaosReport, run_chaos
from batchtrain.testing.trials import Trial

__all__ = ["main"]

Storage = Annotated[
    str | None,
    typer.Option(help="A folder or an address to write below; left out, a temporary folder."),
]


def main() -> None:
    """Run the command line and exit."""
    typer.run(chaos)


def chaos(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The spec file.")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal kills.")] = 0,
    points: Annotated[int, typer.Option(help="How many runs to kill.", min=1)] = 40,
    ranks: Annotated[
        str, typer.Option(metavar="W[,W...]", help="Numbers of ranks, which take turns.")
    ] = "1",
    storage: Storage = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in `run`.")
    ] = None,
    allow_code: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE", help="As in `run`.")
    ] = None,
) -> None:
    """Kill runs of a spec at seeded points, resume them, and compare with an undisturbed run."""
    # Each rank has one thread of kernels anyway; without it their start would take longer.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console()
    with (
        command_outcome(),
        tempfile.TemporaryDirectory(prefix="batchtrain-chaos-") as temporary,
        _bar(console) as bar,
    ):
        task = bar.add_task("undisturbed runs first", total=points)

        def heard(trial: Trial, verdict: str) -> None:
            bar.console.print(f"{trial}: {verdict or 'the same bytes'}", soft_wrap=True)
            bar.update(task, advance=1, description="runs killed")

        what = Chaos(
            spec.resolve(), storage or temporary, tuple(overrides or ()), tuple(allow_code or ())
        )
        sizes = _sizes(ranks)
        report = run_chaos(what, seed=seed, points=points, ranks=sizes, heard=heard)
        bar.stop()
        console.print(_table(report))
        _check(report)
        console.print(
            f"{report.trials} runs killed {report.kills} times ended with the bytes of the "
            "undisturbed ones"
        )


def _sizes(text: str) -> list[int]:
    """The numbers of ranks in `1,3`."""
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise typer.BadParameter(f"expected numbers from 1 on with commas, found {text!r}")
    return sizes


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _table(report: ChaosReport) -> Table:
    """Each point, how often an undisturbed run passes it, and how often it was the end."""
    table = Table("point", "passed", "killed")
    for point in sorted(report.seen):
        hits = report.hit[point]
        table.add_row(point, str(report.seen[point]), str(hits), style="" if hits else "bold red")
    return table


def _check(report: ChaosReport) -> None:
    """Raise `TrainingError` unless every run was the same and every point was hit."""
    if report.different:
        raise TrainingError(
            "expected the bytes of the undisturbed run after every kill, found others:\n"
            + "\n".join(report.different)
        )
    if report.never_hit:
        raise TrainingError(
            f"expected a kill at every point, found none at {', '.join(report.never_hit)}. "
            "Raise --points"
        )


if __name__ == "__main__":
    main()
