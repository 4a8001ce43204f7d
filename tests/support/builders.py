"""What the unit tests build on: tables, specs, storages that fail, and published artifacts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as pa_csv
from pyarrow import parquet as pq

from batchtrain.artifacts import Artifact, ArtifactKind, Draft, RunLayout, reuse_or_build
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import InterruptedRunError
from batchtrain.pipeline import RunResult, StageName, run_spec
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.storage import FolderStorage, Storage
from batchtrain.training.stage import run_layout

THING = ArtifactKind("thing", 1)


def mixed_table(num_rows: int = 90, *, seed: int = 0, gaps: bool = True) -> pa.Table:
    """Two numbers, a category and a flag, the first three with gaps, and a label of 3 classes."""
    random = np.random.default_rng(seed)

    def gap(every: int) -> np.ndarray:
        return (np.arange(num_rows) % every == every // 2) & gaps

    number = random.normal(10, 3, num_rows)
    level = random.integers(0, 4, num_rows)
    label = (number > 10).astype(np.int64) + (level > 2)
    return pa.table(
        {
            "age": pa.array(random.integers(18, 80, num_rows), mask=gap(13)),
            "dose": pa.array(np.round(number, 3), mask=gap(7)),
            "pressure": pa.array(np.array(["LOW", "MID", "HIGH", "TOP"])[level], mask=gap(11)),
            "smoker": pa.array(random.random(num_rows) > 0.5),
            "label": pa.array(np.array(["a", "b", "c"])[label]),
        }
    )


def quantity_table(num_rows: int = 90, *, seed: int = 0, features: int = 3) -> pa.Table:
    """Numeric features `x0`, `x1`, ... and a target `y` that is a quantity."""
    random = np.random.default_rng(seed)
    columns = {f"x{place}": random.normal(place, 1 + place, num_rows) for place in range(features)}
    total = sum(values for values in columns.values())
    return pa.table({**columns, "y": 0.5 * total + random.normal(0, 0.1, num_rows)})


def write_table(path: Path, table: pa.Table) -> Path:
    """Write rows as the ending of the name says."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        pa_csv.write_csv(table, path)
    return path


def spec_for(
    folder: Path,
    table: pa.Table | None = None,
    *,
    target: str = "label",
    file: str = "rows.parquet",
    data: Mapping[str, Any] | None = None,
    **sections: Any,
) -> LoadedSpec:
    """A checked spec in `folder`, next to its rows.

    The defaults are those of the spec, but for a small model, few epochs and no event files.
    """
    if table is not None:
        write_table(folder / file, table)
    document = {
        "version": 1,
        "name": "small",
        "data": {"source": file, "target": target, **(data or {})},
        "model": {"kind": "mlp", "hidden": [8], "dropout": 0.2},
        "training": {"epochs": 3, "batch_size": 16},
        "tracking": {"tensorboard": False},
        **sections,
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(document))
    return load_spec(path)


def storage_of(loaded: LoadedSpec) -> FolderStorage:
    """The storage that a run of this spec uses."""
    return FolderStorage((loaded.path.parent / loaded.spec.storage).resolve())


def prepared_for(loaded: LoadedSpec) -> PreparedData:
    """The prepared data of a spec, in its own storage."""
    return prepare(loaded, storage_of(loaded), Progress())[0]


def layout_for(loaded: LoadedSpec) -> RunLayout:
    """Where the run of a spec lies; its data are prepared if they are not yet."""
    return run_layout(loaded, prepared_for(loaded), storage_of(loaded))


def run(
    loaded: LoadedSpec, *, last: StageName = "export", allow_code: Sequence[str] = ()
) -> RunResult:
    """All stages up to `last`, without a word."""
    return run_spec(loaded, last=last, allow_code=allow_code)


def publish(
    storage: Storage,
    files: Mapping[str, bytes],
    *,
    key: str = "things/one",
    content: Mapping[str, Any] | None = None,
) -> Artifact:
    """A small artifact of kind `thing`."""

    def build(draft: Draft) -> Mapping[str, Any]:
        for name, data in files.items():
            draft.add(name, data)
        return dict(content or {})

    return reuse_or_build(storage, key, THING, inputs={"of": key}, build=build)[0]


def all_files(folder: Path) -> list[str]:
    """Every file below a folder, hidden and temporary ones too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


CREATING = threading.Lock()


@dataclass
class MemoryStorage:
    """A storage in a dictionary, as `Storage` promises it."""

    files: dict[str, bytes] = field(default_factory=dict)

    def url(self, key: str = "") -> str:
        """See `Storage.url`."""
        return f"memory:{key}"

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        if key not in self.files:
            raise FileNotFoundError(key)
        return self.files[key]

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        return len(self.files[key]) if key in self.files else None

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`; its clock stands still."""
        return 0.0 if key in self.files else None

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`: what is in a dictionary is there whole."""
        return []

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self.files[key] = data

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        with CREATING:
            if key in self.files:
                return False
            self.files[key] = data
            return True

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        return sorted(key for key in self.files if key.startswith(f"{prefix}/") or not prefix)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self.files.pop(key, None)


@dataclass
class WatchedStorage:
    """A storage that calls `before` and `after` around each write, so that a test can interfere.

    Both get the verb (`write` or `create`) and the key; what they raise comes out.
    """

    inner: Storage
    before: Callable[[str, str], None] = lambda verb, key: None
    after: Callable[[str, str], None] = lambda verb, key: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self.before("write", key)
        self.inner.write(key, data)
        self.after("write", key)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        self.before("create", key)
        made = self.inner.create(key, data)
        self.after("create", key)
        return made


def slices(table: pa.Table, sizes: Sequence[int]) -> Iterator[pa.Table]:
    """Cut a table into pieces of these sizes, over and over, to its end."""
    start = place = 0
    while start < table.num_rows:
        size = max(1, sizes[place % len(sizes)])
        yield table.slice(start, size)
        start += size
        place += 1


def stop_training(loaded: LoadedSpec, steps: int) -> InterruptedRunError:
    """Stop a training that many steps after it (again) began; the error that it ends with."""
    taken = 0

    def requested() -> bool:
        nonlocal taken
        taken += 1
        return taken == steps

    stopping = patch("batchtrain.training.stage.stop_on_signals", lambda: nullcontext(requested))
    with stopping, pytest.raises(InterruptedRunError) as caught:
        run(loaded, last="train")
    return caught.value


def train_in_parts(loaded: LoadedSpec, stops: Sequence[int]) -> RunResult:
    """Train as a run does that is stopped after so many steps each time, then let it end."""
    for steps in stops:
        stop_training(loaded, steps)
    return run(loaded, last="train")
