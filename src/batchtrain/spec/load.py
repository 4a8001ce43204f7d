"""The spec reader: a file and overrides in, a checked spec out, or every problem at once."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batchtrain.errors import SpecError
from batchtrain.spec.data import with_source
from batchtrain.spec.reading.files import read_text
from batchtrain.spec.reading.locations import location_faults
from batchtrain.spec.reading.outline import Outline
from batchtrain.spec.reading.overrides import (
    AFTER_ALL_LINES,
    BadOverrideError,
    put,
    with_overrides,
)
from batchtrain.spec.reading.places import Fault, Place, Places, join_key, parents, problems_of
from batchtrain.spec.reading.planned import planned_faults
from batchtrain.spec.reading.problems import faults_of
from batchtrain.spec.reading.search_keys import SPACE, search_key_faults
from batchtrain.spec.reading.yaml_reader import Document, read_yaml
from batchtrain.spec.run import RunSpec
from batchtrain.spec.schema import json_schema
from batchtrain.spec.written import written_document

__all__ = ["LoadedSpec", "load_spec", "parse_spec", "with_replaced", "with_values"]

LITERAL_NUMBERS = (("version",),)


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that was checked, and where each of its keys was written.

    Attributes:
        spec: The spec; defaults are filled in.
        path: The absolute path of its file, from whose folder its relative paths count.
    """

    spec: RunSpec
    path: Path
    places: Places = field(repr=False)

    def where(self, key: str) -> str:
        """Say where a dotted key was written.

        Returns:
            `file:line:column` of the key or of the deepest section above it that was written,
            `--set KEY=VALUE` where an override gave it, or the file where all is default.
        """
        return self.places.of_key(key).text


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Read and check a spec file, YAML or JSON.

    Args:
        path: The file; messages name it as it is given here.
        overrides: `key=value` each, such as `training.optimizer.lr=1e-3`.

    Raises:
        SpecError: With every problem of file and overrides, in the order of their lines.
    """
    return parse_spec(read_text(Path(path), str(path)), str(path), overrides)


def parse_spec(text: str, file: str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Check the text of a spec file, as `load_spec`; nothing is read from disk.

    Args:
        text: What the file holds.
        file: Its name, which need not exist.
        overrides: `key=value` each.

    Raises:
        SpecError: With every problem of text and overrides, in the order of their lines.
    """
    outline = _outline()
    document = with_overrides(read_yaml(text, file), overrides, outline)
    spec, faults = _checked(document, outline)
    if spec is None or faults:
        raise SpecError(problems_of(faults))
    return LoadedSpec(spec, Path(file).absolute(), document.places)


def with_values(loaded: LoadedSpec, values: Mapping[str, Any]) -> LoadedSpec:
    """The spec of a trial: as it was written, with other values for some keys, and no `search`.

    Values are set in their order, as overrides would, so that a section may come before a key in
    it. The places of what was set are those of `search.space`.

    Args:
        loaded: A spec; it stays as it is.
        values: Dotted key to a value as JSON has it.

    Raises:
        SpecError: If the values do not go with the spec. What is wrong with a value is at its key
            below `search.space`.
    """
    outline = _outline()
    document = written_document(loaded.spec)
    keys, places = dict(loaded.places.keys), dict(loaded.places.values)
    for key, value in values.items():
        place = loaded.places.of_key(join_key(SPACE, key))
        try:
            made = put(document, key.split("."), copy.deepcopy(value), outline)
        except BadOverrideError as error:
            raise SpecError(
                problems_of([Fault(place, join_key(SPACE, key), error.args[0], error.args[1])])
            ) from None
        _place_at(place, key, made, keys, places)
    tried = Document(document, Places(loaded.places.root, keys, places), ())
    spec, faults = _checked(tried, outline)
    if spec is None or faults:
        raise SpecError(problems_of(_of_trial(fault, values) for fault in faults))
    return LoadedSpec(spec, loaded.path, tried.places)


def with_replaced(loaded: LoadedSpec, values: Mapping[str, Any], source: str) -> LoadedSpec:
    """The same spec, `search` included, with other values for some keys.

    What `--set` gave stays: it is the last word of whoever runs the command.

    Args:
        loaded: A spec; it stays as it is.
        values: Dotted key to a value as JSON has it.
        source: Where the values come from, as messages name it.

    Raises:
        SpecError: If the values do not go with the spec.
    """
    outline = _outline()
    document = written_document(loaded.spec)
    if loaded.spec.search is not None:
        document["search"] = loaded.spec.search.model_dump(mode="json", exclude_unset=True)
    keys, places = dict(loaded.places.keys), dict(loaded.places.values)
    place = Place(AFTER_ALL_LINES - 1, 0, source)
    for key, value in values.items():
        if any(_is_set_by(keys.get(each), each) for each in (key, *parents(key))):
            continue
        made = put(document, key.split("."), copy.deepcopy(value), outline)
        _place_at(place, key, made, keys, places)
    changed = Document(document, Places(loaded.places.root, keys, places), ())
    spec, faults = _checked(changed, outline)
    if spec is None or faults:
        raise SpecError(problems_of(faults))
    return LoadedSpec(spec, loaded.path, changed.places)


def _is_set_by(place: Place | None, key: str) -> bool:
    """Whether an override set this very key, and not one below it."""
    return place is not None and bool(re.match(rf"--set\s+{re.escape(key)}\s*=", place.text))


def _place_at(place: Place, key: str, made: Sequence[str], *known: dict[str, Place]) -> None:
    """Say that a key, and the sections made for it, were written at a place."""
    for places in known:
        for name in [each for each in places if each.startswith(f"{key}.")]:
            del places[name]
        places.update(dict.fromkeys((*made, key), place))


def _of_trial(fault: Fault, values: Mapping[str, Any]) -> Fault:
    """A fault of a value under the key that the user wrote."""
    of = [key for key in values if fault.key == key or fault.key.startswith(f"{key}.")]
    return replace(fault, key=join_key(SPACE, of[-1])) if of else fault


def _checked(document: Document, outline: Outline) -> tuple[RunSpec | None, list[Fault]]:
    """Everything that is wrong with a document; the spec where it could be made."""
    spec, errors = _validate(document)
    planned = planned_faults(document.value, document.places)
    faults = [
        *document.faults,
        *planned,
        *search_key_faults(document.value, document.places, outline),
        *location_faults(document.value, document.places, planned={each.key for each in planned}),
    ]
    faults += faults_of(errors, document, outline, known=faults)
    return spec, faults


@cache
def _outline() -> Outline:
    """The keys of a spec; making it takes a tenth of a second."""
    return Outline(json_schema())


def _validate(document: Document) -> tuple[RunSpec | None, list[Any]]:
    # The JSON mode of pydantic is the one in which strict still takes a list for a tuple.
    text = json.dumps(with_source(document.value), allow_nan=False)
    spec: RunSpec | None = None
    errors: list[Any] = []
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        # Without the inputs, which may hold a secret.
        errors += error.errors(include_url=False, include_input=False, include_context=False)
    return spec, [*errors, *_lookalikes(document.value)]


def _lookalikes(document: Any) -> list[dict[str, Any]]:
    """Give errors for true and 1.0 where pydantic lets them pass as the literal 1."""
    errors = []
    for loc in LITERAL_NUMBERS:
        value = document
        for name in loc:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, bool | float):
            errors.append({"type": "literal_error", "loc": loc})
    return errors
