"""The entry points in `jobs/`: a command whose arguments have names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo

__all__ = ["main_of_job"]


def main_of_job(command: Callable[..., None]) -> None:
    """Run a command of `batchtrain.cli.app` as a script of its own, and exit with its code.

    What the command takes by place the script takes by name: `--spec FILE` for SPEC.
    """
    script = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    script.command()(_with_names(command))
    script()


def _with_names(command: Callable[..., None]) -> Callable[..., None]:
    """The same function, with an option in place of each argument."""

    def named(**values: Any) -> None:
        command(**values)

    hints = get_type_hints(command, include_extras=True)
    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_option(hints[each.name]))
        for each in inspect.signature(command).parameters.values()
    ]
    named.__doc__ = command.__doc__
    named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by Typer
    named.__annotations__ = {each.name: each.annotation for each in parameters}
    return named


def _option(hint: Any) -> Any:
    """An annotation with an option where it had an argument."""
    kind, *extras = get_args(hint)
    changed = [
        typer.Option(metavar=each.metavar, help=each.help)
        if isinstance(each, ArgumentInfo)
        else each
        for each in extras
    ]
    return Annotated[(kind, *changed)]
