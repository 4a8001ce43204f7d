"""Contents like those of small runs, with a text of the test's choice wherever text may stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser

import pytest

from batchtrain.reporting.content import (
    ChangeRow,
    ColumnRow,
    ConfusionData,
    EpochRow,
    LineData,
    ParameterRow,
    PrimaryMetric,
    RegressionData,
    ReportContent,
    RequirementRow,
    SplitSummary,
    StageRow,
    TruthRow,
)

DRUGS = ("DrugY", "drugA", "drugB", "drugC", "drugX")


class Page(HTMLParser):
    """What a browser would find: elements with the names of their attributes, ids, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.svg_texts: list[str] = []
        self._tag = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.elements[tag, tuple(sorted(name for name, _ in attrs))] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._tag != "style":
            self.text += data
        if self._tag == "text":
            self.svg_texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def values(self, *names: str) -> list[str]:
        """The values of all attributes of these names."""
        return [value for name, value in self.attributes if name in names]


def history(epochs: int = 20, *, has_valid: bool = True, tag: str = "Accuracy") -> list[EpochRow]:
    return [
        EpochRow(
            epoch=epoch,
            train_loss=1 / epoch,
            valid_loss=1 / epoch + 0.001 * epoch if has_valid else None,
            lr=1e-3,
            monitored={f"{tag}/valid": 1 - 1 / epoch} if has_valid else {},
        )
        for epoch in range(1, epochs + 1)
    ]


def classification_of(texts: Sequence[str]) -> ReportContent:
    """A run with `texts` as its classes, and with the first of them as every other text."""
    text, size = texts[0], len(texts)
    confusion = [[7 if t == p else (t + p) % 3 for p in range(size)] for t in range(size)]
    return ReportContent(
        name=text,
        run_id=text,
        task="classification",
        target=text,
        summary=text,
        version="1.2.3",
        spec_yaml=f"name: {text}\n# {text}\n",
        splits=[
            SplitSummary("train", 10 * size, dict.fromkeys(texts, 10)),
            SplitSummary(text, 4 * size, dict.fromkeys(texts, 4)),
        ],
        columns=[
            ColumnRow(text, text, "feature", 3, text, text, minimum=15, maximum=74.5),
            ColumnRow("target", "categorical", "target", 0, None, "", categories=texts),
        ],
        stages=[StageRow(text, text, 14 * size, 0.25), StageRow("export", "built")],
        history=history(tag=text),
        best_epoch=15,
        metrics={text: {"accuracy": 0.925, text: None}, "train": {"accuracy": 1.0}},
        metric_notes={text: {text: text}},
        primary=PrimaryMetric(text, text, None),
        requirements=[RequirementRow(text, text, 0.925, passed=True)],
        confusion=ConfusionData(text, texts, confusion),
        changes=[ChangeRow(text, text, 6, text)],
        parameters=[ParameterRow(text, (2, 3), 6)],
        environment={text: text},
        warnings=[text],
    )


def regression_of(text: str) -> ReportContent:
    """A run on one feature, with `text` for every text."""
    train_x, test_x = [0.0, 0.1, 0.2, 0.3], [0.8, 0.9]
    test_y, predicted = [0.86, 0.93], [0.85, 0.94]
    return ReportContent(
        name=text,
        run_id=text,
        task="regression",
        target=text,
        summary=text,
        version="1.2.3",
        spec_yaml=text,
        splits=[SplitSummary("train", 4), SplitSummary("test", 2)],
        columns=[ColumnRow(text, "numeric", "feature", minimum=0, maximum=0.9)],
        history=history(has_valid=False),
        metrics={"test": {"mae": 0.01, "r2": 0.97}},
        primary=PrimaryMetric("mae", "test", 0.01),
        regression=RegressionData(
            text, test_y, predicted, 2, LineData(text, train_x, train_x, test_x, test_y, predicted)
        ),
        parameters=[ParameterRow(text, (1, 1), 1, (0.69,)), ParameterRow("bias", (), 1, (0.31,))],
        truth=[TruthRow(text, 0.7, 0.69), TruthRow("other", 0.3, None)],
    )


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    """Read a page as a browser does."""
    return Page


@pytest.fixture(scope="session")
def make_classification() -> Callable[[Sequence[str]], ReportContent]:
    """A run's content from its class names, the first of which is every other text too."""
    return classification_of


@pytest.fixture(scope="session")
def make_regression() -> Callable[[str], ReportContent]:
    """A run's content from the one text in it."""
    return regression_of


@pytest.fixture
def classification() -> ReportContent:
    return classification_of(DRUGS)


@pytest.fixture
def regression() -> ReportContent:
    return regression_of("line")
