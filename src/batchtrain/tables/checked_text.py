"""A byte stream of UTF-8 text that refuses whatever is not, with the offset of the bad byte."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from typing import Any, BinaryIO

from batchtrain.errors import DataError

__all__ = ["CheckedText"]

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MARK_BYTES = len(codecs.BOM_UTF8)


class CheckedText(io.RawIOBase):
    """Bytes of a text file, checked as they pass: UTF-8, no NUL; a leading UTF-8 mark is removed.

    Arrow by itself would read a column with one Latin-1 byte as binary, and let NUL pass.

    Attributes:
        num_quotes: Double quotes seen so far; an odd count at the end is the sign of an open one.
    """

    def __init__(self, file: BinaryIO, where: str, *, compressed: bool) -> None:
        super().__init__()
        self.num_quotes = 0
        self._raw: BinaryIO = gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[assignment]
        self._where = where
        self._what = "of the text without compression" if compressed else "of the file"
        self._offset = 0
        self._pushed_back = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        """Always: it is open until it is closed."""
        return True

    def push_back(self, data: bytes) -> None:
        """Let the next reads give `data`, which was read before, once more."""
        self._pushed_back = data + self._pushed_back

    def read(self, size: int = -1) -> bytes:
        """Give the next bytes, at most `size`; the first call must ask for three or more.

        Raises:
            DataError: If they are not UTF-8 text, or the compressed data is damaged.
        """
        if self._pushed_back:
            size = len(self._pushed_back) if size < 0 else size
            data, self._pushed_back = self._pushed_back[:size], self._pushed_back[size:]
            return data
        start = self._offset
        data = self._read_raw(size)
        self._check(data, start, at_end=not data)
        self._offset += len(data)
        self.num_quotes += data.count(b'"')
        if start == 0 and data.startswith(codecs.BOM_UTF8):
            # An empty answer would mean the end of the file.
            return data[MARK_BYTES:] or self.read(size)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one `read` does."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_raw(self, size: int) -> bytes:
        try:
            return self._raw.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self._where}: expected a whole gzip file, found damage after byte "
                f"{self._offset} {self._what}: {error}. Write the file again"
            ) from error

    def _check(self, data: bytes, start: int, *, at_end: bool) -> None:
        if start == 0 and data.startswith(UTF16_MARKS):
            raise DataError(
                f"{self._where}: expected UTF-8 text, found UTF-16 (its mark {data[:2]!r} at byte "
                "0). Save the file as UTF-8, for instance as 'CSV UTF-8' in a spreadsheet"
            )
        nul = data.find(b"\0")
        if nul >= 0:
            raise DataError(
                f"{self._where}: expected UTF-8 text, found a NUL byte at byte {start + nul} "
                f"{self._what}. It is no text file, or was saved as UTF-16; save it as UTF-8"
            )
        pending = self._decoder.getstate()[0]
        if data.isascii() and not pending and not at_end:
            return
        try:
            self._decoder.decode(data, final=at_end)
        except UnicodeDecodeError as error:
            offset = start - len(pending) + error.start
            found = (pending + data)[error.start : error.start + 1]
            raise DataError(
                f"{self._where}: expected UTF-8 text, found the byte {found!r} at byte {offset} "
                f"{self._what}. Save the file as UTF-8; it may be Latin-1 or Windows-1252 now"
            ) from error
