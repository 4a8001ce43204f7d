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

__all__ = ["with_overrides"]

FORM = "Write --set training.epochs=20, with the dotted key as `batchtrain check --resolved` has it"
AFTER_ALL_LINES = 2**62


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
            made = _put(value, key, found.value, outline)
        except _BadOverrideError as error:
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


class _BadOverrideError(Exception):
    """An override that cannot be put anywhere: what is wrong, and what to do."""


def _parse(override: str, place: Place) -> tuple[str, Document]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise _BadOverrideError("expected KEY=VALUE", FORM)
    return key, read_value(text.strip(), place)


def _put(document: dict[str, Any], key: str, value: Any, outline: Outline) -> list[str]:
    """Set one key, in place, and name the sections that had to be made."""
    *sections, last = key.split(".")
    made = []
    target, path = document, ""
    for name in sections:
        path = join_key(path, name)
        if target.get(name) is None:
            target[name] = outline.default_kind(path)
            made.append(path)
        target = target[name]
        if not isinstance(target, dict):
            raise _BadOverrideError(
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
