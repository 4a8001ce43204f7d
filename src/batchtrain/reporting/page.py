"""What all pages share: templates in which no text can become anything but text."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from batchtrain.reporting import wording

__all__ = ["stylesheet", "template"]


def template(name: str) -> Template:
    """A template of this package; what is put into it is escaped, made visible, and never None."""
    return _environment().get_template(name)


def stylesheet() -> Markup:
    """The style of all pages."""
    return Markup(_resource("report.css"))  # noqa: S704  # our own file


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=wording.count,
        duration=wording.duration,
        lines=_lines,
        measure=wording.measure,
        number=wording.number,
    )
    return environment


@lru_cache
def _resource(name: str) -> str:
    return files("batchtrain.reporting").joinpath(name).read_text(encoding="utf-8")


def _finalize(value: Any) -> Any:
    """Make every string that enters the page visible; what is missing must be put into words."""
    if value is None:
        raise TypeError("the template printed None; say why there is no value")
    # Markup is a plot or a stylesheet of ours, or text that a filter has made visible.
    return wording.visible(value) if type(value) is str else value


def _lines(text: str) -> Markup:
    """A text of several lines; only its line breaks stay as they are."""
    visible = "\n".join(wording.visible(line) for line in text.replace("\r\n", "\n").split("\n"))
    return escape(visible)
