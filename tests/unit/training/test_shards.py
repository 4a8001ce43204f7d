"""Reading shards: in the order asked, one ahead, checked whoever reads them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.artifacts.prepared import PreparedData, SplitRows, near_equal_bounds
from batchtrain.errors import ArtifactDamagedError, DataError
from batchtrain.models.inputs import ModelInputs
from batchtrain.preparation import shards as writing
from batchtrain.training.plan import TrainingPlan, row_order
from batchtrain.training.rows import Columns, EpochBlocks
from batchtrain.training.shards import (
    CheckedShards,
    ShardReader,
    StoredShards,
    opened,
    read_pieces,
    shards_between,
)
from batchtrain.training.streaming import StreamedRows
from tests.support.builders import WatchedStorage, mixed_table, prepared_for, spec_for

CPU = torch.device("cpu")
LONG = 60.0
"""Seconds after which something that never comes is an error."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """63 training rows in nine shards of seven, three in each lane."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_ROWS", 7)
        folder = tmp_path_factory.mktemp("prepared")
        data = {"lanes": 3, "split": {"kind": "ordered"}}
        return prepared_for(spec_for(folder, mixed_table(90), data=data))


def inputs_of(prepared: PreparedData) -> ModelInputs:
    return ModelInputs(prepared.num_numeric, prepared.cardinalities, prepared.num_classes)


def checked(prepared: PreparedData, reader: ShardReader) -> CheckedShards:
    return CheckedShards(reader, prepared, inputs_of(prepared))


@dataclass
class Altered:
    """Reads from storage and gives something else."""

    prepared: PreparedData
    changes: dict[int, Any] = field(default_factory=dict)

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        for number in shards:
            change = self.changes.get(number, lambda rows: rows)
            yield change(self.prepared.shard(split, number))


def same_rows(found: SplitRows, expected: SplitRows) -> bool:
    names = ("numeric", "codes", "target", "row_id")
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=name == "numeric")
        for name in names
    )


# ----------------------------------------------------------------------------------------------
# Prepared data


def test_the_shards_of_a_split_are_its_rows(prepared: PreparedData) -> None:
    for split in ("train", "valid", "test"):
        whole, bounds = prepared.load(split), prepared.shard_bounds(split)
        assert bounds[-1] == len(whole)
        for number in range(len(bounds) - 1):
            expected = whole[slice(*bounds[number : number + 2])]
            assert same_rows(prepared.shard(split, number), expected)
    assert prepared.shard_bounds("train").tolist() == list(range(0, 64, 7))


@settings(max_examples=50)
@given(num_rows=st.integers(0, 10**6), lanes=st.integers(1, 9), at_most=st.integers(1, 10**5))
def test_the_bounds_are_those_that_the_shards_were_written_with(
    num_rows: int, lanes: int, at_most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_ROWS", at_most)
        written = writing.shard_bounds(num_rows, lanes)
    assert near_equal_bounds(num_rows, len(written) - 1).tolist() == written


def shorter(rows: SplitRows) -> SplitRows:
    return rows[slice(0, 6)]


def one_more_column(rows: SplitRows) -> SplitRows:
    return replace(rows, numeric=np.ones((len(rows), rows.numeric.shape[1] + 1), np.float32))


def twice_the_same(rows: SplitRows) -> SplitRows:
    return replace(rows, row_id=np.repeat(rows.row_id[:1], len(rows)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shorter, "expected 7 rows in .*, found 6"),
        (one_more_column, "expected 3 numeric and 1 categorical columns in .*, found 4 and 1"),
        (twice_the_same, r"expected ascending row numbers in .*, found (\d+) after \1"),
        (lambda rows: rows[slice(None, None, -1)], "expected ascending row numbers"),
    ],
)
def test_d26_rows_that_no_shard_can_have_are_damage_with_its_place(
    prepared: PreparedData, change: Any, said: str
) -> None:
    rows = change(prepared.shard("train", 4))
    with pytest.raises(ArtifactDamagedError, match=said) as caught:
        prepared.check_shard("train", 4, rows)
    assert prepared.artifact.file_url("train/00004.parquet") in str(caught.value)
    assert f"delete the folder {prepared.artifact.url} and prepare again" in str(caught.value)
    with pytest.raises(ArtifactDamagedError, match=said):
        list(checked(prepared, Altered(prepared, {4: change}))("train", range(9)))


def test_a_whole_split_is_checked_shard_by_shard(prepared: PreparedData) -> None:
    found = WatchedReads(prepared.artifact.storage)
    watched = PreparedData(replace(prepared.artifact, storage=found))
    watched.load("train")
    assert found.names == prepared.shard_names("train")


