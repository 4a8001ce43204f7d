"""Whether rows stay in memory: asked for, or by what they need and what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
import torch

from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.machine import choose_machine
from batchtrain.training.memory import available_bytes, choose_rows, decide_rows, resident_bytes
from tests.support.builders import prepared_for, quantity_table, spec_for

GIB = 1 << 30


@pytest.mark.parametrize("available", [0, 10**9, None])
@pytest.mark.parametrize("needed", [0, 10**18])
@pytest.mark.parametrize("asked", ["resident", "streaming"])
def test_what_is_asked_for_is_taken(
    asked: Literal["resident", "streaming"], needed: int, available: int | None
) -> None:
    assert choose_rows(asked, needed, available) == asked


@pytest.mark.parametrize(
    ("needed", "available", "chosen"),
    [
        (39, 100, "resident"),
        (40, 100, "streaming"),
        (41, 100, "streaming"),
        (0, 0, "streaming"),
        (10**18, None, "resident"),
    ],
)
def test_rows_stay_in_memory_where_they_take_less_than_four_tenths_of_it(
    needed: int, available: int | None, chosen: str
) -> None:
    assert choose_rows("auto", needed, available) == chosen


def test_the_rows_of_all_ranks_count_together(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, quantity_table(100), target="y", data={"lanes": 1})
    prepared = prepared_for(loaded)
    alone = choose_machine(ResourcesSpec(device="cpu"))
    # One lane, which every rank holds whole; and ten rows of the validation split, in all.
    row_bytes = 3 * 4 + 4
    needed = {workers: (70 * workers + 10) * row_bytes for workers in (1, 3)}
    for workers, size in needed.items():
        assert sum(resident_bytes(loaded.spec, prepared, workers, 4)) == size
        choices = replace(alone, workers=workers)
        for available, rows in ((size * 10 // 4 + 5, "resident"), (size * 10 // 4, "streaming")):
            found = decide_rows(choices, loaded.spec, prepared, available=available)
            assert found == replace(choices, rows=rows)
    asked = replace(alone, rows="resident")
    assert decide_rows(asked, loaded.spec, prepared, available=1) == asked


# ----------------------------------------------------------------------------------------------
# What is there


def machine_of(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": meminfo(16 * GIB), **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def meminfo(available: int) -> str:
    return f"MemTotal: 99999999 kB\nMemFree: 17 kB\nMemAvailable:   {available // 1024} kB\n"


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
IN_V2 = {"proc/self/cgroup": "0::/jobs/mine\n"}
IN_V1 = {"proc/self/cgroup": "9:cpu,cpuacct:/jobs\n4:memory:/jobs/mine\n0::/\n"}
CASES = {
    "no control groups": ({}, 16 * GIB),
    "no limit": ({**IN_V2, f"{V2}/jobs/mine/memory.max": "max\n"}, 16 * GIB),
    "a limit": (
        {
            **IN_V2,
            f"{V2}/jobs/mine/memory.max": f"{4 * GIB}\n",
            f"{V2}/jobs/mine/memory.current": f"{3 * GIB}\n",
        },
        GIB,
    ),
    "a limit, most of it the cache of files": (
        {
            **IN_V2,
            f"{V2}/jobs/mine/memory.max": f"{4 * GIB}\n",
            f"{V2}/jobs/mine/memory.current": f"{3 * GIB}\n",
            f"{V2}/jobs/mine/memory.stat": f"anon 7\ninactive_file {2 * GIB}\nfile 9\n",
        },
        3 * GIB,
    ),
    "a limit of the group around it": (
        {
            **IN_V2,
            f"{V2}/jobs/mine/memory.max": "max\n",
            f"{V2}/jobs/mine/memory.current": "5\n",
            f"{V2}/jobs/memory.max": f"{2 * GIB}\n",
            f"{V2}/jobs/memory.current": f"{GIB // 2}\n",
        },
        3 * GIB // 2,
    ),
    "a container that sees itself as the root": (
        {**IN_V2, f"{V2}/memory.max": f"{GIB}\n", f"{V2}/memory.current": "0\n"},
        GIB,
    ),
    "a limit that is used up": (
        {
            **IN_V2,
            f"{V2}/jobs/mine/memory.max": f"{GIB}\n",
            f"{V2}/jobs/mine/memory.current": f"{2 * GIB}\n",
        },
        0,
    ),
    "more than the machine has": (
        {
            **IN_V2,
            f"{V2}/jobs/mine/memory.max": f"{64 * GIB}\n",
            f"{V2}/jobs/mine/memory.current": "0\n",
        },
        16 * GIB,
    ),
    "the old control groups": (
        {
            **IN_V1,
            f"{V1}/jobs/mine/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{V1}/jobs/mine/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{V1}/jobs/mine/memory.stat": f"total_inactive_file {GIB}\n",
        },
        2 * GIB,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_memory_that_is_there_is_what_all_limits_leave(tmp_path: Path, case: str) -> None:
    files, expected = CASES[case]
    assert available_bytes("cpu", machine_of(tmp_path, files)) == expected


def test_where_nothing_is_known_of_the_memory_none_is(tmp_path: Path) -> None:
    assert available_bytes("cpu", tmp_path) is None


def test_this_machine_has_some_memory() -> None:
    found = available_bytes("cpu")
    assert found is None or 0 < found < 1 << 50


def test_of_a_gpu_it_is_what_is_free_and_elsewhere_it_is_not_known() -> None:
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "mem_get_info", lambda: (5, 9)),
    ):
        assert available_bytes("cuda") == 5
    with patch.object(torch.cuda, "is_available", lambda: False):
        assert available_bytes("cuda") is None
