"""Keys and values that the design has and this version has not: refused with a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchtrain.spec.reading.places import Fault, Places, join_key
from batchtrain.spec.reading.shown import shown

__all__ = ["PLANNED", "Planned", "planned_faults"]


@dataclass(frozen=True)
class Planned:
    """One thing to come.

    Attributes:
        key: Its dotted key; `*` is every item of a list.
        instead: What to do until then, as a sentence; empty where removing it is all.
        values: The values to come; None where it is the key itself.
        starts: Beginnings of text to come, such as the schemes of addresses.
    """

    key: str
    instead: str = ""
    values: tuple[str, ...] | range | None = None
    starts: tuple[str, ...] = ()

    def part_of(self, value: Any) -> str | None:
        """The part of a value that is to come, as a message names it; None where none is."""
        if isinstance(value, str):
            text = value.lower()
            for part in self.starts:
                if text.startswith(part):
                    return part
        # A range would look for text among its numbers one by one.
        is_number_of = isinstance(self.values, range) and isinstance(value, int)
        is_text_of = isinstance(self.values, tuple) and isinstance(value, str)
        if self.values is not None and (is_number_of or is_text_of) and value in self.values:
            return shown(value)
        is_key_itself = self.values is None and not self.starts
        return "this key" if is_key_itself else None


COPY_FIRST = "Copy the data to a local folder and name that"

PLANNED = (
    Planned("data.source", COPY_FIRST, starts=("s3://", "gs://")),
    Planned("data.split.train", COPY_FIRST, starts=("s3://", "gs://")),
    Planned("data.split.valid", COPY_FIRST, starts=("s3://", "gs://")),
    Planned("data.split.test", COPY_FIRST, starts=("s3://", "gs://")),
    Planned("export.formats.*", "Use safetensors", values=("onnx",)),
    Planned("resources.gpus_per_worker", "Use auto, 0 or 1", values=range(2, 2**31)),
    Planned("tracking.wandb", "Use `tracking.tensorboard` or `tracking.mlflow`"),
)


def planned_faults(document: Any, places: Places) -> list[Fault]:
    """Find everything in a document that is in the design but not built yet."""
    return [
        _fault(planned, key, part, places)
        for planned in PLANNED
        for key, value in _values_at(document, planned.key.split("."))
        if (part := planned.part_of(value)) is not None
    ]


def _fault(planned: Planned, key: str, part: str, places: Places) -> Fault:
    is_key = part == "this key"
    place = places.of_key(key) if is_key else places.of_value(key)
    message = f"{part} is part of the design but not built yet in this version"
    hint = planned.instead if not is_key else f"Remove it. {planned.instead}".strip(". ")
    return Fault(place, key, message, hint)


def _values_at(value: Any, names: list[str], key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and value of everything that a dotted key with `*` stands for."""
    if not names:
        yield key, value
    elif isinstance(value, list) and names[0] == "*":
        for number, item in enumerate(value):
            yield from _values_at(item, names[1:], join_key(key, number))
    elif isinstance(value, dict) and names[0] in value:
        yield from _values_at(value[names[0]], names[1:], join_key(key, names[0]))
