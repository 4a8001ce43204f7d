"""Tables as files of the formats that sources are read from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

__all__ = ["write_arrow", "write_hugging_face", "write_hugging_face_splits", "write_json_lines"]


def write_json_lines(path: Path, table: pa.Table) -> None:
    """One object a row; a missing value is null in every second row, else left out."""
    lines = []
    for place, row in enumerate(table.to_pylist()):
        kept = {name: value for name, value in row.items() if value is not None or place % 2}
        lines.append(json.dumps(kept) + "\n")
    path.write_text("".join(lines))


def write_arrow(
    path: Path, table: pa.Table, *, stream: bool = False, batch_rows: int = 1000
) -> None:
    """An Arrow IPC file, or a stream."""
    writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as opened:
        opened.write_table(table, max_chunksize=batch_rows)


def write_hugging_face(folder: Path, tables: Sequence[pa.Table]) -> None:
    """What `Dataset.save_to_disk` writes: Arrow streams, and JSON that says which."""
    folder.mkdir(exist_ok=True)
    names = [f"data-{place:05d}-of-{len(tables):05d}.arrow" for place in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_arrow(folder / name, table, stream=True)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def write_hugging_face_splits(folder: Path, splits: Mapping[str, pa.Table]) -> None:
    """What `DatasetDict.save_to_disk` writes."""
    folder.mkdir(exist_ok=True)
    for name, table in splits.items():
        write_hugging_face(folder / name, [table])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
