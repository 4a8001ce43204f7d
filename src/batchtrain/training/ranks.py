"""What the ranks of one run say to each other; nothing here knows who started them."""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["GlooRanks", "OneRank", "Ranks"]

FRAME_BYTES = 256
"""A message of this size, its length included, takes one collective; a longer one takes two."""

LENGTH_BYTES = 8


class Ranks(Protocol):
    """Which of how many ranks this is, and how they tell each other something.

    `gather` is a collective: every rank calls it equally often and in the same order among all
    collectives of its group.
    """

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of ranks, W."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in the order of the ranks, the same on every rank.

        Floats come back to the last bit; NaN and the infinities do too. Tuples may become lists.
        """
        ...

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in the order of the ranks; all have one shape and type."""
        ...


class OneRank:
    """The only rank; what it gathers is its own value."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks.gather`."""
        return [value]

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        """See `Ranks.gather_tensor`."""
        return [value]


class GlooRanks:
    """The ranks of a torch.distributed group on CPUs. Values travel as JSON, never pickled."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Speak to the ranks of `group`, which this process has joined; None is the default one."""
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = group

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks.gather`.

        Raises:
            TypeError: If the value is not JSON.
        """
        data = json.dumps(value).encode()
        room = FRAME_BYTES - LENGTH_BYTES
        length = len(data).to_bytes(LENGTH_BYTES, "little")
        # Each message says its length and, where it fits, all of it.
        frames = self._all_gather(length + data[:room], FRAME_BYTES)
        lengths = [int.from_bytes(frame[:LENGTH_BYTES], "little") for frame in frames]
        longest = max(lengths)
        messages = [frame[LENGTH_BYTES:] for frame in frames]
        if longest > room:
            rests = self._all_gather(data[room:], longest - room)
            messages = [first + rest for first, rest in zip(messages, rests, strict=True)]
        return [
            json.loads(message[:length]) for message, length in zip(messages, lengths, strict=True)
        ]

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        """See `Ranks.gather_tensor`."""
        found = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(found, value, group=self._group)
        return found

    def _all_gather(self, data: bytes, size: int) -> list[bytes]:
        """The bytes of all ranks, each filled up to `size`."""
        mine = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
        return [each.numpy().tobytes() for each in self.gather_tensor(mine)]
