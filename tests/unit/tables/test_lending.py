"""What is lent to Arrow's threads is back before reading is over."""

from __future__ import annotations

import io
import weakref
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from batchtrain.errors import DataError
from batchtrain.tables import delimited, open_source
from batchtrain.tables.lending import Lender


def test_whoever_lent_a_file_waits_until_nobody_holds_it() -> None:
    lender = Lender(io.BytesIO(b"abc"))
    held = [lender.lend()]
    loan, asked = weakref.ref(held[0]), Event()

    def let_go() -> None:
        asked.wait()
        held.clear()

    thread = Thread(target=let_go)
    thread.start()
    assert loan() is not None
    asked.set()
    lender.wait()

    assert loan() is None
    thread.join()


def test_what_was_never_lent_is_not_waited_for() -> None:
    Lender(io.BytesIO(b"")).wait()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n1,2,3\n", "a,b\n", "a,b\n1,\xff\n"])
def test_rows_of_csv_are_over_only_when_arrow_has_let_go_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    source = open_source("t.csv", base=tmp_path, null_values=("",))
    loans: list[weakref.ref[Any]] = []
    waited: list[bool] = []
    lend, wait = Lender.lend, Lender.wait

    def lend_watched(self: Lender) -> object:
        loan = lend(self)
        loans.append(weakref.ref(loan))
        return loan

    def wait_watched(self: Lender) -> None:
        wait(self)
        waited.append(loans[-1]() is None)

    monkeypatch.setattr(Lender, "lend", lend_watched)
    monkeypatch.setattr(Lender, "wait", wait_watched)
    try:
        for _table in delimited.read_text(source.files[0], None, ("",)):
            pass
    except DataError:
        assert text != "a,b\n1,2\n"

    assert waited == [True] * len(loans)
    assert loans or "\xff" in text
