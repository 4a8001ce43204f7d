"""Columns of text: hashed words, as scikit-learn hashes them, of each row by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import ArtifactError, DataError, SpecError
from batchtrain.prediction.loaded import load_bundle
from batchtrain.preparation.stage import prepare
from batchtrain.preprocessing import (
    FittedColumn,
    FittedPreprocessor,
    FittedTarget,
    transform,
    words,
)
from batchtrain.preprocessing.fitted_wide import FittedText
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS
from tests.support.builders import prepared_for, run, spec_for, storage_of
from tests.support.sources import write_arrow, write_hugging_face, write_json_lines

LABEL = FittedTarget("label", "classification", ("a", "b"))
REVIEW = FittedColumn("review", "text", "empty", wide=FittedText(32, 2, lowercase=True))
AGE = FittedColumn("age", "numeric", "error", offset=1.0)
TEXTS = [
    "A good film, a GOOD plot.",
    "",
    None,
    "dull",
    "…!",
    "x 5",
    "été Straße 映画",
    "good " * 300,
]


def features(texts: list[str | None], column: FittedColumn = REVIEW) -> npt.NDArray[np.float32]:
    table = pa.table({"review": pa.array(texts, pa.string())})
    fitted = FittedPreprocessor((column,), LABEL)
    return transform(fitted, table, row_id=np.arange(len(texts))).numeric


@pytest.mark.parametrize("words_together", [1, 2, 3])
@pytest.mark.parametrize("lowercase", [True, False])
def test_features_are_those_of_scikit_learn(words_together: int, lowercase: bool) -> None:
    wide = FittedText(64, words_together, lowercase)
    expected = HashingVectorizer(
        n_features=64,
        ngram_range=(1, words_together),
        lowercase=lowercase,
        token_pattern=r"\w+",  # noqa: S106 - of words
    ).transform([text or "" for text in TEXTS])
    found = features(TEXTS, replace(REVIEW, wide=wide))
    assert found.dtype == np.float32
    assert np.array_equal(found, (expected.toarray() * 8).astype(np.float32))


def test_the_mean_square_of_a_row_is_one_or_it_has_no_word() -> None:
    squares = np.square(features(TEXTS)).mean(axis=1)
    assert squares.tolist() == pytest.approx([1, 0, 0, 1, 0, 1, 1, 1])


def test_the_settings_change_what_is_one_word() -> None:
    def same(one: str, other: str, **settings: Any) -> bool:
        column = replace(REVIEW, wide=replace(REVIEW.wide, features=1 << 12, **settings))
        first, second = features([one, other], column)
        return np.array_equal(first, second)

    assert same("Good", "good")
    assert not same("Good", "good", lowercase=False)
    assert same("not good but bad", "not bad but good", words=1)
    assert not same("not good but bad", "not bad but good", words=2)
    assert not same("size L", "size M")


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.none() | st.text("ab é9.", max_size=8), min_size=1, max_size=9),
    cut=st.integers(0, 9),
)
def test_a_rows_features_do_not_depend_on_its_neighbours(texts: list[str | None], cut: int) -> None:
    parts = [features(part) for part in (texts[:cut], texts[cut:]) if part]
    assert np.concatenate(parts).tobytes() == features(texts).tobytes()


def test_the_pieces_of_a_block_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = features(TEXTS)
    monkeypatch.setattr(words, "PIECE_ROWS", 3)
    assert features(TEXTS).tobytes() == whole.tobytes()


def test_each_policy_for_a_missing_text_does_what_it_says() -> None:
    table = pa.table({"review": pa.array(["x", None, ""]), "age": [1.0, 2.0, 3.0]})

    def found(missing: str) -> Any:
        column = replace(REVIEW, missing=missing)
        return transform(FittedPreprocessor((column, AGE), LABEL), table, row_id=np.arange(7, 10))

    empty, dropped = found("empty"), found("drop")
    assert (empty.filled, empty.usable.tolist()) == ({"review": 1}, [True] * 3)
    assert not empty.numeric[1:, :32].any()
    assert empty.numeric[:, 32].tolist() == [0.0, 1.0, 2.0]
    assert (dropped.filled, dropped.usable.tolist()) == ({}, [True, False, True])
    with pytest.raises(DataError, match=r"'review'.*row 8\."):
        found("error")


def test_names_and_state_of_a_column_of_text() -> None:
    fitted = FittedPreprocessor((AGE, REVIEW), LABEL)
    assert fitted.feature_names[:3] == ("age", "review[0]", "review[1]")
    assert (fitted.num_numeric, len(fitted.feature_names)) == (33, 33)
    assert FittedPreprocessor.from_json(fitted.to_json(), where="here") == fitted
    age, review = fitted.to_json()["columns"]
    assert "wide" not in age
    for wrong in ({"wide": None}, {"wide": {"features": 2}}, {"wide": {**review["wide"], "x": 1}}):
        with pytest.raises(ArtifactError, match="expected a preprocessing state in here"):
            FittedPreprocessor.from_json(
                {**fitted.to_json(), "columns": [{**review, **wrong}]}, where="here"
            )


# ----------------------------------------------------------------------------------------------
# From a spec to predictions


def reviews(num_rows: int = 60) -> pa.Table:
    random = np.random.default_rng(3)
    label = random.integers(0, 2, num_rows)
    said = np.array(["dull", "great"])[label]
    text = [f"a {word} film" if place % 7 != 3 else None for place, word in enumerate(said)]
    return pa.table(
        {"review": text, "age": random.normal(9, 2, num_rows), "label": label.astype(str)}
    )


DECLARED = {"columns": {"review": {"kind": "text", "features": 16}}}


def test_every_source_gives_the_same_features(tmp_path: Path) -> None:
    table = reviews()
    write_json_lines(tmp_path / "rows.jsonl", table)
    write_arrow(tmp_path / "rows.arrow", table)
    write_hugging_face(tmp_path / "folder", [table.slice(0, 20), table.slice(20)])
    first = prepared_for(spec_for(tmp_path, table, data=DECLARED))
    assert first.num_numeric == 17
    for file in ("rows.csv", "rows.jsonl", "rows.arrow", "hf:./folder"):
        rows = table if file.endswith(".csv") else None
        other = prepared_for(spec_for(tmp_path, rows, file=file, data=DECLARED))
        for split in SPLITS:
            assert other.load(split).numeric.tobytes() == first.load(split).numeric.tobytes()


@pytest.mark.parametrize("block_rows", [7, 25])
def test_the_size_of_a_block_does_not_show(tmp_path: Path, block_rows: int) -> None:
    loaded = spec_for(tmp_path, reviews(), data={**DECLARED, "exclude": ["age"]})
    (tmp_path / "other").mkdir()
    again = spec_for(tmp_path / "other", reviews(), data={**DECLARED, "exclude": ["age"]})
    small, _ = prepare(again, storage_of(again), Progress(), engine=EmbeddedEngine(block_rows))
    large = prepared_for(loaded)
    for split in SPLITS:
        assert small.load(split).numeric.tobytes() == large.load(split).numeric.tobytes()


def test_a_setting_of_the_column_is_another_artifact(tmp_path: Path) -> None:
    table = reviews()
    keys = {
        prepared_for(
            spec_for(tmp_path, table, data={"columns": {"review": {"kind": "text", **more}}})
        ).artifact.key
        for more in ({}, {"features": 16}, {"words": 1}, {"lowercase": False}, {"missing": "drop"})
    }
    assert len(keys) == 5


def test_undeclared_text_stays_a_category(tmp_path: Path) -> None:
    assert prepared_for(spec_for(tmp_path, reviews())).cardinalities == (3,)


def test_the_bundle_predicts_on_raw_text_and_its_papers_stay_short(tmp_path: Path) -> None:
    result = run(spec_for(tmp_path, reviews(), data=DECLARED))
    assert result.bundle is not None
    assert result.report is not None
    loaded = load_bundle(result.bundle.artifact.url)
    frame = reviews().to_pandas()
    found = loaded.predict(frame)
    again = loaded.predict({"review": frame["review"].tolist(), "age": frame["age"].tolist()})
    assert found["prediction"].notna().all()
    assert found.equals(again)
    other = loaded.predict(frame.assign(review="great great"))
    assert (other["probability_0"] != found["probability_0"]).all()

    card = result.report.artifact.read("MODEL_CARD.md").decode()
    row = next(line for line in card.splitlines() if line.startswith("| review "))
    assert row == "| review | text | - | a text without words |"
    assert "on 17 features of 2 columns" in card
    assert "review[0]" not in card + result.report.page().decode()
    assert "| filled | review | 9 |" in card


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        (pa.array([1.5, 2.0, 2.25]), ["'review'", "declared text", "fractions"]),
        (pa.array([True, False, True]), ["'review'", "declared text", "true and false"]),
        (pa.array([[1], [2], [3]]), ["'review'", "list<", "exclude: [review]"]),
    ],
)
def test_a_column_that_is_no_text_is_refused(
    tmp_path: Path, values: pa.Array, fragments: list[str]
) -> None:
    table = pa.table({"review": values, "label": ["a", "b", "a"]})
    with pytest.raises(SpecError) as caught:
        prepared_for(spec_for(tmp_path, table, data=DECLARED))
    assert [each for each in fragments if each not in str(caught.value)] == []


def test_a_column_without_a_text_in_the_training_rows_is_refused(tmp_path: Path) -> None:
    table = reviews().set_column(0, "review", pa.nulls(60, pa.string()))
    with pytest.raises(DataError, match=r"'review'.*at least one value in the training rows"):
        prepared_for(spec_for(tmp_path, table, data=DECLARED))
