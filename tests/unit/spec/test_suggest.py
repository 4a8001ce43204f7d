"""Did you mean."""

from __future__ import annotations

import pytest

from batchtrain.spec.suggest import did_you_mean


@pytest.mark.parametrize(
    ("word", "choices", "meant"),
    [
        ("mpl", ["linear", "mlp", "custom"], "mlp"),
        ("AGE", ["age", "AGES"], "age"),
        ("age", ["AGE", "ages"], "AGE"),
        ("optimiser", ["epochs", "optimizer"], "optimizer"),
        ("Na_to_k", ["Na_to_K", "Na_to_c"], "Na_to_K"),
        ("quux", ["mlp", "linear"], None),
        ("x", [], None),
        ("", ["a"], None),
        ("a" * 100_000, ["ab"], None),
    ],
)
def test_the_closest_choice_is_meant(word: str, choices: list[str], meant: str | None) -> None:
    assert did_you_mean(word, choices) == meant
