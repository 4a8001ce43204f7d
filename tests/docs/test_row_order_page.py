"""The page on the order of rows: its examples run, and its picture shows the order of the code."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from batchtrain.preparation import shards
from batchtrain.row_order import WINDOW_ROWS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "row-order.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def picture() -> ModuleType:
    """The script that draws, as a module."""
    location = importlib.util.spec_from_file_location("draw_row_order", DOCS / "draw_row_order.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


def test_the_examples_of_the_page_are_true() -> None:
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") > 0
    for number, block in enumerate(blocks):
        runner = doctest.DocTestRunner(verbose=False)
        found: list[str] = []
        examples = doctest.DocTestParser().get_doctest(block, names, f"block {number}", None, 0)
        runner.run(examples, out=found.append, clear_globs=False)
        names = examples.globs
        assert "".join(found) == ""
        assert runner.tries > 0


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    assert f"({WINDOW_ROWS:,}, written into the manifest)" in PAGE
    assert "1 GiB" in PAGE
    assert shards.SMALL_BYTES == 2**30
    assert f"and {shards.MANY_LANES} from there on" in PAGE


def test_the_picture_shows_the_order_of_the_code(picture: ModuleType) -> None:
    """If it differs: python docs/draw_row_order.py."""
    assert f"[{', '.join(picture.order_in_words().split())}]" in PAGE
    drawn = (DOCS / "row-order.svg").read_text(encoding="utf-8")
    described = re.findall(r"<dc:description>(.*?)</dc:description>", drawn)
    assert described == [picture.order_in_words()]


def test_the_picture_is_drawn_to_the_same_bytes_each_time(picture: ModuleType) -> None:
    assert picture.draw() == picture.draw()
