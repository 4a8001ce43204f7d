"""The comparison of searches is fair, follows its rules, and its functions are what they say."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from batchtrain.tuning.rungs import brackets
from batchtrain.tuning.space import draw
from benchmarks import search_quality
from benchmarks.search_objectives import (
    BRANIN_WORST,
    OBJECTIVES,
    PBT_TOY,
    Curve,
    Toy,
    branin,
    hartmann,
)
from benchmarks.search_quality import (
    ASHA,
    HYPERBAND,
    MARK,
    PBT,
    holm,
    main,
    run_asha,
    run_hyperband,
    run_pbt,
    run_random,
    searched,
)

SEED = 1000
SHORT = Curve(OBJECTIVES["branin"].bounds, OBJECTIVES["branin"].share, epochs=16)


def test_the_functions_have_their_published_best() -> None:
    for x in ((-math.pi, 12.275), (math.pi, 2.275), (9.42478, 2.475)):
        assert branin(x) == pytest.approx(0.397887, abs=1e-5)
    assert branin((-5, 0)) == pytest.approx(BRANIN_WORST)
    best = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    assert hartmann(best) == pytest.approx(-3.32237, abs=1e-5)
    assert OBJECTIVES["branin"].share((math.pi, 2.275)) == pytest.approx(0, abs=1e-5)
    assert OBJECTIVES["branin"].share((-5, 0)) == pytest.approx(1)


def test_curves_fall_cross_and_are_noisy() -> None:
    curve = OBJECTIVES["branin"]
    at_optimum = {"x0": math.pi, "x1": 2.275}
    curves = [
        [curve.train((), at_optimum, epoch, seed=SEED, number=n) for epoch in range(1, 65)]
        for n in range(8)
    ]
    for seen in curves:
        regrets = [each.regret for each in seen]
        assert regrets == sorted(regrets, reverse=True)
        assert 0.4 <= regrets[0] < 0.8
        assert regrets[-1] < 0.1
        assert any(each.loss != each.regret for each in seen)
    first = sorted(range(8), key=lambda n: curves[n][0].regret)
    last = sorted(range(8), key=lambda n: curves[n][-1].regret)
    assert first != last


def test_the_toy_is_that_of_the_paper() -> None:
    """With h = (1, 1) both fall by a fiftieth a step; with (1, 0) one stays."""
    toy = Toy()
    assert toy.train((0.9, 0.9), {"h0": 1.0, "h1": 1.0}, 1, seed=0, number=0).state == (
        pytest.approx(0.9 * 0.98),
        pytest.approx(0.9 * 0.98),
    )
    seen = toy.train((0.9, 0.9), {"h0": 1.0, "h1": 0.0}, 1, seed=0, number=0)
    assert seen.state == (pytest.approx(0.9 * 0.98), 0.9)
    assert seen.regret == pytest.approx(sum(each**2 for each in seen.state))


def test_no_search_has_more_than_its_budget_and_all_begin_with_the_same_trials() -> None:
    random = run_random(SHORT, seed=SEED, trials=4)
    asha = run_asha(SHORT, seed=SEED, max_epochs=64)
    assert (random.epochs, random.trials) == (64, 4)
    assert 64 - SHORT.epochs < asha.epochs <= 64
    assert asha.trials > random.trials
    hyperband = run_hyperband(SHORT, seed=SEED)
    assert hyperband.trials == sum(each.trials for each in brackets(16, HYPERBAND.factor))
    assert hyperband.epochs < hyperband.trials * 16

    (all_of_them, _), (some, _) = (
        searched(SHORT, scheduler, seed=SEED, trials=6) for scheduler in ("none", ASHA)
    )
    for whole, cut in zip(all_of_them, some, strict=True):
        assert cut.values == whole.values == draw(SHORT.space, SEED, cut.number)
        for epochs, scores in cut.rungs.items():
            assert epochs < 16 or scores == whole.rungs[epochs]
    assert {each.state for each in some} == {"finished", "stopped"}


def test_pbt_copies_states_as_they_were_at_the_exchange() -> None:
    toy = Toy(epochs=20)
    found = run_pbt(toy, seed=SEED, members=6)
    assert (found.epochs, found.trials) == (120, 6)
    # Nobody is nearer than who climbs Q itself from the start.
    assert found.regret >= 2 * (0.9 * 0.98**20) ** 2
    assert found == run_pbt(toy, seed=SEED, members=6)
    assert run_random(PBT_TOY, seed=SEED, trials=2).regret > 2 * (0.9 * 0.98**100) ** 2
    records, trainings = searched(toy, PBT, seed=SEED, trials=6)
    # Who took over another's state took over its best epoch too: its model is no worse.
    copies = [each for each in records if each.parent not in {None, each.number}]
    assert copies
    for each in copies:
        assert trainings.regrets[each.number] <= records[each.parent].rungs[15]["valid_loss"]


def test_the_tables_are_put_below_what_was_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_quality, "OBJECTIVES", {"branin": SHORT, "hartmann-6": SHORT})
    monkeypatch.setattr(search_quality, "PBT_TOY", Toy(epochs=10))
    monkeypatch.setattr(search_quality, "RANDOM_TRIALS", 2)
    page = tmp_path / "page.md"
    shutil.copy(Path(search_quality.__file__).with_suffix(".md"), page)
    declared = page.read_text().partition(MARK)[0]
    main(["--seeds", "3", "--page", str(page)])
    text = page.read_text()
    assert text.startswith(declared + MARK)
    assert "| branin | asha |" in text
    assert capsys.readouterr().out.strip() in text


def test_p_values_are_adjusted_as_holm_has_it() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
