"""An error that crosses from a rank to its parent stays what it is."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchtrain import errors
from batchtrain.errors import (
    DivergedError,
    InterruptedRunError,
    Problem,
    RankFailedError,
    SpecError,
)
from batchtrain.failures import TRACEBACK_CHARACTERS, CollateralError, Failure, lost_error
from batchtrain.spec.load import load_spec

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


def test_an_error_of_ours_that_no_rank_told_says_what_it_said() -> None:
    error = across(DivergedError("expected a number, found NaN")).to_own_error()
    assert (type(error), str(error)) == (DivergedError, "expected a number, found NaN")
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


def raised_by(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        work()
    return raised.value


def test_r24_the_frame_is_the_users_line_and_not_where_it_came_up() -> None:
    frame = Failure.of(raised_by(lambda: json.loads("{"))).frame  # in json/decoder.py
    assert frame.startswith(f"{__file__}:")
    assert 'json.loads("{")' in frame


def test_r24_the_frame_of_code_in_an_installed_package_is_the_users_too() -> None:
    # In torch, which says it from C++ below several lines of its own.
    linear = torch.nn.Linear(2, 3)
    frame = Failure.of(raised_by(lambda: linear(torch.zeros(1, 5)))).frame
    assert frame.startswith(f"{__file__}:")
    assert "linear(torch.zeros(1, 5))" in frame


def test_r24_the_frame_of_an_error_that_ours_wraps_is_the_users() -> None:
    def call() -> None:
        load_spec(Path("no such file.yaml"))

    frame = Failure.of(raised_by(call)).frame
    assert frame.startswith(f"{__file__}:")
    assert "load_spec" in frame


def test_r24_where_none_of_the_users_is_left_the_innermost_line_is_given() -> None:
    error = raised_by(lambda: load_spec(Path("no such file.yaml")))
    while error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        if "batchtrain" in error.__traceback__.tb_frame.f_code.co_filename:
            break
        error = error.with_traceback(error.__traceback__.tb_next)
    # What is left of its frames is ours alone.
    frame = Failure.of(error).frame
    assert "/batchtrain/" in frame


def test_r24_an_error_around_a_users_error_shows_the_users_line() -> None:
    inner = raised_by(lambda: fail(ValueError("these rows are not to my taste")))
    outer = RuntimeError("the step failed")
    outer.__cause__ = inner
    assert "raise error" in Failure.of(outer).frame
    assert "in fail" in Failure.of(outer).frame


def test_r24_of_errors_that_cause_each_other_there_is_an_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert Failure.of(first).frame == "an unknown line"


def test_an_error_that_was_never_raised_has_no_line() -> None:
    failure = Failure.of(ValueError("no"))
    assert failure.frame == "an unknown line"
    assert "an unknown line" in str(failure.to_error(0, 1, log="rank-0.log"))


def test_r24_a_module_that_cannot_be_compiled_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failures_broken_net.py").write_text("class Net:\n    def\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    error = raised_by(lambda: importlib.import_module("failures_broken_net"))
    assert isinstance(error, SyntaxError)
    text = str(Failure.of(error).to_error(0, 2, log="rank-0.log"))
    assert "failures_broken_net.py, line 2" in text
    assert "<frozen importlib" not in text.partition("\n  at ")[2]


def test_r24_code_without_a_file_has_a_frame_all_the_same() -> None:
    error = raised_by(lambda: exec(compile("1 / 0", "<notebook>", "exec"), {}))  # noqa: S102
    assert Failure.of(error).frame.startswith(f"{__file__}:")


class SilentError(RuntimeError):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class EqualError(RuntimeError):
    """Equal to everything, as a careless class may be."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = RuntimeError.__hash__


def test_r24_an_error_without_a_text_can_be_told() -> None:
    failure = across(SilentError())
    assert failure.type_name == "SilentError"
    assert "ZeroDivisionError" in failure.text
    assert "found SilentError" in str(failure.to_error(0, 2, log="rank-0.log"))


def test_errors_that_claim_to_be_equal_are_still_two() -> None:
    inner = raised_by(lambda: fail(EqualError("inner")))
    outer = EqualError("outer")
    outer.__cause__ = inner
    assert "in fail" in Failure.of(outer).frame


def test_an_endless_text_is_cut() -> None:
    failure = across(ValueError("x" * 10**6))
    assert len(failure.text) <= TRACEBACK_CHARACTERS
    assert len(failure.trace) <= TRACEBACK_CHARACTERS
    assert len(json.dumps(failure.to_json())) < 5 * TRACEBACK_CHARACTERS


def test_r24_with_a_log_the_message_is_short_and_says_where_the_rest_is() -> None:
    failure = across(ValueError("these rows are not to my taste"))
    error = failure.to_error(1, 3, log="/runs/x/logs/attempt-1/rank-1.log")
    text = str(error)
    assert type(error) is RankFailedError
    assert "rank 1 of 3" in text
    assert "ValueError: these rows are not to my taste" in text
    assert f"at {failure.frame}\n" in text
    assert f"{__file__}:" in failure.frame
    assert "/runs/x/logs/attempt-1/rank-1.log" in text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 3
    assert "Traceback" in str(error.__cause__)


@pytest.mark.parametrize("log", ["", "rank-1.log"])
def test_r24_one_of_ours_says_the_same_with_a_log_and_without(log: str) -> None:
    error = across(DivergedError("expected a number")).to_error(1, 3, log=log)
    assert type(error) is DivergedError
    assert str(error) == "rank 1: expected a number"


@given(st.text(st.characters(), max_size=50))
def test_whatever_a_text_holds_it_crosses(text: str) -> None:
    failure = Failure.of(ValueError(text))
    assert failure.text == text
    assert Failure.from_json(json.loads(json.dumps(failure.to_json()))) == failure


def test_a_lone_surrogate_crosses() -> None:
    assert across(ValueError("no file \udcff")).text == "no file \udcff"


def test_r24_a_deep_recursion_can_be_told() -> None:
    def deeper() -> None:
        deeper()

    failure = Failure.of(raised_by(deeper))
    assert failure.type_name == "RecursionError"
    assert "in deeper" in failure.frame
    assert len(failure.trace) <= TRACEBACK_CHARACTERS
