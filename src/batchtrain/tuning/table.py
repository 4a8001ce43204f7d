"""The table of a search: all that is known of its trials, as JSON. It holds no time and no host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from batchtrain.pipeline import RunResult
from batchtrain.spec.search import SearchSpec, scheduler_of
from batchtrain.tuning.search import Search
from batchtrain.tuning.trials import Goal, best_trial, pareto_front

__all__ = ["run_summary", "table_document"]

FORMAT = 1
VALID = ("valid_loss", "valid_accuracy", "valid_r2")


def table_document(
    name: str,
    search: SearchSpec,
    goals: Sequence[Goal],
    state: Search,
    best_run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the table.

    Args:
        name: Of the spec.
        search: The section of the spec.
        goals: What becomes best.
        state: The search as far as it came.
        best_run: What the ordinary run of the best spec gave; None before that.
    """
    records = state.trials()
    best = best_trial([each for each in records if each.is_over], goals)
    scheduler = scheduler_of(search)
    shapes = [state.shapes[each.number] for each in records if each.state != "skipped"]
    return {
        "format": FORMAT,
        "name": name,
        "goals": [asdict(goal) for goal in goals],
        "algorithm": search.algorithm,
        "scheduler": scheduler.model_dump(mode="json") if scheduler else None,
        "paths": list(search.space),
        "distributions": {
            key: each.model_dump(mode="json", exclude_unset=True)
            for key, each in search.space.items()
        },
        "trials": [each.to_json() for each in records],
        "best": best.number if best else None,
        "front": [each.number for each in pareto_front(records, goals)] if len(goals) > 1 else [],
        "packed": {
            "packs": len({each.pack for each in records if each.pack}),
            "trials": sum(shape.is_pack for shape in shapes),
            "alone": sum(not shape.is_pack for shape in shapes),
            "why_not": dict(Counter(shape.why_alone for shape in shapes if shape.why_alone)),
        },
        "rows": sum(each.rows for each in records),
        "best_run": best_run,
    }


def run_summary(run: RunResult | None) -> dict[str, Any] | None:
    """What the table says of the ordinary run of the best spec."""
    if run is None or run.trained is None:
        return None
    best = next(
        each for each in run.trained.history() if each["epoch"] == run.trained.content["best_epoch"]
    )
    metrics = {name: value for name, value in best.items() if name in VALID}
    for split, found in (run.report.metrics if run.report else {}).items():
        metrics |= {f"{split} {name}": value for name, value in found.items() if split == "test"}
    # From the page, which lies in the search's folder beside the runs of the same name.
    folder = f"../{run.run.partition('/')[2]}"
    links = {"spec": "best.yaml"}
    if run.report_page is not None:
        links["report"] = f"{folder}/report.html"
    if run.bundle is not None:
        links["bundle"] = f"{folder}/{run.bundle.artifact.key.partition('/')[2].partition('/')[2]}"
    return {"links": links, "metrics": {k: v for k, v in metrics.items() if v is not None}}
