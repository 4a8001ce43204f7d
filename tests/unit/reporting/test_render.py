from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import matplotlib as mpl
import pytest

from batchtrain.reporting.content import (
    ColumnRow,
    ConfusionData,
    PrimaryMetric,
    ReportContent,
    RequirementRow,
    SplitSummary,
)
from batchtrain.reporting.render import render_report
from batchtrain.reporting.wording import visible

MakeClassification = Callable[[Sequence[str]], ReportContent]
MakeRegression = Callable[[str], ReportContent]
Parse = Callable[[str], Any]

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "' onmouseover='alert(1)",
    "</title></style></svg><h1>gone</h1>",
    "<!-- --><![CDATA[ ]]> <?php ?>",
    "javascript:alert(1)",
    "https://example.org/x.js url(https://example.org)",
    "{{7*7}} {% include '/etc/passwd' %} {# #}",
    r"$\frac{a}{b}$ and $\undefined{$ and a lone $",
    "&lt;b&gt; &amp; &#x3C;i&#x3E;",
    "a\x00\x1b[31mb\x7f\u0085\r\n\tc\u2028d",
    "\u202eright to left\u202c\u200f\u2066x",
    "\ud800 lone \ufffe \ufdd0",
    "\u65e5\u672c\u8a9e \u05e9\u05dc\u05d5\u05dd \U0001f600 of several scripts",
    "x" * 500,
]


CALM = "m" * 30
"""So long that the plots shorten and slant it, as they do with each of the others."""


@pytest.fixture(scope="module")
def calm_pages(make_classification: MakeClassification, parse: Parse) -> dict[int, Any]:
    """By number of classes: a page with nothing hostile in it."""
    return {
        size: parse(render_report(make_classification([f"{CALM}{index}" for index in range(size)])))
        for size in (2, len(HOSTILE))
    }


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_x14_no_text_adds_an_element_or_an_attribute(
    text: str,
    make_classification: MakeClassification,
    parse: Parse,
    calm_pages: dict[int, Any],
) -> None:
    page = parse(render_report(make_classification([text, text + "2"])))

    assert page.elements == calm_pages[2].elements
    assert page.text.count(visible(text)) >= 20


def test_x14_all_hostile_classes_together_stay_text(
    make_classification: MakeClassification, parse: Parse, calm_pages: dict[int, Any]
) -> None:
    page = parse(render_report(make_classification(HOSTILE)))

    assert page.elements == calm_pages[len(HOSTILE)].elements
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "img",
        "iframe",
        "object",
        "link",
        "a",
    }


@pytest.mark.parametrize("text", [HOSTILE[1], HOSTILE[3], HOSTILE[8]], ids=range(3))
def test_x14_no_text_adds_an_element_or_an_attribute_to_a_regression(
    text: str, make_regression: MakeRegression, parse: Parse
) -> None:
    page = parse(render_report(make_regression(text)))

    assert page.elements == parse(render_report(make_regression(CALM))).elements


def test_x14_the_page_refers_to_nothing_but_itself(
    make_classification: MakeClassification, parse: Parse
) -> None:
    html = render_report(make_classification(HOSTILE))
    page = parse(html)

    assert page.values("src", "srcset", "action", "xmlns", "data") == []
    assert {value[:1] for value in page.values("href", "xlink:href")} == {"#"}
    urls = [url for value in page.values("style", "clip-path") for url in _urls(value)]
    assert urls
    assert {url[:1] for url in urls} == {"#"}
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|<", style[1])


def _urls(value: str) -> list[str]:
    return re.findall(r"url\((.*?)\)", value)


def test_x14_the_content_security_policy_allows_styles_and_embedded_images_only(
    classification: ReportContent, parse: Parse
) -> None:
    page = parse(render_report(classification))

    assert page.elements["meta", ("content", "http-equiv")] == 1
    assert page.values("http-equiv") == ["Content-Security-Policy"]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in page.values("content")


def test_x14_no_control_character_reaches_the_page(make_classification: MakeClassification) -> None:
    html = render_report(make_classification(HOSTILE))

    assert not re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", html
    )
    html.encode("utf-8")


def test_mathematics_in_a_name_is_shown_as_it_is(
    make_classification: MakeClassification, parse: Parse
) -> None:
    page = parse(render_report(make_classification([r"$\frac{a}{b}$", r"$x^2$"])))

    assert r"$\frac{a}{b}$" in page.svg_texts


def test_ids_are_unique_and_every_reference_has_one(
    classification: ReportContent, regression: ReportContent, parse: Parse
) -> None:
    for content in (classification, replace(classification, regression=regression.regression)):
        page = parse(render_report(content))
        ids = page.values("id")
        references = [
            *page.values("href"),
            *(url for value in page.values("style", "clip-path") for url in _urls(value)),
        ]

        assert len(ids) == len(set(ids))
        assert {reference.removeprefix("#") for reference in references} <= set(ids)


def test_the_same_content_gives_the_same_bytes_whatever_matplotlib_is_set_to(
    classification: ReportContent,
) -> None:
    first = render_report(classification)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        second = render_report(classification)
        assert dict(mpl.rcParams) == before

    assert second == first


def test_the_sections_come_in_order(classification: ReportContent) -> None:
    html = render_report(classification)

    assert re.findall(r'<section id="(\w+)">', html) == [
        "stages",
        "data",
        "learning",
        "predictions",
        "metrics",
        "changes",
        "model",
        "environment",
        "spec",
    ]


