"""One rank of a training, in a worker process of Ray Train."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import ray.train

from batchtrain import points
from batchtrain.errors import BatchtrainError
from batchtrain.failures import CollateralError, Failure, text_of
from batchtrain.storage import Storage, local_folder
from batchtrain.training.collateral import tells_of_another
from batchtrain.training.launched import SentProgress
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import GlooRanks, OneRank, Ranks
from batchtrain.training.ray_board import BoardClient
from batchtrain.training.ray_data import rank_shards
from batchtrain.training.ray_groups import current_group
from batchtrain.training.watch import PointCounter

__all__ = ["Listeners", "RankConfig", "log_key", "train_ray_rank"]

SAID = "raised an error, which its log has"
"""What Ray is told of a rank that failed; the driver has heard it all by then."""

Listeners = Callable[[int, int], Callable[[str], None] | None]
"""Gives what hears of the points that a rank passes, from the rank and the claim of the attempt."""


@dataclass(frozen=True)
class RankConfig:
    """What every rank of one attempt is handed.

    Attributes:
        task: What to train.
        board: The actor to which it says how far it is; see `ray_board`.
        listeners: For tests, which end a rank at a point; None for nobody.
    """

    task: TrainTask
    board: Any
    listeners: Listeners | None = None


def train_ray_rank(config: Mapping[str, Any]) -> None:
    """Train one rank; Ray Train calls this in each of its workers.

    Args:
        config: `rank_config`, a `RankConfig`.
    """
    given: RankConfig = config["rank_config"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    counter = PointCounter(threading.current_thread())
    board = BoardClient(given.board, rank, counter)
    task = given.task
    with ExitStack() as stack:
        stack.callback(board.close)
        stack.callback(points.listen, None)
        points.listen(_both(counter, given.listeners, rank, task.claim))
        here = {"host": socket.gethostname(), "pid": os.getpid(), "group": current_group()}
        board.say("joined", here)
        try:
            log = stack.enter_context(_rank_log(task, rank))
            print(f"rank {rank} of {size}, process {os.getpid()}, {socket.gethostname()}", file=log)
            ranks: Ranks = GlooRanks() if size > 1 else OneRank()
            train_rank(
                task,
                ranks,
                SentProgress(lambda value: board.say("report", value)),
                board.stop_requested,
                save_last=True,
                shards=rank_shards(task, size, rank),
            )
        except BaseException as error:  # noqa: BLE001 - the driver is told, whatever it is
            found = _cause(error)
            # First of all, so that it is known whatever becomes of the log.
            board.say("failed", Failure.of(found).to_json())
            traceback.print_exception(found)
            raise RuntimeError(f"rank {rank} {SAID}") from None
        board.say("returned", {})


def log_key(task: TrainTask, rank: int) -> str:
    """Where a rank's log lies on the storage."""
    return f"{task.layout.logs}/attempt-{task.claim}/rank-{rank}.log"


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, Exception) and tells_of_another(error):
        found = CollateralError(f"{type(error).__name__}: {text_of(error)}")
        found.__cause__ = error
        return found
    return error


def _both(
    counter: PointCounter, listeners: Listeners | None, rank: int, claim: int
) -> Callable[[str], None]:
    listener = listeners(rank, claim) if listeners is not None else None
    if listener is None:
        return counter

    def both(name: str) -> None:
        counter(name)
        listener(name)

    return both


@contextmanager
def _rank_log(task: TrainTask, rank: int) -> Iterator[TextIO]:
    """The rank's log; what is printed meanwhile goes there as well.

    On a storage that no file can be opened on it is uploaded at the end, also of a failure.
    """
    storage, key = task.layout.storage, log_key(task, rank)
    folder = local_folder(storage)
    with ExitStack() as stack:
        if folder is not None:
            path = folder / key
        else:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(temporary) / "rank.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder is None:
            stack.callback(_upload, storage, key, path)
        log = stack.enter_context(
            path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        )
        stack.enter_context(redirect_stdout(_Tee(log, sys.stdout)))
        stack.enter_context(redirect_stderr(_Tee(log, sys.stderr)))
        yield log


def _upload(storage: Storage, key: str, path: Path) -> None:
    # A log that cannot be kept is no reason to lose a training.
    with suppress(BatchtrainError, OSError):
        storage.write(key, path.read_bytes())


class _Tee:
    """Writes to two files."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._files = (first, second)

    def write(self, text: str) -> int:
        """Write to both."""
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush both."""
        for file in self._files:
            file.flush()

    def isatty(self) -> bool:
        """It is a file."""
        return False

    def __getattr__(self, name: str) -> Any:
        """What else a file has is the second's."""
        return getattr(self._files[1], name)
