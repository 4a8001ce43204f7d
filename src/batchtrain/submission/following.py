"""Follow what a job writes until it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from batchtrain.errors import ClusterError
from batchtrain.submission.request import Backend, JobStatus

__all__ = ["LONGEST_LINE", "NewLines", "follow", "neutral"]

LONGEST_LINE = 4096
"""In characters; the rest of a line is counted, not shown."""

FIRST_POLL_S = 0.2
LONGEST_POLL_S = 2.0
SILENCE_S = 60.0
"""For how long a backend may not answer, once it has."""


class NewLines:
    """Gives of a growing text what is new, in whole lines without control characters."""

    def __init__(self) -> None:
        self._given = 0

    def take(self, text: str, *, is_whole: bool = False) -> Iterator[str]:
        """The lines that have been finished since the last call.

        Args:
            text: All there is by now.
            is_whole: Whether nothing more comes, so that a last line needs no end.
        """
        if len(text) < self._given:
            # It was cut, as by a node that came anew: what it had is gone, and was shown.
            self._given = 0
        new = text[self._given :]
        if not is_whole:
            new = new[: new.rfind("\n") + 1]
        self._given += len(new)
        for line in new.removesuffix("\n").split("\n") if new else ():
            # A carriage return draws a bar anew; of such a line the last state counts.
            yield neutral(line.rstrip("\r").rpartition("\r")[2])


def neutral(line: str) -> str:
    """A line that no terminal obeys, and that fits on one."""
    shown = "".join(
        char if char == "\t" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in line[:LONGEST_LINE]
    )
    rest = len(line) - LONGEST_LINE
    return f"{shown} ... ({rest} more characters)" if rest > 0 else shown


def follow(
    backend: Backend,
    submission_id: str,
    show: Callable[[str], None],
    *,
    changed: Callable[[JobStatus], None] = lambda _status: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobStatus:
    """Show the log of a job as it grows, until the job is over.

    Args:
        backend: Where it runs.
        submission_id: Its name.
        show: Gets each line once.
        changed: Hears of the job whenever its state is another one.
        sleep: Waits for seconds.
        clock: Seconds that never go back.

    Raises:
        ClusterError: If the backend does not answer, at first or for a minute.
    """
    lines, pause, answered = NewLines(), FIRST_POLL_S, None
    last = None
    while True:
        try:
            # Asked first, so that the log that is read next is whole where the job is over.
            status = backend.status(submission_id)
            text = backend.log(submission_id)
            answered = clock()
        except ClusterError:
            if answered is None or clock() - answered > SILENCE_S:
                raise
            sleep(LONGEST_POLL_S)
            continue
        if status.state != last:
            last = status.state
            changed(status)
        new = list(lines.take(text, is_whole=status.is_over))
        for line in new:
            show(line)
        if status.is_over:
            return status
        pause = FIRST_POLL_S if new else min(LONGEST_POLL_S, pause * 1.5)
        sleep(pause)
