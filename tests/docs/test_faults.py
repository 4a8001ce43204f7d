"""The table of faults, held against the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([RD]\d\d) \| [^|]+ \| [^|]+ \| `(\w+)` \|$", flags=re.MULTILINE)

INTERRUPTIONS = [*range(1, 12), 20, 21, 22, 23, 24, *range(26, 37)]
DATA = [1, 4, 5, 20, 23, 24, 25, 26, 27]


def test_every_fault_has_its_row_and_the_row_a_test_of_its_name() -> None:
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    rows = ROW.findall((ROOT / "docs" / "faults.md").read_text())
    expected = [*(f"R{number:02d}" for number in INTERRUPTIONS), *(f"D{n:02d}" for n in DATA)]
    assert [row for row, _test in rows] == expected
    for row, test in rows:
        assert test in tests
        assert f"_{row.lower()}_" in test
