"""The JSON Schema of a spec, for editors; the spec reader takes its own sentences from it too."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from batchtrain.spec.evaluation import CLASSIFICATION_METRICS, REGRESSION_METRICS
from batchtrain.spec.run import RunSpec

__all__ = ["json_schema", "schema_text"]


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema of a whole spec, in JSON Schema 2020-12.

    What holds between keys is not in it: a spec that fits may still be refused by `load_spec`.
    """
    schema = RunSpec.model_json_schema(schema_generator=_Untitled)
    # pydantic leaves out what the keys of a dict may be.
    require = schema["$defs"]["EvaluationSpec"]["properties"]["require"]
    require["propertyNames"] = {"enum": [*CLASSIFICATION_METRICS, *REGRESSION_METRICS]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "batchtrain spec"}


def schema_text() -> str:
    """The schema as the file that editors read."""
    return json.dumps(json_schema(), indent=2) + "\n"
