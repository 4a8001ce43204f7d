"""Whether an error of one rank speaks of another: only then somebody else is to blame."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from batchtrain.errors import StorageError
from batchtrain.training.collateral import tells_of_another

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:42"


class StubbornError(RuntimeError):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError


class EqualError(RuntimeError):
    """Equal to everything, as a careless class may be."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = RuntimeError.__hash__


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CLOSED),
        RuntimeError("Gloo connectFullMesh failed with: timed out"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 1800000ms for recv"),
        RuntimeError("writev [127.0.0.1]:4242: Connection reset by peer"),
        RuntimeError("writev: Broken pipe"),
        RuntimeError("Wait timeout"),
        dist.DistNetworkError("The client socket has failed to connect"),
        dist.DistBackendError("NCCL communicator was aborted"),
    ],
)
def test_r01_what_the_others_say_of_a_lost_rank_is_told_apart(error: Exception) -> None:
    assert tells_of_another(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("these rows are not to my taste"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        # Two ranks that do not do the same: a fault of the code, on whichever rank it shows.
        RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op"),
        # Not of torch: somebody's own file or connection.
        OSError("Connection reset by peer"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError("Broken pipe"),
        StorageError("Timed out waiting for the bucket"),
        MemoryError(),
        SystemExit(CLOSED),
    ],
)
def test_r24_an_error_of_ones_own_is_ones_own(error: BaseException | None) -> None:
    assert not tells_of_another(error)


def led_to(outer: Exception, inner: Exception, *, how: str = "from") -> Exception:
    """An error that another one led to, as `raise outer from inner` makes it, and without."""
    if how == "from":
        outer.__cause__ = inner
    else:
        outer.__context__ = inner
        outer.__suppress_context__ = how == "hidden"
    return outer


@pytest.mark.parametrize(("how", "expected"), [("from", True), ("during", True), ("hidden", False)])
def test_r01_what_led_to_an_error_counts_unless_it_was_hidden(how: str, expected: bool) -> None:
    error = led_to(ValueError("the loss could not be summed"), RuntimeError(CLOSED), how=how)
    assert tells_of_another(error) is expected


def test_errors_that_cause_each_other_are_looked_at_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not tells_of_another(first)
    second.__cause__ = RuntimeError(CLOSED)
    assert tells_of_another(first)


def test_r24_an_error_without_a_text_is_ones_own() -> None:
    assert not tells_of_another(StubbornError())
    assert tells_of_another(led_to(StubbornError(), RuntimeError(CLOSED)))


def test_errors_that_claim_to_be_equal_are_still_two() -> None:
    assert tells_of_another(led_to(EqualError("outer"), RuntimeError(CLOSED)))
    assert tells_of_another(led_to(EqualError("outer"), EqualError(CLOSED)))
