"""The spec with every open value filled in, as it is printed and kept beside what it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from batchtrain.spec.data import FilesSplit
from batchtrain.spec.reading.scalars import scalar_of
from batchtrain.spec.run import RunSpec
from batchtrain.spec.task import target_scale_in_force

__all__ = ["document_yaml", "resolved_document", "spec_yaml"]


def resolved_document(
    spec: RunSpec,
    *,
    data: Mapping[str, Any],
    batch_rows: int,
    loss: str,
    metrics: Sequence[str],
    device: str,
    workers: int,
) -> dict[str, Any]:
    """Put the values in force in the place of every `auto`.

    Args:
        spec: As it was written.
        data: The `data` section with task, columns and split decided.
        batch_rows: The global batch.
        loss: Its name.
        metrics: Their names.
        device: Where the model trains.
        workers: On how many ranks.
    """
    document = spec.model_dump(mode="json")
    # Where the rows came from is as the user wrote it, whoever prepared them first.
    document["data"] = {**data, "source": spec.data.source}
    if isinstance(spec.data.split, FilesSplit):
        document["data"]["split"] = spec.data.split.model_dump(mode="json")
    if document["training"]["precision"] == "auto":
        document["training"]["precision"] = "float32"
    document["training"] |= {"batch_size": batch_rows, "loss": loss}
    document["training"]["target_scale"] = target_scale_in_force(
        spec.training, data["task"], spec.model.kind
    )
    document["evaluation"]["metrics"] = list(metrics)
    document["resources"] |= {"workers": workers, "device": device}
    if document["tracking"]["log_every_epochs"] == "auto":
        document["tracking"]["log_every_epochs"] = max(1, spec.training.epochs // 10)
    return document


def spec_yaml(document: Mapping[str, Any]) -> str:
    """A resolved document as YAML that the spec reader takes; what is null is left out."""
    return document_yaml(_without_nulls(document))


def document_yaml(document: Mapping[str, Any]) -> str:
    """A document as YAML that the spec reader takes, whole and in its order."""
    return "".join(_section(key, value) for key, value in document.items())


def _section(key: str, value: Any) -> str:
    """One top-level key; what holds no further section stands on one line."""
    text: str = yaml.dump(
        {key: value},
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None if isinstance(value, dict | list) else False,
        width=100,
    )
    return text


class _PlainDumper(yaml.SafeDumper):
    """Writes no anchors, which our reader refuses."""

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Quote a text that the spec reader would take for a number, a flag or nothing."""
        try:
            is_plain = scalar_of(data) == data
        except ValueError:
            is_plain = False
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if is_plain else "'")

    def ignore_aliases(self, data: Any) -> bool:
        """Never point back to a value that was written before."""
        return True


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


def _without_nulls(value: Any) -> Any:
    """Leave out what is not set: `fill_value: null` on every column says nothing."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
