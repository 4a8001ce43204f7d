"""A checked spec back as the document that it was read from, without the defaults."""

from __future__ import annotations

from typing import Any

from batchtrain.spec.data import FilesSplit
from batchtrain.spec.reading.places import Places, join_key
from batchtrain.spec.run import RunSpec

__all__ = ["in_written_order", "written_document"]


def written_document(spec: RunSpec) -> dict[str, Any]:
    """A spec as plain values: what was written, and no `search`; the order is that of the schema.

    Validating it gives the same spec again, `search` aside.
    """
    document = spec.model_dump(mode="json", exclude_unset=True, exclude={"search"})
    if isinstance(spec.data.split, FilesSplit):
        # It may have been left out, and is what `data.split.train` names.
        document["data"].pop("source", None)
    return document


def in_written_order(document: dict[str, Any], places: Places) -> dict[str, Any]:
    """Order the keys of all sections by their lines; what has none comes last."""
    ordered: dict[str, Any] = _ordered(document, places, "")
    return ordered


def _ordered(value: Any, places: Places, key: str) -> Any:
    if not isinstance(value, dict):
        return value
    end = max(places.keys.values(), default=places.root)
    names = sorted(value, key=lambda name: places.keys.get(join_key(key, name), end))
    return {name: _ordered(value[name], places, join_key(key, name)) for name in names}
