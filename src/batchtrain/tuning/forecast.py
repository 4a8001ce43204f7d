"""What the search of a spec would come to, from its rules and the widths of its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.session import ClusterResources
from batchtrain.errors import ClusterError
from batchtrain.reporting.search_words import short_keys, value_text
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.search import SearchSpec
from batchtrain.tuning.choice import choose_executor, unit_resources
from batchtrain.tuning.goals import goals_of
from batchtrain.tuning.outline import BracketOutline, SearchOutline, ShapeOutline, outline_of
from batchtrain.tuning.proposals import Proposer
from batchtrain.tuning.rehearsal import Rehearsal, rehearse
from batchtrain.tuning.search import SearchRules
from batchtrain.tuning.shapes import PACKED_SPEED, Shapes
from batchtrain.tuning.space import Space, Values, draw
from batchtrain.tuning.stage import search_of, search_rules
from batchtrain.tuning.trials import TrialRecord

__all__ = ["forecast"]

MOST_SHAPES = 8
NOT_SET = "not set"


@dataclass
class _StandIn:
    """Random values in the place of those that TPE would choose."""

    space: Space
    seed: int
    total: int | None
    wave: int | None

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[Values]:
        return [draw(self.space, self.seed, number) for number in numbers]


def forecast(
    loaded: LoadedSpec, prepared: PreparedData, *, cpus: int | None = None, gpus: int | None = None
) -> SearchOutline:
    """Tell what a search would do on this machine, with nothing of it done.

    Args:
        loaded: A spec with a `search` section.
        prepared: The rows, or what is known of them before they are prepared.
        cpus: The cores of the machine; left out, those of this one.
        gpus: Its GPUs; the same.

    Raises:
        SpecError: If a trial cannot be trained as the search has it.
    """
    search, cpus = search_of(loaded), cpus or os.cpu_count() or 1
    goals = goals_of(search, loaded.spec.training)
    shapes = Shapes(loaded, search, prepared, goals)
    rules = search_rules(loaded, goals, shapes)
    wave = rules.proposer.wave
    if wave is not None:
        stand_in: Proposer = _StandIn(search.space, loaded.spec.seed, rules.proposer.total, wave)
        rules = replace(rules, proposer=stand_in)
    gone = rehearse(rules)
    outline = outline_of(
        search,
        epochs=loaded.spec.training.epochs,
        epoch_rows=prepared.num_rows("train"),
        trials=rules.trials,
        goals=tuple((goal.metric, goal.mode) for goal in goals),
    )
    is_whole = len(gone.trials) == outline.trials
    # Of trials that are known, no more than what they are.
    known = [rules.rows(each.values) for each in gone.trials] if is_whole and not wave else None
    scale = outline.trials / max(1, len(gone.trials)) if search.max_rows is None else 1.0
    rows = sum(each.rows for each in gone.trials)
    gpus = torch.cuda.device_count() if gpus is None else gpus
    where, concurrent = _where(loaded, shapes, outline.trials, cpus=cpus, gpus=gpus)
    run_lengths, starts = _lengths(gone, shapes, concurrent)
    at_most = outline.rows_at_most if known is None else min(outline.rows_at_most, sum(known))
    return replace(
        outline,
        brackets=tuple(_brackets(gone, rules)),
        shapes=tuple(_shapes(gone)),
        rows_at_most=at_most,
        rows_expected=min(at_most, round(scale * rows)),
        where=where,
        concurrent=concurrent,
        run_lengths=scale * run_lengths,
        starts=scale * starts,
        notes=(*outline.notes, *_notes(search, gone, outline.trials, wave, shapes)),
    )


def _where(
    loaded: LoadedSpec, shapes: Shapes, trials: int, *, cpus: int, gpus: int
) -> tuple[str, int]:
    """What carries the search out, and how many trials or packs there are at a time."""
    spec, search = loaded.spec, search_of(loaded)
    choice = choose_executor(
        spec, seconds=shapes.seconds_of_search(trials), is_attached=False, cores=cpus
    )
    if not choice.on_ray:
        return "trials run in this process, one or one pack after the other", 1
    asked = None if search.concurrent == "auto" else search.concurrent
    cluster = ClusterResources(cpus=cpus, gpus=gpus, nodes=1, most_cpus=cpus)
    try:
        return choice.why, unit_resources(spec.resources, cluster, asked).concurrent
    except ClusterError as error:
        return f"{choice.why}; not on this machine alone: {error}", asked or 1


def _brackets(gone: Rehearsal, rules: SearchRules) -> Iterator[BracketOutline]:
    """The rungs, and how many trials come to each; none where trials are not compared."""
    found: dict[tuple[int, ...], list[TrialRecord]] = {}
    for trial in gone.trials:
        found.setdefault(rules.cohorts.rungs_of(trial.number), []).append(trial)
    if any(len(rungs) > 1 for rungs in found):
        for rungs, trials in found.items():
            counts = [sum(epochs in each.rungs for each in trials) for epochs in rungs]
            yield BracketOutline(rungs, tuple(counts))


def _shapes(gone: Rehearsal) -> Iterator[ShapeOutline]:
    """The trials of each shape, the most first; those that are trained alone by the reason."""
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for trial in gone.trials:
        shape = gone.state.shapes[trial.number]
        groups.setdefault((shape.key, shape.why_alone), []).append(trial)
    ordered = sorted(groups.items(), key=lambda each: -len(each[1]))
    for (_, why_alone), trials in ordered[:MOST_SHAPES]:
        words = "" if why_alone else _shape_words(trials, gone.trials)
        yield ShapeOutline(words, len(trials), _packs(trials), why_alone)
    others = [each for _, trials in ordered[MOST_SHAPES:] for each in trials]
    if others:
        words = f"{len(ordered) - MOST_SHAPES:,} other shapes"
        yield ShapeOutline(words, len(others), _packs(others))


def _packs(trials: Sequence[TrialRecord]) -> int:
    return len({each.pack for each in trials if each.pack})


def _shape_words(trials: Sequence[TrialRecord], others: Sequence[TrialRecord]) -> str:
    """The values that are the same in some trials, and not in all; empty where there are none."""
    names = short_keys(list(dict.fromkeys(key for each in others for key in each.values)))
    words = []
    for key, name in names.items():
        mine, all_values = ({_text(each.values, key) for each in some} for some in (trials, others))
        # What is not set follows from the others.
        if len(mine) == 1 < len(all_values) and mine != {NOT_SET}:
            words.append(f"{name} {mine.pop()}")
    return ", ".join(words)


def _text(values: Mapping[str, Any], key: str) -> str:
    return value_text(values[key]) if key in values else NOT_SET


def _lengths(gone: Rehearsal, shapes: Shapes, concurrent: int) -> tuple[float, float]:
    """How many runs of the spec by itself take about as long, and how often runs begin."""
    work, starts = 0.0, 0
    for unit in gone.units:
        part = (unit.last_epoch - unit.first_epoch) / unit.full_epochs
        alone = part * sum(shapes.share(member.values) for member in unit.members)
        work += alone / (min(PACKED_SPEED, len(unit.members)) if unit.is_pack else 1.0)
        starts += 0 if unit.is_pack else len(unit.members)
    side_by_side = max(1, min(concurrent, sum(unit.first_epoch == 0 for unit in gone.units)))
    return work / side_by_side, starts / side_by_side


def _notes(
    search: SearchSpec, gone: Rehearsal, trials: int, wave: int | None, shapes: Shapes
) -> Iterator[str]:
    found = len(gone.trials)
    if wave is not None:
        yield (
            f"tpe chooses {wave} trials at a time by the results of those before; here random "
            "values stand in for its own"
        )
    if found < trials and search.max_rows is not None:
        yield f"about {found:,} trials are expected to begin within `search.max_rows`"
    elif found < trials:
        yield f"packs and rungs are those of the first {found:,} trials"
    if shapes.changes_data:
        yield "the space changes the data, so that trials prepare rows of their own"
    if search.export:
        yield "the best spec is then run by itself, evaluated and exported"
