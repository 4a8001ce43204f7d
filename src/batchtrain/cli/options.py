"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Address", "AllowCode", "AsJson", "Overrides", "SpecFile", "TakeOver"]

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for one key; may be repeated."),
]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(metavar="PACKAGE", help="A package of yours whose code may run."),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Go on with a run although another process seems to be writing it."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster to join; auto: the one on this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
