"""Which errors a training goes on after by itself: each class of errors is classed on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain import errors
from batchtrain.errors import Problem, RankLostError, RankMemoryError, SpecError
from batchtrain.failures import CollateralError, Failure
from batchtrain.spec.run import RetriesSpec
from batchtrain.training.retrying import Cause, RetryBudget, cause_of

LOST: Cause = "lost_worker"
MEMORY: Cause = "out_of_memory"

CAUSES: dict[str, Cause | None] = {
    "ArtifactDamagedError": None,
    "ArtifactError": None,
    "ArtifactMissingError": None,
    "BatchtrainError": None,
    "ClusterError": None,
    "DataError": None,
    "DivergedError": None,
    "FencedError": None,
    "InterruptedRunError": None,
    "LauncherLostError": LOST,
    "ModelRejectedError": None,
    "NoRowsError": None,
    "OwnershipError": None,
    "PausedRunError": None,
    "RankFailedError": None,
    "RankLostError": LOST,
    "RankMemoryError": MEMORY,
    "RankStuckError": LOST,
    "RunOwnedError": None,
    "SchemaMismatchError": None,
    "SpecError": None,
    "StorageError": None,
    "StorageUnavailableError": None,
    "TrainingError": None,
    "UnsafeInputError": None,
    "VerificationError": None,
}
"""A new class of errors belongs in here: is it the same again when it is tried again?"""


def of_class(name: str) -> errors.BatchtrainError:
    if name == "SpecError":
        return SpecError([Problem("spec.yaml:1:1", "name", "no")])
    error: errors.BatchtrainError = getattr(errors, name)("expected this, found that")
    return error


def test_every_class_of_errors_has_been_thought_of() -> None:
    assert set(CAUSES) == {name for name in errors.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("name", CAUSES)
def test_r12_what_a_class_of_errors_is_retried_as(name: str) -> None:
    assert cause_of(of_class(name)) == CAUSES[name]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a user's"),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(1),
        CollateralError("another is gone"),
        ConnectionResetError("peer"),
    ],
)
def test_r24_what_is_not_ours_is_never_tried_again(error: BaseException) -> None:
    assert cause_of(error) is None
    assert RetryBudget(RetriesSpec(lost_worker=9, out_of_memory=9)).take(error) is None


def test_r12_an_error_of_a_rank_is_classed_the_same_when_it_has_crossed_to_the_driver() -> None:
    for name, cause in CAUSES.items():
        crossed = Failure.of(of_class(name)).to_error(1, 2, log="rank-1.log")
        assert cause_of(crossed) == cause, name


def test_r24_a_users_error_is_not_retried_on_its_way_through_the_driver() -> None:
    crossed = Failure.of(ValueError("these rows are not to my taste")).to_error(1, 2)
    assert cause_of(crossed) is None


def test_r25_each_cause_has_a_budget_of_its_own() -> None:
    budget = RetryBudget(RetriesSpec(lost_worker=2, out_of_memory=1))
    lost, memory = RankLostError("gone"), RankMemoryError("full")
    assert budget.take(lost) == "lost_worker: 1 of 2"
    assert budget.take(memory) == "out_of_memory: 1 of 1"
    assert budget.take(memory) is None
    assert budget.take(lost) == "lost_worker: 2 of 2"
    assert budget.take(lost) is None
    assert budget.take(memory) is None


def test_no_retries_means_none() -> None:
    budget = RetryBudget(RetriesSpec(lost_worker=0, out_of_memory=0))
    assert budget.take(RankLostError("gone")) is None
    assert budget.take(RankMemoryError("full")) is None


@given(
    st.lists(st.sampled_from(sorted(CAUSES)), max_size=30),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_a_training_is_cut_at_most_as_often_as_allowed_and_once_more(
    names: Sequence[str], lost: int, memory: int
) -> None:
    budget = RetryBudget(RetriesSpec(lost_worker=lost, out_of_memory=memory))
    given_out = [CAUSES[name] for name in names if budget.take(of_class(name)) is not None]
    for cause, allowed in ((LOST, lost), (MEMORY, memory)):
        met = sum(CAUSES[name] == cause for name in names)
        assert given_out.count(cause) == min(met, allowed)
    assert None not in given_out
