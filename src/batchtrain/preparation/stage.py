"""The prepare stage as others call it: return the published data, or make and publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from batchtrain.artifacts import BuildStatus, Draft, find_artifact, prepared_key, reuse_or_build
from batchtrain.artifacts.layout import HASH_CACHE
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PREPARED_DATA, PreparedData
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine
from batchtrain.errors import Problem, SpecError, StorageError, UnsafeInputError
from batchtrain.preparation.own_rows import own_rows
from batchtrain.preparation.prepare import build_prepared_data
from batchtrain.preparation.survey import Survey, survey
from batchtrain.progress import Progress
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.data import FilesSplit, GroupSplit, RandomSplit, StratifiedSplit
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import RunSpec
from batchtrain.spec.task import Task, class_weight_mismatches, task_mismatches
from batchtrain.storage import Storage
from batchtrain.tables import (
    Source,
    content_hashes,
    hash_file,
    open_source,
    open_splits,
    source_contains,
)

__all__ = [
    "find_prepared",
    "open_input",
    "opened_input",
    "prepare",
    "refuse_storage_in_input",
    "survey_input",
]


def prepare(
    loaded: LoadedSpec,
    storage: Storage,
    progress: Progress,
    *,
    engine: Engine | None = None,
    allow_code: Sequence[str] = (),
) -> tuple[PreparedData, BuildStatus]:
    """Prepare the rows of a spec, once for all runs with the same rows and `data` section.

    Args:
        loaded: The spec.
        storage: Where to publish.
        progress: Hears how far it is.
        engine: Carries the work to the rows; left out, this process does it. The result is the
            same bytes.
        allow_code: Packages whose code may run, for rows of a class of the user's.

    Raises:
        SpecError: If the `data` section does not suit the table.
        DataError: If the rows cannot be used.
    """
    refuse_storage_in_input(loaded, storage)
    with opened_input(loaded, allow_code, progress=progress, engine=engine) as source:
        inputs = _inputs(loaded, source, storage, engine or EmbeddedEngine())

        def build(draft: Draft) -> Mapping[str, Any]:
            found = survey_input(loaded, source, engine=engine)
            return build_prepared_data(found, draft, progress, engine=engine)

        key = prepared_key(fingerprint_of(inputs))
        artifact, status = reuse_or_build(storage, key, PREPARED_DATA, inputs=inputs, build=build)
    prepared = PreparedData(artifact)
    check_task(loaded, prepared.task, prepared.classes)
    return prepared, status


def find_prepared(loaded: LoadedSpec, storage: Storage, source: Source) -> PreparedData | None:
    """The published rows of a spec, where they are there; nothing is written.

    Args:
        loaded: The spec.
        storage: Where they would be.
        source: The opened input.
    """
    inputs = _inputs(loaded, source, storage, EmbeddedEngine(), remember=False)
    artifact = find_artifact(storage, prepared_key(fingerprint_of(inputs)), PREPARED_DATA)
    return None if artifact is None else PreparedData(artifact)


@contextmanager
def opened_input(
    loaded: LoadedSpec,
    allow_code: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Iterator[Source]:
    """The input of a spec for as long as the block lasts; see `open_input` and `own_rows`."""
    target = loaded.spec.data.own_rows
    if target is None:
        yield open_input(loaded)
        return
    with own_rows(loaded, target, allow_code, progress=progress, engine=engine) as source:
        yield source


def open_input(loaded: LoadedSpec) -> Source:
    """Find the files of `data.source`, which is relative to the spec file.

    The rows of a class of the user's have none before its code runs; see `opened_input`.
    """
    data = loaded.spec.data
    if data.own_rows is not None:
        return Source(data.source, "parquet", ())
    base = loaded.path.parent
    if isinstance(data.split, FilesSplit):
        return open_splits(data.split.sources(), base=base, null_values=data.null_values)
    return open_source(data.source, base=base, null_values=data.null_values)


def survey_input(loaded: LoadedSpec, source: Source, *, engine: Engine | None = None) -> Survey:
    """Scan the input and decide on columns, task and splits; see `survey.survey`."""
    spec = loaded.spec
    found = survey(spec.data, source, seed=spec.seed, where=loaded.where, engine=engine)
    check_task(loaded, found.task, found.classes)
    return found


def check_task(loaded: LoadedSpec, task: Task, classes: Sequence[str]) -> None:
    """Hold the whole spec against the task and the classes that the target turned out to have.

    Raises:
        SpecError: If the loss, a metric or the weights of the classes do not suit it.
    """
    spec = loaded.spec
    mismatches = [*task_mismatches(spec.training, spec.evaluation, task)]
    if task == "classification":
        mismatches += class_weight_mismatches(spec.training, classes)
    problems = [Problem(loaded.where(key), key, message, hint) for key, message, hint in mismatches]
    if problems:
        raise SpecError(problems)


def refuse_storage_in_input(loaded: LoadedSpec, storage: Storage) -> None:
    """What this run writes must never be what the next run reads.

    Raises:
        UnsafeInputError: If the storage lies among the input's files; nothing needs to exist.
    """
    data, base = loaded.spec.data, loaded.path.parent
    split = data.split
    sources = split.sources() if isinstance(split, FilesSplit) else {"all": data.source}
    for source in sources.values():
        if source_contains(source, base, Path(storage.url())):
            raise UnsafeInputError(
                f"{loaded.where('storage')}  storage: expected a place outside of the input "
                f"{source!r}, found {storage.url()}, so that the next run would read what this "
                "one writes. Move the input or the storage to a folder of its own"
            )


def _inputs(
    loaded: LoadedSpec,
    source: Source,
    storage: Storage,
    engine: Engine,
    *,
    remember: bool = True,
) -> dict[str, Any]:
    """What prepared data depend on: the files' contents, the `data` section, the split's seed.

    Where the files lie plays no part: a moved table is the same table.
    """
    spec = loaded.spec
    section = spec.data.model_dump(mode="json", exclude={"source"})
    if isinstance(spec.data.split, FilesSplit):
        # The name of each file begins with its split.
        section["split"] = {"kind": "files"}
    cache = _StoredHashes(storage)
    hash_files = partial(engine.map_items, function=hash_file)
    hashes = content_hashes(source, cache, hash_files=hash_files)
    if remember:
        cache.save()
    return {
        "stage": "prepare",
        "format": PREPARED_DATA.format,
        "files": [[name, sha256] for name, sha256 in hashes],
        "data": section,
        "seed": _split_seed(spec),
    }


def _split_seed(spec: RunSpec) -> int | None:
    """The run's seed, where the split is drawn with it; runs of other seeds share the rest."""
    rule = spec.data.split
    if isinstance(rule, RandomSplit | StratifiedSplit | GroupSplit):
        return spec.seed if rule.seed is None else None
    return spec.seed if rule is None else None


@dataclass
class _StoredHashes:
    """Content hashes by path, size, mtime and inode, kept beside the prepared data.

    A lost or damaged cache costs time and nothing else, so it is written without ceremony.
    """

    storage: Storage

    def __post_init__(self) -> None:
        self._known: dict[str, str] = {}
        self._changed = False
        try:
            document = json.loads(self.storage.read(HASH_CACHE))
        except (FileNotFoundError, ValueError):
            return
        if isinstance(document, dict):
            self._known = {str(key): str(value) for key, value in document.items()}

    def get(self, key: str) -> str | None:
        """The hash that was put for `key`, or None."""
        return self._known.get(key)

    def put(self, key: str, sha256: str) -> None:
        """Remember a hash."""
        self._known[key] = sha256
        self._changed = True

    def save(self) -> None:
        """Write the cache, if it has anything new and storage takes it."""
        if self._changed:
            with suppress(StorageError):
                self.storage.write(HASH_CACHE, canonical_json(self._known))
