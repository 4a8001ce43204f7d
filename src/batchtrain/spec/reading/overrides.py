"""The `--set key=value` of the command line, put into a document before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from batchtrain.errors import SpecError
from batchtrain.spec.reading.outline import Outline
from batchtrain.spec.reading.places import Fault, Place, Places, join_key
from batchtrain.spec.reading.shown import shown, shown_key
from batchtrain.spec.reading.yaml_reader import Document, read_value

__all__ = ["AFTER_ALL_LINES", "BadOverrideError", "put", "with_overrides"]

FORM = "Write --set training.epochs=20, with the dotted key as `batchtrain check --resolved` has it"
AFTER_ALL_LINES = 2**62
ONE_NAME = "search.space."
"""What follows is one name, with the dots in it: a key of the spec that a search tries."""


def with_overrides(document: Document, overrides: Sequence[str], outline: Outline) -> Document:
    """Set keys of a document as if its file said so; of two for one key the last one holds.

    A section that is not there is made, with the `kind` that it has by default. What cannot be
    set becomes a fault of the document that comes back; the one given stays as it is.
    """
    value = copy.deepcopy(document.value)
    keys, values = dict(document.places.keys), dict(document.places.values)
    faults = list(document.faults)
    for number, override in enumerate(overrides):
        place = Place(AFTER_ALL_LINES + number, 0, f"--set {shown_key(override)}")
        try:
            key, found = _parse(override, place)
            made = put(value, _names(key), found.value, outline)
        except BadOverrideError as error:
            faults.append(Fault(place, "", error.args[0], error.args[1]))
            continue
        except SpecError as error:
            faults += [Fault(place, "", each.message, each.hint) for each in error.problems]
            continue
        _forget(key, keys, values)
        faults = [fault for fault in faults if not _is_replaced(fault, key)]
        for name in (*made, key):
            keys[name] = values[name] = place
        faults += [
            Fault(place, join_key(key, fault.key) if fault.key else key, fault.message, fault.hint)
            for fault in found.faults
        ]
    return Document(value, Places(document.places.root, keys, values), tuple(faults))


class BadOverrideError(Exception):
    """A value that cannot be put anywhere: what is wrong, and what to do."""


def _parse(override: str, place: Place) -> tuple[str, Document]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise BadOverrideError("expected KEY=VALUE", FORM)
    return key, read_value(text.strip(), place)


def _names(key: str) -> list[str]:
    if key.startswith(ONE_NAME):
        return [*ONE_NAME.rstrip(".").split("."), key.removeprefix(ONE_NAME)]
    return key.split(".")


def put(document: dict[str, Any], names: Sequence[str], value: Any, outline: Outline) -> list[str]:
    """Set one key, in place, and name the sections that had to be made.

    Args:
        document: A spec as plain values.
        names: Those of the sections on the way, and of the key.
        value: What it becomes.
        outline: Says of what `kind` a section is that has to be made.

    Raises:
        BadOverrideError: If something on the way is no section: what is wrong, and what to do.
    """
    *sections, last = names
    made = []
    target, path = document, ""
    for name in sections:
        path = join_key(path, name)
        if target.get(name) is None:
            target[name] = outline.default_kind(path)
            made.append(path)
        target = target[name]
        if not isinstance(target, dict):
            raise BadOverrideError(
                f"`{shown_key(path)}` is not a section, but {shown(target)}",
                "Set the whole of it, with a value such as [1, 2]",
            )
    target[last] = value
    return made


def _forget(key: str, *places: dict[str, Place]) -> None:
    for known in places:
        for name in [name for name in known if name == key or name.startswith(f"{key}.")]:
            del known[name]


def _is_replaced(fault: Fault, key: str) -> bool:
    """Whether a fault was about a value that is no longer there."""
    return fault.covers and (fault.key == key or fault.key.startswith(f"{key}."))
