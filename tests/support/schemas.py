"""The schemas that others publish, kept in `tests/schemas` with their source and version.

`python -m tests.support.schemas CRD.yaml SOURCE` makes one of a CustomResourceDefinition: the part
that validates, without the descriptions, as JSON, which is read a hundred times as fast.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

__all__ = ["SCHEMAS", "compact_crd", "faults", "kuberay_faults", "strict"]

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"


def faults(schema: Any, document: Any) -> list[str]:
    """What a JSON schema finds wrong, as `place: sentence`."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    found = sorted(validator(schema).iter_errors(document), key=lambda each: str(each.path))
    return [f"{'/'.join(map(str, each.path))}: {each.message[:200]}" for each in found]


def kuberay_faults(document: Any) -> list[str]:
    """What KubeRay's definition of this kind finds wrong, keys that it does not know included."""
    return faults(_kuberay_schema(document["kind"]), document)


@cache
def _kuberay_schema(kind: str) -> Any:
    path = SCHEMAS / f"{kind.lower()}.json"
    return strict(json.loads(path.read_text(encoding="utf-8"))["schema"])


def strict(schema: Any) -> Any:
    """The same schema of Kubernetes, which also refuses the keys that the server would drop."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _strict_value(key, value) for key, value in schema.items()}
    is_closed = "properties" in copy and "additionalProperties" not in copy
    if is_closed and not copy.get("x-kubernetes-preserve-unknown-fields"):
        copy["additionalProperties"] = False
    return copy


def _strict_value(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: strict(each) for name, each in value.items()}
    # A default, an enum or an example is no schema.
    nested = {"items", "additionalProperties", "anyOf", "allOf", "oneOf"}
    return strict(value) if key in nested else value


def compact_crd(text: str, source: str) -> dict[str, Any]:
    """The schema of version v1 of a CustomResourceDefinition."""
    document = yaml.safe_load(text)
    (version,) = [each for each in document["spec"]["versions"] if each["name"] == "v1"]
    return {
        "source": source,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "kind": document["spec"]["names"]["kind"],
        "schema": _without_descriptions(version["schema"]["openAPIV3Schema"]),
    }


def _without_descriptions(schema: Any) -> Any:
    """A description is a text; a property of that name is a schema."""
    if isinstance(schema, list):
        return [_without_descriptions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


if __name__ == "__main__":
    made = compact_crd(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2])
    target = SCHEMAS / f"{made['kind'].lower()}.json"
    target.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(target)  # noqa: T201
