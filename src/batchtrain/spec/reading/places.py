"""Where the keys and values of a spec were written, and what is wrong there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from batchtrain.errors import Problem
from batchtrain.spec.reading.shown import shown_key

__all__ = ["Fault", "Place", "Places", "join_key", "parents", "problems_of"]


@dataclass(frozen=True, order=True)
class Place:
    """A position in the file, or an override; places sort as they are read.

    Attributes:
        line: From 1; 0 is the file as a whole; overrides come after every line.
        column: From 1.
        text: The place as a message gives it: `file:line:column`, or the `--set` argument.
    """

    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Fault:
    """A problem whose place is still known as numbers.

    Attributes:
        covers: The value at `key` was refused, so nothing else can be said about it.
    """

    place: Place
    key: str
    message: str
    hint: str = ""
    covers: bool = True


@dataclass(frozen=True)
class Places:
    """The place of every key and of every value, by dotted key; list items count from 0."""

    root: Place
    keys: Mapping[str, Place]
    values: Mapping[str, Place]

    def of_key(self, key: str) -> Place:
        """The place of a key, or of the deepest section above it that was written."""
        for known in (key, *parents(key)):
            if known in self.keys:
                return self.keys[known]
        return self.root

    def of_value(self, key: str) -> Place:
        """The place of a key's value, or of the deepest section above it."""
        return self.values.get(key) or self.of_key(key)


def join_key(section: str, name: str | int) -> str:
    """Append a name to a dotted key; the document itself is the empty key."""
    return f"{section}.{name}" if section else str(name)


def parents(key: str) -> Iterable[str]:
    """Every section above a key, the nearest first, without the document itself."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def problems_of(faults: Iterable[Fault]) -> list[Problem]:
    """Sort faults as the spec is read, and make them fit to be printed."""
    in_order = sorted(faults, key=lambda fault: fault.place)
    problems = [
        Problem(fault.place.text, shown_key(fault.key), fault.message, fault.hint)
        for fault in in_order
    ]
    return list(dict.fromkeys(problems))
