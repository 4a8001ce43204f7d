"""TensorBoard's event files: records of protocol buffers, one after the other.

tensorboard's own writer puts each event on a queue, opens the file anew for it in a thread, and
may keep it for two minutes. This one keeps events until it is told to write, all in one go, so
that they are on disk before the checkpoint that counts on them.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE
from tensorboard.summary.writer.record_writer import RecordWriter

__all__ = [
    "EventFile",
    "WrittenEvents",
    "event_bytes",
    "first_event",
    "scalar_bytes",
    "scalar_event",
    "written_events",
]

PREFIX = "events.out.tfevents."
SECOND = re.compile(rf"{re.escape(PREFIX)}(\d{{10}})\.")
AFTER_ALL = 9_999_999_999
"""In the place of a second: such a file is read after all others."""

NUMBERS = itertools.count()

HEADER = struct.Struct("<QI")
"""Of a record: the length of its data and a checksum of that; another checksum follows the data."""
CHECKSUM_BYTES = 4


def scalar_event(tag: str, value: float, step: int, wall_time: float) -> Event:
    """One number of one tag."""
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return Event(step=step, wall_time=wall_time, summary=summary)


def event_bytes(events: Iterable[Event]) -> bytes:
    """Events as a file of theirs holds them, without the one that begins it."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def scalar_bytes(
    tag: str, steps: Sequence[int], values: Sequence[float], wall_times: Sequence[float]
) -> bytes:
    """The same bytes as `event_bytes` of one `scalar_event` a step, for all of them at once.

    A small model takes thousands of steps a second, and an event by itself costs some 20 us, most
    of it for the checksum.

    Args:
        tag: Of all of them.
        steps: (N,), rising.
        values: (N,).
        wall_times: (N,), in seconds since the epoch; not 0.
    """
    found, begin = b"", 0
    while begin < len(steps):
        if not steps[begin]:
            # The format leaves a step of 0 out.
            event = scalar_event(tag, values[begin], 0, wall_times[begin])
            found, begin = found + event_bytes([event]), begin + 1
            continue
        bytes_of_step = _varint_bytes(steps[begin])
        end = bisect.bisect_left(steps, 1 << (7 * bytes_of_step), lo=begin)
        some = slice(begin, end)
        found += _equal_records(
            tag,
            np.asarray(steps[some], np.int64),
            np.asarray(values[some], "<f4"),
            np.asarray(wall_times[some], "<f8"),
            bytes_of_step,
        )
        begin = end
    return found


def _varint_bytes(step: int) -> int:
    """The bytes of a step in the format: 7 bits each."""
    return (step.bit_length() + 6) // 7


def _equal_records(
    tag: str,
    steps_N: npt.NDArray[np.int64],
    values_N: npt.NDArray[np.float32],
    wall_times_N: npt.NDArray[np.float64],
    bytes_of_step: int,
) -> bytes:
    """Records of equal length: those of a first event, with other numbers at the same places.

    The fields in the order of their numbers (protobuf's encoding): 1 byte and the wall time, 1
    byte and the step, the summary, whose last 4 bytes are the value.
    """
    first = scalar_event(tag, 1.0, int(steps_N[0]), 1.0).SerializeToString()
    data_NL = np.tile(np.frombuffer(first, np.uint8), (len(steps_N), 1))
    data_NL[:, 1:9] = wall_times_N.view(np.uint8).reshape(-1, 8)
    for place in range(bytes_of_step):
        more = 0x80 if place < bytes_of_step - 1 else 0
        data_NL[:, 10 + place] = (steps_N >> (7 * place) & 0x7F) | more
    data_NL[:, -4:] = values_N.view(np.uint8).reshape(-1, 4)
    length = np.frombuffer(struct.pack("<Q", len(first)), np.uint8)[None]
    header = np.concatenate([length, _checksums(length)], axis=1)
    headers_NH = np.tile(header, (len(steps_N), 1))
    return np.concatenate([headers_NH, data_NL, _checksums(data_NL)], axis=1).tobytes()


