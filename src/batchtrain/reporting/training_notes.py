"""What a person should know of how a model was trained, from the manifest of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchtrain.reporting.wording import count, number

__all__ = ["training_notes"]


def training_notes(content: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that did not go the usual way; none for most trainings.

    Args:
        content: The manifest's content of a trained model.
    """
    return [*_budgets(content), *_mishaps(content), *_warm_start(content)]


def _budgets(content: Mapping[str, Any]) -> Iterator[str]:
    if content["ended_by"] in {"max_steps", "max_time"}:
        yield (
            f"the training ended by `training.{content['ended_by']}`, after "
            f"{_some(content['steps'], 'step')}; its last epoch may be a part of one"
        )
    if content["ended_by"] == "max_time":
        yield "what the time was enough for depends on the machine: another run may end elsewhere"


def _mishaps(content: Mapping[str, Any]) -> Iterator[str]:
    left_out = content["left_out_steps"]
    if left_out:
        yield (
            f"{_some(left_out, 'step')} of {count(content['steps'])} changed nothing, since the "
            "loss or the gradient was not finite; the losses of the epochs are without them"
        )
    for entry in content["rolled_back"]:
        yield (
            f"the training diverged in step {entry['step']} and went on from the end of epoch "
            f"{entry['epoch']} with {number(entry['share'])} of the learning rate"
        )


def _warm_start(content: Mapping[str, Any]) -> Iterator[str]:
    done = content["warm_start"]
    if done is None:
        return
    new, unused = len(done["new"]), len(done["unused"])
    yield (
        f"the training began with {_some(done['taken'], 'weight')} of the bundle "
        f"{done['bundle'][:12]}; {count(new)} began new, and {count(unused)} of the bundle had no "
        "place"
    )
    if done["warning"]:
        yield done["warning"]


def _some(how_many: int, what: str) -> str:
    return f"{count(how_many)} {what}{'' if how_many == 1 else 's'}"
