"""Lend a file of Python to a thread of Arrow, and wait until that thread has let go of it."""

from __future__ import annotations

import weakref
from threading import Event
from typing import Protocol

__all__ = ["Lender"]

LONGEST_WAIT_S = 10.0
"""Arrow lets go within milliseconds; should it ever not, the rows are there all the same."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Lender:
    """Gives out a file once, and knows when nobody holds what it gave.

    Arrow's reader of CSV reads ahead in a thread of its own, which may be the last to let go of
    the file, even after the reader is closed. To let go it needs the interpreter: where that is
    ending meanwhile, the thread is ended by force, and C++ aborts the whole process ("terminate
    called without an active exception").
    """

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self._returned = Event()
        self._returned.set()

    def lend(self) -> object:
        """What Arrow may read; keep no reference to it."""
        self._returned.clear()
        loan = _Loan(self._file)
        weakref.finalize(loan, self._returned.set).atexit = False
        return loan

    def wait(self) -> None:
        """Come back when Arrow has let go; its reader must be closed and deleted before."""
        self._returned.wait(LONGEST_WAIT_S)


class _Loan:
    """The methods of a file that Arrow needs.

    `read` is the file's own: a frame of this object in the traceback of an error would keep it.
    """

    closed = False

    def __init__(self, file: _Readable) -> None:
        self.read = file.read

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing: who lent it closes it."""
