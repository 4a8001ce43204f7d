"""The words of groups are those of Philox at the hash of each group's name."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.preparation.group_words import group_words, philox_words

WORD = st.integers(0, 2**64 - 1)


@given(counter=st.lists(WORD, min_size=4, max_size=4), key=st.lists(WORD, min_size=2, max_size=2))
def test_numpy_gives_the_same_words(counter: list[int], key: list[int]) -> None:
    found = philox_words(np.array([counter], np.uint64), np.array(key, np.uint64))
    whole = sum(word << (64 * place) for place, word in enumerate(counter))
    # numpy counts up before it makes a block.
    before = (whole - 1) % 2**256
    words = np.array([(before >> (64 * place)) % 2**64 for place in range(4)], np.uint64)
    generator = np.random.Philox(counter=words, key=np.array(key, np.uint64))
    assert found.dtype == np.uint64
    assert found[0] == generator.random_raw()


def test_a_word_follows_from_the_name_and_the_seed_alone() -> None:
    names = ["a", "b", "", "ä", "7"]
    words = group_words(names, seed=42)
    assert len(set(words.tolist())) == len(names)
    assert group_words(names[::-1], seed=42).tolist() == words[::-1].tolist()
    assert group_words(["b"], seed=42)[0] == words[1]
    assert not np.isin(group_words(names, seed=43), words).any()
    assert group_words([], seed=42).tolist() == []


def test_the_words_are_the_golden_ones() -> None:
    # Golden: a group never moves to another split, whatever the versions of libraries.
    assert group_words(["a", "patient-7"], seed=42).tolist() == GOLDEN
    key = np.frombuffer(hashlib.sha256(b"42/split/groups").digest()[:16], "<u8").astype(np.uint64)
    digest = int.from_bytes(hashlib.sha256(b"a").digest(), "little")
    before = np.array([((digest - 1) >> (64 * place)) % 2**64 for place in range(4)], np.uint64)
    assert np.random.Philox(counter=before, key=key).random_raw() == GOLDEN[0]


GOLDEN = [13858375540930759507, 14767126216535075197]
