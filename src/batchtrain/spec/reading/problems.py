"""pydantic's errors as faults in plain words: one for each key, at the line where it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.spec.reading.outline import KeyPath, Outline
from batchtrain.spec.reading.places import Fault, Places, join_key, parents
from batchtrain.spec.reading.shown import either, redacted, shown
from batchtrain.spec.reading.wording import advice, expected, types_of
from batchtrain.spec.reading.yaml_reader import Document
from batchtrain.spec.suggest import did_you_mean

__all__ = ["faults_of"]

MAX_LISTED = 3
NOT_TEXT = {"boolean", "integer", "number"}
WRONG_TAG = {"union_tag_invalid", "union_tag_not_found"}

# A validator joins what it finds; each of its sentences opens with a key.
BETWEEN_SENTENCES = re.compile(r"; (?=`|metrics that )")
QUOTED_KEY = re.compile(r"`([A-Za-z0-9_.-]+)")


def faults_of(
    errors: Sequence[Mapping[str, Any]],
    document: Document,
    outline: Outline,
    *,
    known: Sequence[Fault] = (),
) -> list[Fault]:
    """Say what pydantic found.

    The sentence comes from the schema of the key, so that a key with several types gets one
    sentence, not one for each type.

    Args:
        errors: As `ValidationError.errors()` gives them.
        document: What was validated.
        outline: The schema that the errors are about.
        known: Faults found before; what they explain is not said again.
    """
    faults: dict[tuple[str, str], Fault] = {}
    traced = [(error, outline.trace(error["loc"], document.value)) for error in errors]
    covered = {fault.key for fault in known if fault.covers}
    # Where errors lie deeper, the value was meant for another branch of a union, and pydantic
    # counts only those items of a list that are right.
    deeper = {
        union
        for error, path in traced
        for union in path.unions
        if path.key != union or error["type"] in WRONG_TAG
    }
    parted = {section for _, path in traced for section in parents(path.key)}
    for error, path in traced:
        is_other_branch = path.key in deeper and error["type"] not in WRONG_TAG
        is_echo = is_other_branch or (error["type"] == "too_short" and path.key in parted)
        if is_echo or _may_be_caused(error, path, document.faults):
            continue
        for fault in _faults_of_error(error, path, document, outline):
            if covered.isdisjoint((fault.key, *parents(fault.key))):
                faults.setdefault((fault.key, fault.message), fault)
    return list(faults.values())


def _may_be_caused(error: Mapping[str, Any], path: KeyPath, refused: Sequence[Fault]) -> bool:
    """Whether keys may disagree only since the value of one of them could not be read."""
    if error["type"] != "value_error":
        return False
    below = f"{path.key}." if path.key else ""
    return any(fault.covers and fault.key.startswith(below) for fault in refused)


def _faults_of_error(
    error: Mapping[str, Any], path: KeyPath, document: Document, outline: Outline
) -> list[Fault]:
    places = document.places
    match error["type"]:
        case "extra_forbidden":
            return [_unknown(path, places, outline)]
        case "missing" if not isinstance(error["loc"][-1], int):
            return [_missing(path.key, expected(outline, path.declared), places)]
        case "missing":  # of a list with a fixed length
            return [_wrong_value(outline.trace(error["loc"][:-1], document.value), places, outline)]
        case "union_tag_not_found":
            kinds = either(list(outline.kinds(outline.branches(path.node)[0])))
            return [_missing(join_key(path.key, "kind"), kinds, places)]
        case "union_tag_invalid":
            return [_wrong_kind(path, places, outline)]
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return _disagreements(path.key, message, places)
    return [_wrong_value(path, places, outline)]


def _missing(key: str, what: str, places: Places) -> Fault:
    name = key.rpartition(".")[2]
    message = f"the key {name!r} is missing; expected {what}"
    hint = f"Add `{name}: {what}`" if what.isdigit() else f"Add `{name}:` here"
    return Fault(places.of_key(key), key, message, hint)


def _wrong_value(path: KeyPath, places: Places, outline: Outline) -> Fault:
    if path.is_name:
        choices = path.section["propertyNames"]["enum"]
        name = path.name
        message = f"expected one of {either(choices)}, found {shown(name)}"
        close = did_you_mean(name, choices)
        hint = f"Did you mean {close!r}?" if close else ""
        return Fault(places.of_key(path.key), path.key, message, hint)
    wanted, found = expected(outline, path.declared), shown(path.value)
    if isinstance(path.value, str) and types_of(outline, path.declared) & NOT_TEXT:
        found += " (text)"
    hint = advice(outline, path.declared, path.value)
    message = f"expected {wanted}, found {found}"
    return Fault(places.of_value(path.key), path.key, message, hint)


def _wrong_kind(path: KeyPath, places: Places, outline: Outline) -> Fault:
    kinds = list(outline.kinds(outline.branches(path.node)[0]))
    key, found = join_key(path.key, "kind"), path.value.get("kind")
    close = did_you_mean(found, kinds) if isinstance(found, str) else None
    hint = f"Did you mean {close!r}?" if close else ""
    message = f"expected {'one of ' if len(kinds) > 2 else ''}{either(kinds)}, found {shown(found)}"
    return Fault(places.of_value(key), key, message, hint)


def _disagreements(section: str, message: str, places: Places) -> list[Fault]:
    """Faults between keys; each points at the first key that its sentence names."""
    faults = []
    for sentence in BETWEEN_SENTENCES.split(message):
        named = QUOTED_KEY.search(sentence)
        candidates = [join_key(section, named[1]), named[1]] if named else []
        key = next((each for each in candidates if each in places.keys), section)
        faults.append(Fault(places.of_key(key), key, redacted(sentence)))
    return faults


def _unknown(path: KeyPath, places: Places, outline: Outline) -> Fault:
    message = f"there is no key {shown(path.name)} here"
    siblings = ", ".join(path.section.get("properties", {}))
    hint = _where_it_belongs(path, outline) or f"The keys here are {siblings}"
    return Fault(places.of_key(path.key), path.key, message, hint)


def _where_it_belongs(path: KeyPath, outline: Outline) -> str:
    """A key of this section, or of another, that was probably meant."""
    name = path.name
    siblings = list(path.section.get("properties", {}))
    section = path.key.removesuffix(name).removesuffix(".")
    same_word = next((each for each in siblings if each.lower() == name.lower()), None)
    if same_word:
        return f"Did you mean `{join_key(section, same_word)}`?"
    index = [each for each in outline.places_of_keys() if each[0] != "kind"]
    exact = [each for each in index if each[0] == name.lower()]
    other_kinds = [kind for _, pattern, kind in exact if pattern == path.pattern and kind]
    if other_kinds:
        kind = path.section["properties"]["kind"]["const"]
        return f"It belongs to the kind {either(other_kinds)}, not to {kind}"
    if exact:
        return _elsewhere([pattern for _, pattern, _ in exact])
    close = did_you_mean(name, siblings)
    if close:
        return f"Did you mean `{join_key(section, close)}`?"
    close = did_you_mean(name, [each[0] for each in index])
    return _elsewhere([pattern for word, pattern, _ in index if word == close]) if close else ""


def _elsewhere(patterns: Sequence[str]) -> str:
    unique = list(dict.fromkeys(patterns))
    meant = either([f"`{pattern}`" for pattern in unique[:MAX_LISTED]])
    if len(unique) > 1 or "." not in unique[0]:
        return f"Did you mean {meant}?"
    section = unique[0].rpartition(".")[0]
    return f"It belongs under `{section}`: did you mean {meant}?"
