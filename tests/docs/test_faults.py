"""The table of faults, held against the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([RDJ]\d\d) \| [^|]+ \| [^|]+ \| `(\w+)` \|$", flags=re.MULTILINE)
IDENTITY = re.compile(r"_([rdj]\d\d)(?=_)")


def rows() -> list[tuple[str, str]]:
    """ID and test of every row."""
    return ROW.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))


def all_tests() -> set[str]:
    """The names of all tests."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_is_there_once_in_order_and_has_a_test_of_its_name() -> None:
    tests, page = all_tests(), (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    found = [row for row, _test in rows()]

    assert len(found) == len(set(found)) == len(re.findall(r"^\| [A-Z]\d\d ", page, re.MULTILINE))
    assert found == sorted(found, key=lambda row: ("RDJ".index(row[0]), row))
    for row, test in rows():
        assert test in tests
        assert f"_{row.lower()}_" in test


def test_every_fault_that_a_test_names_has_its_row() -> None:
    named = {each.upper() for test in all_tests() for each in IDENTITY.findall(test)}

    assert named == {row for row, _test in rows()}
