"""The checklist of the source notes, held against the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ROWS_OF_NOTE = {0: range(1, 30), 1: range(1, 20), 2: range(1, 19), 3: range(1, 13), 4: range(1, 16)}

ROW = re.compile(r"^\| (\d)\.(\d+) \| ([^|]+) \| ([^|]+) \| (?:`(\w+)` )?\|$", flags=re.MULTILINE)


def rows() -> list[tuple[str, ...]]:
    """ID, capability, status and test of every row."""
    found = ROW.findall((ROOT / "docs" / "checklist.md").read_text())
    return [(f"{note}.{number}", *rest) for note, number, *rest in found]


def acceptance_tests() -> list[str]:
    """The names of all tests of checklist rows."""
    return [
        node.name
        for folder in ("integration", "cluster")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_seed_")
    ]


def test_the_checklist_has_every_row_once_and_in_order() -> None:
    expected = [f"{note}.{number}" for note, numbers in ROWS_OF_NOTE.items() for number in numbers]

    assert len(expected) == 93
    assert [row[0] for row in rows()] == expected


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_works_and_names_its_test_or_says_what_it_waits_for(row: tuple[str, ...]) -> None:
    identity, _, status, test = row

    assert bool(test) == status.startswith("works")
    assert status == "works" or status.startswith(("works; ", "works in part; ", "waits for "))
    assert not test or test.startswith(f"test_seed_{identity.replace('.', '_')}_")


def test_the_checklist_names_the_tests_that_exist() -> None:
    named = [row[3] for row in rows() if row[3]]

    assert sorted(named) == sorted(acceptance_tests())
