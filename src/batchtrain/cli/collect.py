"""Show and delete what killed runs left on a storage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchtrain.artifacts.garbage import Garbage, delete_garbage, find_garbage, storage_time
from batchtrain.cli.outcome import plain
from batchtrain.errors import StorageError
from batchtrain.spec.load import load_spec
from batchtrain.storage import Storage, is_address, open_storage

__all__ = ["collect", "show_collected"]

SPEC_ENDINGS = (".yaml", ".yml")
HOUR_SECONDS = 3600.0
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def collect(place: str, *, older_than_hours: float, dry_run: bool) -> dict[str, Any]:
    """Find the garbage of a storage and delete it, unless it is a dry run.

    Args:
        place: A folder, an address, or a spec file, whose storage is then meant.
        older_than_hours: What was written since then stays.
        dry_run: Whether to touch nothing.

    Returns:
        What `--json` prints: `storage`, `dry_run`, `deleted` and `kept` (or in a dry run `found`
        in place of `deleted`), each a list of `key`, `size` and `why`, and `bytes` in sum.

    Raises:
        SpecError: If the spec file cannot be read.
        StorageError: If there is no such storage, or it refuses.
    """
    storage = _opened(place)
    now = time.time()
    if not dry_run:
        # A store's clock may be behind or ahead; of two answers the one that deletes less.
        measured = storage_time(storage)
        now = now if measured is None else min(now, measured)
    found = find_garbage(storage, older_than_seconds=older_than_hours * HOUR_SECONDS, now=now)
    gone = [each for each in found if not each.is_kept]
    if not dry_run:
        gone = delete_garbage(storage, found)
    return {
        "storage": storage.url(),
        "dry_run": dry_run,
        "found" if dry_run else "deleted": _listed(gone),
        "kept": _listed([each for each in found if each.is_kept]),
        "bytes": sum(each.size for each in gone),
    }


def show_collected(document: dict[str, Any]) -> None:
    """Print what `collect` gave, for people: one line a file, then the sum."""
    gone = document["found"] if document["dry_run"] else document["deleted"]
    rows = [*gone, *document["kept"]]
    width = max((len(plain(each["key"])) for each in rows), default=0)
    for each in rows:
        print(f"{_size(each['size']):>10}  {plain(each['key']):<{width}}  {plain(each['why'])}")
    verb = "would be deleted" if document["dry_run"] else "deleted"
    files = f"{len(gone)} file{'' if len(gone) == 1 else 's'}"
    kept = f", {len(document['kept'])} kept" if document["kept"] else ""
    text = f"{files} {verb}, {_size(document['bytes'])} in sum{kept}, in {document['storage']}"
    print(plain(text))


def _opened(place: str) -> Storage:
    if place.endswith(SPEC_ENDINGS) and not is_address(place):
        loaded = load_spec(Path(place))
        return _existing(loaded.spec.storage, loaded.path.parent)
    return _existing(place, Path.cwd())


def _existing(text: str, base: Path) -> Storage:
    """The storage; a folder must be there, since a wrong name would look like a clean storage."""
    if not is_address(text):
        folder = base / Path(text).expanduser()
        if not folder.is_dir():
            raise StorageError(
                f"expected the folder of a storage, found none at {folder}. Pass the folder, the "
                "address or the spec file of the runs to clean up after"
            )
    return open_storage(text, base)


def _listed(found: Sequence[Garbage]) -> list[dict[str, Any]]:
    names = ("key", "size", "why")
    return [{name: asdict(each)[name] for name in names} for each in found]


def _size(size: int) -> str:
    """Bytes as people read them.

    Example:
        >>> _size(0), _size(2048), _size(3_500_000)
        ('0 B', '2.0 KiB', '3.3 MiB')
    """
    number = float(size)
    unit = 0
    while number >= 1024 and unit < len(UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:.1f} {UNITS[unit]}" if unit else f"{size} B"
