"""What a report says of a training that did not go the usual way."""

from __future__ import annotations

from typing import Any

from batchtrain.reporting.training_notes import training_notes

USUAL: dict[str, Any] = {
    "ended_by": "epochs",
    "steps": 1200,
    "left_out_steps": 0,
    "rolled_back": [],
    "warm_start": None,
}


def test_a_usual_training_needs_no_word() -> None:
    assert training_notes(USUAL) == []
    assert training_notes({**USUAL, "ended_by": "early_stopping"}) == []


def test_what_was_left_out_and_undone_is_counted() -> None:
    notes = training_notes(
        {
            **USUAL,
            "left_out_steps": 3,
            "rolled_back": [
                {"epoch": 1, "step": 70, "share": 0.5},
                {"epoch": 1, "step": 75, "share": 0.25},
            ],
        }
    )
    assert notes[0].startswith("3 steps of 1,200 changed nothing")
    assert notes[1:] == [
        f"the training diverged in step {step} and went on from the end of epoch 1 with {share} of "
        "the learning rate"
        for step, share in ((70, "0.5"), (75, "0.25"))
    ]


def test_a_budget_that_ended_it_is_named() -> None:
    (steps,) = training_notes({**USUAL, "ended_by": "max_steps"})
    assert "`training.max_steps`, after 1,200 steps" in steps
    time = training_notes({**USUAL, "ended_by": "max_time"})
    assert "depends on the machine" in time[1]


def test_what_came_from_a_bundle_is_counted() -> None:
    done = {"bundle": "0123456789abcdef", "taken": 1, "new": ["a", "b"], "unused": []}
    notes = training_notes({**USUAL, "warm_start": {**done, "warning": "it may mean another"}})
    began, warning = notes
    assert began == (
        "the training began with 1 weight of the bundle 0123456789ab; 2 began new, and 0 of the "
        "bundle had no place"
    )
    assert warning == "it may mean another"
