"""Texts that are compared with a file of `tests/golden`.

`WRITE_GOLDEN=1 pytest ...` writes the files anew; look at what `git diff` then says.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["GOLDEN", "check_golden"]

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def check_golden(name: str, text: str) -> None:
    """Fail where a text is not that of the golden file of this name."""
    path = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}"
