"""A random word for each group of rows, from its name and a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchtrain.row_order import counter_generator

__all__ = ["group_words", "philox_words"]

UInt64Array = npt.NDArray[np.uint64]

# Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox 4x64 with ten
# rounds; the constants are those of its tables and of numpy.random.Philox.
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def group_words(groups: Sequence[str], *, seed: int) -> UInt64Array:
    """The word of each group: uint64 `[K]`.

    It is the Philox word at the counter that the SHA-256 of the group's name is, so that neither
    other groups nor the order of the rows play a part.
    """
    digests = b"".join(hashlib.sha256(group.encode()).digest() for group in groups)
    counters = np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, 4)
    key = counter_generator(seed, "split", "groups").state["state"]["key"]
    return philox_words(counters, key)


def philox_words(counters: UInt64Array, key: UInt64Array) -> UInt64Array:
    """The first word of the Philox block at each counter.

    numpy makes a generator for each counter, which takes 30 us; this takes all counters at once.

    Args:
        counters: uint64 `[K, 4]`.
        key: uint64 `[2]`.

    Returns:
        uint64 `[K]`, as `np.random.Philox(key=key, counter=counter - 1).random_raw()` gives them.
    """
    first: UInt64Array
    first, second, third, fourth = counters.T
    keys = [int(word) for word in key]
    for _ in range(ROUNDS):
        high_0, low_0 = _product(MULTIPLIERS[0], first)
        high_1, low_1 = _product(MULTIPLIERS[1], third)
        first, second, third, fourth = (
            high_1 ^ second ^ np.uint64(keys[0]),
            low_1,
            high_0 ^ fourth ^ np.uint64(keys[1]),
            low_0,
        )
        keys = [(word + step) % 2**64 for word, step in zip(keys, KEY_STEPS, strict=True)]
    return first


def _product(factor: int, words: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
    """The upper and the lower 64 bits of a product of 128."""
    factor_high, factor_low = np.uint64(factor >> 32), np.uint64(factor) & LOW
    high, low = words >> HALF, words & LOW
    lower = factor_low * low
    middle = factor_high * low + (lower >> HALF)
    other = factor_low * high + (middle & LOW)
    upper = factor_high * high + (middle >> HALF) + (other >> HALF)
    return upper, (other << HALF) | (lower & LOW)
