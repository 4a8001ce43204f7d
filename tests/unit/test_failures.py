"""An error that crosses from a rank to its parent stays what it is."""

from __future__ import annotations

import json

import pytest

from batchtrain import errors
from batchtrain.errors import (
    DivergedError,
    InterruptedRunError,
    Problem,
    RankFailedError,
    SpecError,
)
from batchtrain.failures import CollateralError, Failure, lost_error

OWN = [
    getattr(errors, name)
    for name in errors.__all__
    if name.endswith("Error") and name != "SpecError"
]


def fail(error: BaseException) -> None:
    raise error


def across(error: BaseException) -> Failure:
    """As the parent gets it."""
    with pytest.raises(type(error)) as raised:
        fail(error)
    return Failure.from_json(json.loads(json.dumps(Failure.of(raised.value).to_json())))


@pytest.mark.parametrize("kind", OWN)
def test_r24_our_own_errors_keep_their_class_and_name_the_rank(kind: type) -> None:
    error = across(kind("expected this, found that")).to_error(2, 4)
    assert type(error) is kind
    assert str(error) == "rank 2: expected this, found that"
    assert error.exit_code == kind.exit_code
    assert "test_failures.py" in str(error.__cause__)


def test_r24_a_spec_error_keeps_its_problems() -> None:
    problem = Problem(where="spec.yaml:3:1", key="model.target", message="no.", hint="Yes.")
    error = across(SpecError([problem])).to_error(0, 2)
    assert isinstance(error, SpecError)
    assert error.problems == (problem,)


class SpecialError(DivergedError):
    """A subclass that only the user's code knows."""


def test_r24_a_subclass_of_ours_becomes_the_class_of_ours() -> None:
    assert type(across(SpecialError("x")).to_error(0, 2)) is DivergedError


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), OSError(28, "full")])
def test_r24_any_other_error_is_named_with_its_traceback(error: BaseException) -> None:
    found = across(error).to_error(1, 3)
    assert type(found) is RankFailedError
    assert f"rank 1 of 3 to go on, found {type(error).__name__}: {error}. " in str(found)
    assert "test_failures.py" in str(found)


def test_ctrl_c_in_a_rank_is_an_interruption() -> None:
    failure = across(KeyboardInterrupt())
    assert failure.is_interruption
    assert type(failure.to_error(0, 1)) is InterruptedRunError


def test_only_an_error_about_another_rank_is_collateral() -> None:
    assert across(CollateralError("gone")).is_collateral
    assert not across(RuntimeError("mine")).is_collateral


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (-9, "killed by SIGKILL after 3 points. The other ranks were ended. The system kills so"),
        (-11, "killed by SIGSEGV"),
        (-100, "killed by signal 100"),
        (3, "ended with exit code 3"),
    ],
)
def test_r01_a_lost_rank_is_named_with_its_signal_or_exit_code(exit_code: int, words: str) -> None:
    text = str(lost_error(1, 3, exit_code, "after 3 points"))
    assert text.startswith("expected rank 1 of 3 to return")
    assert words in text
