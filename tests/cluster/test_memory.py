"""An input larger than what Ray and the processes may hold goes through all the same."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.ray import RayEngine
from batchtrain.engines.session import RaySession
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import FolderStorage
from tests.support.builders import spec_for

pytestmark = [pytest.mark.ray, pytest.mark.long]

STORE_BYTES = 80 * 10**6
"""Of the object store: about the least that Ray takes."""

ROWS = 3_000_000
FEATURES = 32
GROWTH_BYTES = 500 * 10**6
"""What a process may take beyond what it had, of an input of 780 MB.

Most of it is a shard of each split on its way to storage, and a few blocks.
"""


@pytest.fixture(scope="module")
def capped() -> Iterator[RaySession]:
    """A Ray of two cores with a small object store."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield RaySession()
    ray.shutdown()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LoadedSpec:
    """A spec for Parquet files of 780 MB together."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "rows").mkdir()
    random = np.random.default_rng(0)
    files = 4
    for place in range(files):
        rows = ROWS // files
        columns = {f"x{column}": random.normal(size=rows) for column in range(FEATURES)}
        table = pa.table({**columns, "y": random.integers(0, 3, rows)})
        path = folder / "rows" / f"{place}.parquet"
        pq.write_table(
            table, path, row_group_size=100_000, compression="none", use_dictionary=False
        )
    return spec_for(folder, target="y", data={"source": "rows"})


def private_bytes() -> Counter[int]:
    """What this process and all below it hold for themselves, by process number."""
    parents, held = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                lines = (entry / "status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                parents[int(entry.name)] = int(status["PPid"])
                held[int(entry.name)] = int(status.get("RssAnon", "0").split()[0]) * 1024
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return Counter({pid: held[pid] for pid in below})


@contextmanager
def watched() -> Iterator[Counter[int]]:
    """The most that each process holds while the block runs."""
    peaks: Counter[int] = Counter()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            for pid, held in private_bytes().items():
                peaks[pid] = max(peaks[pid], held)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peaks
    finally:
        stop.set()
        watching.join()


@pytest.mark.timeout(400)
def test_an_input_of_many_times_the_store_is_prepared_in_bounded_memory(
    capped: RaySession, large: LoadedSpec
) -> None:
    storage = FolderStorage(large.path.parent / "by-ray")
    before = private_bytes()
    with watched() as peaks:
        by_ray = prepare(large, storage, Progress(), engine=RayEngine(capped))[0]
    size = sum(path.stat().st_size for path in (large.path.parent / "rows").iterdir())
    assert size > 5 * STORE_BYTES
    grown = {pid: peak - before[pid] for pid, peak in peaks.items()}
    assert max(grown.values()) < GROWTH_BYTES < size
    here = FolderStorage(large.path.parent / "here")
    embedded = prepare(large, here, Progress(), engine=EmbeddedEngine())[0]
    assert by_ray.artifact.manifest.digest == embedded.artifact.manifest.digest
