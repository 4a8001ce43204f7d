from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from batchtrain.reporting.card import render_model_card
from batchtrain.reporting.content import ColumnRow, ReportContent, SplitSummary

HOSTILE = [
    "<script>alert(1)</script>",
    "<b onclick=x>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<https://example.org>",
    "a | b",
    "`code` and ``more",
    "**bold** _slanted_ ~~gone~~",
    "# heading",
    "1. list",
    "12) list",
    "- list",
    "+ list",
    "> quoted",
    "---",
    "===",
    "&lt;b&gt; &copy;",
    "a\n\n# b\n| c |\n```\nd",
    "back\\",
    "{{7*7}}",
]


def tokens(markdown: str) -> list[Token]:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [token for block in reader.parse(markdown) for token in (block, *(block.children or ()))]


@pytest.mark.parametrize("text", HOSTILE)
def test_x14_no_text_marks_anything_up(
    text: str, make_classification: Callable[[Sequence[str]], ReportContent]
) -> None:
    found = tokens(render_model_card(make_classification([text, text + "2"])))
    expected = tokens(render_model_card(make_classification(["m", "m2"])))

    kinds = Counter(token.type for token in found if token.type != "text_special")
    kinds["text"] = 0
    calm = Counter(token.type for token in expected)
    calm["text"] = 0
    assert kinds == calm
    assert not {"html_inline", "html_block", "link_open", "image"} & set(kinds)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\n" not in text])
def test_a_text_reads_as_it_is(
    text: str, make_classification: Callable[[Sequence[str]], ReportContent]
) -> None:
    reader = MarkdownIt("commonmark").enable("table")
    blocks = reader.parse(render_model_card(make_classification([text, "b"])))
    heading = next(block for block in blocks if block.type == "inline")

    assert "".join(child.content for child in heading.children or ()) == f"Model card: {text}"


def test_addresses_do_not_become_links(
    make_classification: Callable[[Sequence[str]], ReportContent],
) -> None:
    card = render_model_card(make_classification(["https://a.b www.a.b mailto:x@y.z", "b"]))

    assert not [part for part in ("https://", "www.a", "x@y") if part in card]


def test_common_names_are_not_littered_with_escapes(classification: ReportContent) -> None:
    column = ColumnRow("Na_to_K", "numeric", "feature", 4, "mean: 16.1", "", minimum=6, maximum=38)
    card = render_model_card(replace(classification, columns=[column]))

    assert "| Na_to_K | numeric | 6 to 38 |" in card


def test_the_card_says_what_how_well_and_how_to_use_it(classification: ReportContent) -> None:
    card = render_model_card(
        replace(classification, splits=[SplitSummary("train", 140), SplitSummary("test", 40)])
    )

    assert card.startswith("# Model card: DrugY\n")
    assert "Verdict: **accepted**" in card
    assert "Classes: DrugY, drugA, drugB, drugC, drugX." in card
    assert "one row is 0.025 of a share such as accuracy" in card
    assert "batchtrain predict BUNDLE new.csv --out predictions.parquet" in card
    assert "load_bundle(" in card
    assert "None" not in card


def test_a_metric_without_a_value_gives_its_reason(classification: ReportContent) -> None:
    card = render_model_card(
        replace(
            classification,
            metrics={"test": {"auroc": None}, "valid": {"accuracy": 1.0}},
            metric_notes={"test": {"auroc": "class b has no row"}},
        )
    )

    assert "| auroc | n/a (class b has no row) | - |" in card


def test_nothing_changed_is_said(regression: ReportContent) -> None:
    assert "Nothing was dropped, filled or coerced." in render_model_card(regression)