# ----------------------------------------------------------------------------------------------
# From storage


class WatchedReads(WatchedStorage):
    """A storage that remembers which shards are read, and waits or fails where it is told to."""

    def __init__(self, inner: Any, *, fails_at: str = "", waits_at: str = "") -> None:
        super().__init__(inner)
        self.names: list[str] = []
        self.begun = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.fails_at = fails_at
        self.waits_at = waits_at

    def read(self, key: str) -> bytes:
        self.names.append("/".join(Path(key).parts[-2:]))
        self.begun.release()
        if self.names[-1] == self.waits_at:
            assert self.may_go_on.wait(LONG)
        if self.names[-1] == self.fails_at:
            raise OSError("the cable is out")
        data: bytes = self.inner.read(key)
        return data


def stored(prepared: PreparedData, **faults: str) -> tuple[StoredShards, WatchedReads]:
    storage = WatchedReads(prepared.artifact.storage, **faults)
    return StoredShards(PreparedData(replace(prepared.artifact, storage=storage))), storage


@pytest.mark.parametrize("asked", [[], [3], [0, 1, 2], [8, 0, 4, 4]])
def test_stored_shards_come_in_the_order_asked(prepared: PreparedData, asked: list[int]) -> None:
    reader, storage = stored(prepared)
    found = list(reader("train", asked))
    assert len(found) == len(asked)
    for rows, number in zip(found, asked, strict=True):
        assert same_rows(rows, prepared.shard("train", number))
    assert storage.names == [f"train/{number:05d}.parquet" for number in asked]


def test_one_shard_is_read_ahead_and_no_more(prepared: PreparedData) -> None:
    reader, storage = stored(prepared)
    shards = reader("train", range(9))
    assert storage.names == []
    next(shards)
    for _ in range(2):
        assert storage.begun.acquire(timeout=LONG)
    next(shards)
    assert storage.begun.acquire(timeout=LONG)
    shards.close()
    assert storage.names == [f"train/{number:05d}.parquet" for number in range(3)]


def test_a_shard_that_cannot_be_read_is_an_error_in_its_place(prepared: PreparedData) -> None:
    reader, storage = stored(prepared, fails_at="train/00002.parquet")
    shards = reader("train", range(9))
    # It has failed by the time that the one before it is asked for, and that one comes.
    next(shards)
    next(shards)
    for _ in range(3):
        assert storage.begun.acquire(timeout=LONG)
    with pytest.raises(OSError, match="cable"):
        next(shards)
    assert next(shards, None) is None
    assert len(storage.names) == 3


def test_closing_waits_for_what_is_being_read_and_ends_the_thread(prepared: PreparedData) -> None:
    reader, storage = stored(prepared, waits_at="train/00001.parquet")
    before = threading.active_count()
    shards = reader("train", range(9))
    next(shards)
    assert threading.active_count() == before + 1
    storage.may_go_on.set()
    shards.close()
    assert threading.active_count() == before
    assert len(storage.names) == 2


def test_whatever_reads_ahead_ends_with_the_block_that_reads(prepared: PreparedData) -> None:
    reader, _storage = stored(prepared)
    before = threading.active_count()
    with opened(reader, "train", [0, 1]) as found:
        next(found)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    # A reader that is no generator has nothing to let go of.
    with opened(lambda split, shards: iter([]), "train", []) as found:
        assert list(found) == []


# ----------------------------------------------------------------------------------------------
# Checks of what any reader gives


def test_d26_other_rows_than_the_first_time_are_damage(prepared: PreparedData) -> None:
    def later(rows: SplitRows) -> SplitRows:
        row_id = rows.row_id.copy()
        row_id[-1] += 1
        return replace(rows, row_id=row_id)

    reader = Altered(prepared)
    shards = checked(prepared, reader)
    for _ in range(2):
        assert len(list(shards("train", [8, 2, 5]))) == 3
    reader.changes[8] = later
    with pytest.raises(ArtifactDamagedError, match="that were here before") as caught:
        list(shards("train", [2, 8]))
    assert prepared.artifact.file_url("train/00008.parquet") in str(caught.value)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_two_shards_in_each_others_place_are_damage_though_each_is_whole(
    prepared: PreparedData, order: list[int]
) -> None:
    swapped = {
        1: lambda _rows: prepared.shard("train", 3),
        3: lambda _rows: prepared.shard("train", 1),
    }
    with pytest.raises(ArtifactDamagedError, match="row numbers between those of the shards"):
        list(checked(prepared, Altered(prepared, swapped))("train", order))


