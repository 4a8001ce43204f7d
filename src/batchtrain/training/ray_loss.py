"""What became of ranks that ended without a word, from what Ray says of them."""

from __future__ import annotations

from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError

from batchtrain.errors import (
    BatchtrainError,
    ClusterError,
    LauncherLostError,
    RankFailedError,
    RankLostError,
    RankMemoryError,
)
from batchtrain.training.ray_rank import SAID
from batchtrain.training.supervision import GroupWatch

__all__ = ["GO_ON", "loss_error"]

GO_ON = "Run the same command again to go on from the newest checkpoint"

MEMORY_WORDS = ("exceeds the memory usage threshold", "running low on memory")
"""What Ray says of a worker that its memory monitor ended. The system's own killer leaves no word
but SIGKILL."""

NODE_WORDS = ("node has died", "node died", "node is dead", "its node has")


def loss_error(
    error: BaseException | None, watch: GroupWatch, logs: str, *, board_lost: bool
) -> BatchtrainError:
    """The error for the caller, where no rank said what went wrong.

    Args:
        error: What Ray Train raised.
        watch: What was heard of the ranks.
        logs: Where their logs are.
        board_lost: Whether the actor is gone over which they speak.
    """
    size = watch.size
    end = f"All ranks were ended. Logs: {logs}. {GO_ON}"
    if board_lost or isinstance(error, RayActorError):
        what = "the board of its ranks" if board_lost else "Ray Train's controller"
        return LauncherLostError(
            f"expected {what} to stay while the {size} ranks train, found that its process is "
            f"gone. {end}"
        )
    if isinstance(error, WorkerGroupError):
        return _lost_rank(error, watch, end)
    what = _first_lines(str(error))
    if isinstance(error, TrainingFailedError):
        # Such as a worker that died while it was started, or a port that was taken meanwhile.
        return LauncherLostError(f"expected Ray Train to start {size} ranks, found: {what}. {end}")
    return ClusterError(
        f"expected Ray Train to run {size} ranks, found {type(error).__name__}: {what}. "
        f"Logs: {logs}"
    )


def _lost_rank(error: WorkerGroupError, watch: GroupWatch, end: str) -> BatchtrainError:
    failures = {rank: str(each) for rank, each in error.worker_failures.items()}
    # A rank whose node died may be missing from what Ray noticed before the others gave up.
    silent = [rank for rank in failures if rank not in watch.failed] or watch.unheard
    if not silent and watch.failed:
        rank = watch.failed[0]
        return RankLostError(
            f"expected the {watch.size} ranks to reach each other, found that they lost touch, "
            f"rank {rank} first: {watch.words(rank)}. {end}"
        )
    rank = min(silent or failures, default=0)
    text, seen = failures.get(rank, ""), watch.standing(rank)
    if SAID in text:
        # It raised, and what it said of it was lost with the board.
        return RankFailedError(
            f"expected rank {rank} of {watch.size} to go on, found that it raised an error, which "
            f"its log has. {end}"
        )
    expected = f"expected rank {rank} of {watch.size} to go on, found that"
    if any(words in text for words in MEMORY_WORDS):
        return RankMemoryError(
            f"{expected} it was ended because memory ran out ({seen}). Lower "
            "`training.micro_batch` or `training.batch_size`, set `resources.rows: streaming`, or "
            f"use more workers. {end}"
        )
    if any(words in text for words in NODE_WORDS):
        return RankLostError(f"{expected} its node is gone ({seen}). {end}")
    return RankLostError(
        f"{expected} its process is gone ({seen}). The system ends processes so when memory runs "
        f"out. {end}"
    )


def _first_lines(text: str) -> str:
    """What Ray says, without its traces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]