def _checksums(data_NL: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The masked CRC-32C of each row, 4 bytes each, as TensorFlow's records have it."""
    table = np.asarray(CRC_TABLE, np.uint32)
    crc_N = np.full(len(data_NL), 0xFFFFFFFF, np.uint32)
    for place in range(data_NL.shape[1]):
        crc_N = table[(crc_N ^ data_NL[:, place]) & 0xFF] ^ (crc_N >> 8)
    crc_N = ~crc_N
    masked_N = ((crc_N >> 15) | (crc_N << 17)) + np.uint32(0xA282EAD8)
    return masked_N.astype("<u4").view(np.uint8).reshape(-1, 4)


def first_event(wall_time: float) -> Event:
    """The event that a file must begin with: the version of the format."""
    return Event(wall_time=wall_time, file_version="brain.Event:2")


class EventFile:
    """A new event file, read after those that are there already; closed when left."""

    def __init__(self, folder: Path, *, earlier: Iterable[str], purge_step: int | None) -> None:
        """Make it.

        Args:
            folder: Where; it is made too.
            earlier: The names of the event files that are there. One may come from a clock that is
                ahead, or from this very second: this file's name is later.
            purge_step: Events of those files from this step on are void; None where none is.
        """
        folder.mkdir(parents=True, exist_ok=True)
        seconds = [int(match[1]) for name in earlier if (match := SECOND.match(name))]
        newest = max((second for second in seconds if second < AFTER_ALL), default=0)
        second = max(int(time.time()), newest + 1)
        owner = f"{socket.gethostname()}.{os.getpid()}.{next(NUMBERS)}"
        self._file = (folder / f"{PREFIX}{second:010d}.{owner}").open("xb")
        self._waiting: list[Event | bytes] = [first_event(time.time())]
        if purge_step is not None:
            self.purge(purge_step)

    def add(self, event: Event | bytes) -> None:
        """Keep an event, or the bytes of some, until the next flush."""
        self._waiting.append(event)

    def purge(self, step: int) -> None:
        """Declare void what was written of this step and later ones, in this file and before."""
        start = SessionLog(status=SessionLog.START)
        self.add(Event(step=step, wall_time=time.time(), session_log=start))

    def flush(self) -> None:
        """Write what waits, so that whoever watches sees it and a kill does not take it."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._file.write(each if isinstance(each, bytes) else event_bytes([each]))
        self._file.flush()

    def close(self) -> None:
        """Write the rest."""
        try:
            self.flush()
        finally:
            self._file.close()


@dataclass
class WrittenEvents:
    """What TensorBoard would show of a folder's event files.

    Attributes:
        steps: Tag to the steps at which it has a number.
        others: The tags of what is no number; it stays, whatever is void.
        has_graph: Whether there is a graph; it stays too.
    """

    steps: dict[str, set[int]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    has_graph: bool = False

    def has(self, tag: str, step: int) -> bool:
        """Whether a tag has a number at a step."""
        return step in self.steps.get(tag, ())

    def purge(self, step: int) -> None:
        """Forget what lies at this step or later, as TensorBoard does at a restart."""
        self.steps = {
            tag: {each for each in steps if each < step} for tag, steps in self.steps.items()
        }


def written_events(files: Mapping[str, bytes], *, without: str) -> WrittenEvents:
    """Read event files as TensorBoard does: by name, and each to its last whole event.

    Args:
        files: Name to content.
        without: A tag that nobody asks for; it may make up nearly all events, so that they are not
            even decoded.
    """
    found = WrittenEvents()
    unwanted = without.encode()
    for name in sorted(files):
        for data in _records(files[name]):
            if unwanted in data:
                continue
            event = Event.FromString(data)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found.purge(event.step)
            found.has_graph |= bool(event.graph_def)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.steps.setdefault(value.tag, set()).add(event.step)
                else:
                    found.others.add(value.tag)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    place = 0
    while place + HEADER.size <= len(content):
        length, _checksum = HEADER.unpack_from(content, place)
        begin = place + HEADER.size
        place = begin + length + CHECKSUM_BYTES
        if place <= len(content):
            yield content[begin : begin + length]