def test_a_reader_that_ends_too_early_is_an_error_that_names_the_shard(
    prepared: PreparedData,
) -> None:
    def short(split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        return iter([prepared.shard(split, number) for number in shards[:-1]])

    with pytest.raises(ArtifactDamagedError, match="found the end") as caught:
        list(checked(prepared, short)("train", [4, 6, 7]))
    assert "train/00007.parquet" in str(caught.value)


@pytest.mark.parametrize("code", [-1, 1000])
def test_a_code_that_its_column_does_not_have_is_an_error(
    prepared: PreparedData, code: int
) -> None:
    def other(rows: SplitRows) -> SplitRows:
        codes = rows.codes.copy()
        codes[3, 0] = code
        return replace(rows, codes=codes)

    shards = checked(prepared, Altered(prepared, {5: other}))
    with pytest.raises(DataError, match=rf"found {code} in row 3"):
        list(shards("train", range(9)))


def test_splits_are_checked_apart(prepared: PreparedData) -> None:
    shards = checked(prepared, StoredShards(prepared))
    for split in ("valid", "train", "test", "valid"):
        size = len(prepared.shard_names(split))
        assert sum(map(len, shards(split, range(size)))) == prepared.num_rows(split)


# ----------------------------------------------------------------------------------------------
# Pieces


@settings(max_examples=100, deadline=None)
@given(num_rows=st.integers(0, 40), num_shards=st.integers(1, 12), data=st.data())
def test_shards_between_are_those_with_a_row_there(
    num_rows: int, num_shards: int, data: st.DataObject
) -> None:
    bounds = near_equal_bounds(num_rows, num_shards)
    first = data.draw(st.integers(0, num_rows))
    end = data.draw(st.integers(first, num_rows))
    expected = [
        number
        for number in range(num_shards)
        if set(range(bounds[number], bounds[number + 1])) & set(range(first, end))
    ]
    assert shards_between(bounds, first, end) == expected


@settings(max_examples=100, deadline=None)
@given(edges=st.lists(st.integers(0, 63), min_size=1, max_size=8).map(sorted))
def test_pieces_are_the_rows_between_their_edges_and_each_shard_is_read_once(
    prepared: PreparedData, edges: list[int]
) -> None:
    whole, bounds = prepared.load("train"), prepared.shard_bounds("train")
    asked: list[int] = []

    def reader(split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        for number in shards:
            asked.append(number)
            yield prepared.shard(split, number)

    pieces = list(read_pieces(reader, "train", bounds, edges, Columns.of(prepared)))
    assert [len(piece) for piece in pieces] == np.diff(edges).tolist()
    for piece, first, end in zip(pieces, edges[:-1], edges[1:], strict=True):
        assert piece.numeric_NF.numpy().tobytes() == whole.numeric[first:end].tobytes()
        assert piece.codes_NC.numpy().tobytes() == whole.codes[first:end].tobytes()
        assert piece.target_N.numpy().tobytes() == whole.target[first:end].tobytes()
    assert asked == shards_between(bounds, edges[0], edges[-1])


# ----------------------------------------------------------------------------------------------
# Memory


@dataclass
class Counted:
    """Makes the rows of each shard anew, and counts those that are held at a time."""

    rows: SplitRows
    bounds: np.ndarray
    made: list[weakref.ref[SplitRows]] = field(default_factory=list)
    most: int = 0

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        for number in shards:
            part = self.rows[slice(*self.bounds[number : number + 2])]
            self.made.append(weakref.ref(part))
            self.most = max(self.most, sum(each() is not None for each in self.made))
            yield part
            del part


def test_loading_holds_no_second_copy_of_more_than_a_shard(prepared: PreparedData) -> None:
    reader = Counted(prepared.load("train"), prepared.shard_bounds("train"))
    columns = Columns.of(prepared)
    for edges in ([0, 63], [0, 20, 40, 63]):
        list(read_pieces(checked(prepared, reader), "train", reader.bounds, edges, columns))
    train = StreamedRows(checked(prepared, reader), reader.bounds, columns, CPU)
    blocks = EpochBlocks.of(
        TrainingPlan(row_order(prepared, seed=1), batch_rows=8, epochs=1),
        range(1),
        1,
        epoch=0,
        first_step=0,
        gather_rows=8,
    )
    list(train.batches(blocks))
    assert len(reader.made) == 27
    assert reader.most == 1
