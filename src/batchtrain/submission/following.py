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

CHARACTERS_PER_S = 1_000_000
"""Of a log, which a backend gives as a whole each time: it rests a second for each so many."""
LONGEST_REST_S = 60.0
REST_OF_FAILURE_S = 20.0
LAST_LOOKS = 2
"""How often the log of a job that is over is asked for, where it is not given."""


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

    A log that cannot be had, as when its node is gone, is told once: the job's end is what counts.

    Args:
        backend: Where it runs.
        submission_id: Its name.
        show: Gets each line once.
        changed: Hears of the job whenever its state is another one.
        sleep: Waits for seconds.
        clock: Seconds that never go back.

    Raises:
        ClusterError: If the backend does not say how the job stands, at first or for a minute.
    """
    log = _Log(backend, submission_id, show, sleep, clock)
    pause, answered, last = FIRST_POLL_S, None, None
    while True:
        try:
            # Asked first, so that the log that is read next is whole where the job is over.
            status = backend.status(submission_id)
            answered = clock()
        except ClusterError:
            if answered is None or clock() - answered > SILENCE_S:
                raise
            sleep(LONGEST_POLL_S)
            continue
        if status.state != last:
            last = status.state
            changed(status)
        if status.is_over:
            log.show_rest()
            return status
        pause = FIRST_POLL_S if log.show_new() else min(LONGEST_POLL_S, pause * 1.5)
        sleep(pause)


class _Log:
    """The log of one job: the larger it is, the less often it is asked for."""

    def __init__(
        self,
        backend: Backend,
        submission_id: str,
        show: Callable[[str], None],
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._id = submission_id
        self._show = show
        self._sleep = sleep
        self._clock = clock
        self._lines = NewLines()
        self._due: float | None = None
        self._is_told = False

    def show_new(self) -> bool:
        """Show what has come, if it is time to look; whether there was something."""
        if self._due is not None and self._clock() < self._due:
            return False
        text = self._text()
        rest = REST_OF_FAILURE_S if text is None else len(text) / CHARACTERS_PER_S
        self._due = self._clock() + min(LONGEST_REST_S, rest)
        return text is not None and self._shown(text, is_whole=False)

    def show_rest(self) -> None:
        """Show all that has not been shown, of a job that is over."""
        for look in range(LAST_LOOKS):
            if look:
                self._sleep(LONGEST_POLL_S)
            if (text := self._text()) is not None:
                self._shown(text, is_whole=True)
                return

    def _text(self) -> str | None:
        """All there is by now; None where the backend does not give it."""
        try:
            return self._backend.log(self._id)
        except ClusterError as error:
            if not self._is_told:
                self._show(neutral(f"note: the log of {self._id} cannot be read now: {error}"))
                self._is_told = True
            return None

    def _shown(self, text: str, *, is_whole: bool) -> bool:
        new = list(self._lines.take(text, is_whole=is_whole))
        for line in new:
            self._show(line)
        return bool(new)