@pytest.mark.parametrize(
    ("passed", "verdict"),
    [((), "no requirement"), ((True, True), "accepted"), ((True, False), "rejected")],
)
def test_the_verdict_follows_the_requirements(
    classification: ReportContent, parse: Parse, passed: tuple[bool, ...], verdict: str
) -> None:
    rows = [RequirementRow("accuracy", ">= 0.9", 0.9, ok) for ok in passed]
    page = parse(render_report(replace(classification, requirements=rows)))

    shown = [word for word in ("no requirement", "accepted", "rejected") if word in page.text]
    assert shown == [verdict]


def test_a_metric_without_a_value_gives_its_reason(
    classification: ReportContent, parse: Parse
) -> None:
    content = replace(
        classification,
        metrics={"valid": {"auroc": None, "log_loss": None}, "test": {"auroc": 0.9981}},
        metric_notes={"valid": {"auroc": "class drugB has no row"}},
        primary=PrimaryMetric("auroc", "valid", None),
    )
    text = parse(render_report(content)).text

    assert "n/a: auroc of the valid split, class drugB has no row" in text
    assert "n/a: log_loss of the valid split, not computed" in text
    assert "0.9981" in text
    assert "None" not in text


def test_numbers_have_four_significant_digits(classification: ReportContent, parse: Parse) -> None:
    content = replace(
        classification, primary=PrimaryMetric("accuracy", "test", 0.92345678), metrics={}
    )
    text = parse(render_report(content)).text

    assert "0.9235" in text
    assert "0.92345" not in text


def test_nothing_changed_is_said(classification: ReportContent, parse: Parse) -> None:
    text = parse(render_report(replace(classification, changes=()))).text

    assert "Nothing: every row and every cell was used as it came." in text


def test_changes_are_counted(classification: ReportContent, parse: Parse) -> None:
    text = parse(render_report(classification)).text

    assert "Nothing: every row" not in text


def test_a_run_without_valid_split_says_so(regression: ReportContent, parse: Parse) -> None:
    page = parse(render_report(regression))

    assert "There is no valid split" in page.text
    assert "valid" not in page.svg_texts
    assert "train" in page.svg_texts


def test_seed_1_17_learned_numbers_stand_beside_the_true_ones(
    regression: ReportContent, parse: Parse
) -> None:
    text = " ".join(parse(render_report(regression)).text.split())

    assert "0.7000 0.6900 -0.01000" in " ".join(re.split(r"\s+", _cells(render_report(regression))))
    assert "Learned against true" in text


def _cells(html: str) -> str:
    return re.sub(r"<[^>]*>", " ", html)


def test_a_regression_on_several_features_has_one_plot(
    regression: ReportContent, parse: Parse
) -> None:
    assert regression.regression is not None
    several = replace(regression, regression=replace(regression.regression, line=None))

    assert "predictions" in parse(render_report(regression)).svg_texts
    page = parse(render_report(several))
    assert "predictions" not in page.svg_texts
    assert "Actual" in page.svg_texts


def test_a_sample_of_the_rows_is_called_one(regression: ReportContent, parse: Parse) -> None:
    assert regression.regression is not None
    sampled = replace(regression, regression=replace(regression.regression, rows=5000))

    assert "2 of 5,000 rows, sampled." in parse(render_report(sampled)).text


def test_more_than_fifty_classes_become_a_table_of_the_most_confused(
    classification: ReportContent, parse: Parse
) -> None:
    names = [f"class {index}" for index in range(60)]
    matrix = [[9 if t == p else 0 for p in range(60)] for t in range(60)]
    matrix[3][59] = 3
    confusion = ConfusionData("test", names, matrix)
    page = parse(render_report(replace(classification, confusion=confusion)))

    assert "True" not in page.svg_texts
    assert "Most confused pairs, test split" in page.text
    assert "0.2500" in page.text


def test_a_run_of_which_little_is_known_still_has_a_page(parse: Parse) -> None:
    content = ReportContent(
        name="bare",
        run_id="bare-1",
        task="regression",
        target="y",
        summary="linear",
        version="1",
        spec_yaml="",
        splits=[SplitSummary("train", 0)],
        columns=[],
    )
    text = parse(render_report(content)).text

    assert "No epoch was recorded." in text
    assert "No split was evaluated." in text
    assert "None" not in text


def test_the_spec_keeps_its_lines(classification: ReportContent) -> None:
    html = render_report(replace(classification, spec_yaml="a: 1\r\nb:\n  - <c>\n"))

    assert "a: 1\nb:\n  - &lt;c&gt;\n</pre>" in html


def test_content_is_plain_data(classification: ReportContent, regression: ReportContent) -> None:
    import json

    for content in (classification, regression):
        json.dumps(asdict(content), allow_nan=False)


@pytest.mark.parametrize(("columns", "scrolls"), [(40, False), (41, True)])
def test_only_a_long_table_has_a_scrollbar_of_its_own(
    classification: ReportContent, parse: Parse, columns: int, scrolls: bool
) -> None:
    rows = [ColumnRow(f"c{number}", "numeric", "feature") for number in range(columns)]
    page = parse(render_report(replace(classification, columns=rows)))

    assert ("scroll tall" in page.values("class")) is scrolls
