"""The comparison of quality runs, treats all contenders alike, and judges as it says."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
import torch
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks import quality, quality_runs
from benchmarks.quality import CONTENDERS, Kept, main
from benchmarks.quality_page import Difference, Standing, page
from benchmarks.quality_runs import BOOSTING, MLP, OURS, Bench
from benchmarks.quality_tables import CASES


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    return Bench(CASES["wine"], tmp_path_factory.mktemp("wine"))


def test_a_quick_run_prints_every_contender_and_writes_every_measurement(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(quality, "PAGE", tmp_path / "quality.md")
    found, written = tmp_path / "found.json", tmp_path / "page.md"
    threads = torch.get_num_threads()

    shown, files = ["--only", "wine", "friedman1"], ["--json", str(found), "--page", str(written)]
    main(["--quick", "--seeds", "1", *shown, *files])

    said = capsys.readouterr().out
    assert "  accuracy: batchtrain " in said
    assert "  r2: batchtrain " in said
    assert "nan" not in said
    assert "one standard error: none" in said
    measured = json.loads(found.read_text())
    assert list(measured) == ["wine", "friedman1"]
    for contenders in measured.values():
        assert [name.rpartition(", ")[0] for name in contenders] == list(CONTENDERS)
        assert all(math.isfinite(s) for c in contenders.values() for s in c["0"]["scores"].values())
    assert not (tmp_path / "quality.md").exists()
    assert "| friedman1 | r2 |" in written.read_text()
    assert torch.get_num_threads() == threads


def test_what_is_kept_is_not_measured_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    run = {
        "scores": {"accuracy": 0.5, "log_loss": 1.0},
        "cpu_s": 1.0,
        "task": "classification",
        "rows": {"train": 1, "valid": 1, "test": 1},
    }
    kept = Kept(path)
    for contender in CONTENDERS:
        kept.put("wine", contender, 0, run)
    monkeypatch.setattr(quality, "_run", lambda *_: pytest.fail("it was measured again"))

    main(["--seeds", "1", "--only", "wine", "--json", str(path)])

    assert "batchtrain 0.5000" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        main(["--seeds", "2", "--only", "wine", "--json", str(path)])


@pytest.mark.parametrize("name", CASES)
def test_our_spec_names_source_and_target_alone(name, tmp_path):
    bench = Bench(CASES[name], tmp_path, max_rows=64 if CASES[name].sample is None else None)

    spec = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())

    assert spec.keys() == {"version", "name", "data"}
    assert spec["data"].keys() == {"source", "target"}
    assert spec["data"]["target"] in bench.table.column_names


@pytest.mark.parametrize("name", ["clusters", "friedman1", "linear-sum"])
def test_a_made_table_is_the_same_each_time_and_has_categories(name):
    first, second = CASES[name].make(), CASES[name].make()
    assert first.equals(second)
    assert len(first) >= 5_000
    features = first.drop_columns(["target"])
    assert any(field.type == "string" for field in features.schema)


def test_a_peer_is_what_a_plain_script_makes_of_our_rows(wine):
    found = wine.peer(BOOSTING, 100, with_valid=True)

    prepared = wine.prepared(100)
    rows = {split: prepared.load(split).row_id for split in ("train", "valid", "test")}
    fitted = np.sort(np.concatenate([rows["train"], rows["valid"]]))
    frame = wine.table.to_pandas()
    features, target = frame.drop(columns="target").to_numpy(), frame["target"].to_numpy()
    scaler = StandardScaler().fit(features[fitted])
    model = HistGradientBoostingClassifier(random_state=100)
    model.fit(scaler.transform(features[fitted]), target[fitted])
    expected = model.score(scaler.transform(features[rows["test"]]), target[rows["test"]])
    assert found.scores["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("with_valid", [False, True])
def test_a_peer_trains_on_the_rows_that_it_may_see(wine, monkeypatch, with_valid):
    seen = {}

    class Watched(MLPClassifier):
        def fit(self, features, target):
            seen["fit"] = len(target)
            self.set_params(max_iter=1)
            return super().fit(features, target)

        def predict(self, features):
            seen["predict"] = len(features)
            return super().predict(features)

    monkeypatch.setitem(quality_runs._MODELS, ("classification", MLP), Watched)
    wine.peer(MLP, 100, with_valid=with_valid)

    valid = wine.rows["valid"] if with_valid else 0
    assert seen == {"fit": wine.rows["train"] + valid, "predict": wine.rows["test"]}


def test_a_made_table_may_be_cut(tmp_path):
    bench = Bench(CASES["friedman1"], tmp_path, max_rows=100)
    bench.prepared(0)
    assert sum(bench.rows.values()) == len(bench.table) == 100
    assert bench.task == "regression"


def test_the_difference_is_paired():
    ours, theirs = [0.9, 0.8, 0.7], [0.88, 0.79, 0.68]
    found = Difference.of(ours, theirs)
    gains = np.subtract(ours, theirs)
    assert found.mean == pytest.approx(gains.mean())
    assert found.error == pytest.approx(gains.std(ddof=1) / math.sqrt(3))
    assert found.is_above
    assert Difference.of(theirs, ours).is_below


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.8, 0.7], "above"),
        ([0.5, 0.7], "equal"),
        ([0.6, 0.6], "equal"),
        ([0.6, 0.7], "equal"),  # by just one standard error
        ([0.5, 0.6], "equal"),
        ([0.5, 0.4], "**below**"),
        ([0.5], "one seed says nothing"),
    ],
)
def test_the_page_says_where_ours_is_below(ours, verdict):
    theirs = [0.6] * len(ours)
    scores = {name: ours if name == OURS else theirs for name in CONTENDERS}
    standing = Standing(
        CASES["wine"],
        ("accuracy", "log_loss"),
        {"accuracy": scores, "log_loss": scores},
        dict.fromkeys(CONTENDERS, 1.0),
        rows={"train": 124, "valid": 18, "test": 36},
    )

    text = page([standing], seeds=len(ours))

    assert f"| {verdict} |" in text
    assert "Not measured yet: drug200, iris, breast-cancer" in text
    assert ("On wine it is." in text) is (verdict == "**below**") is standing.is_below
    assert "124 + 18 + 36" in text
    assert f"{statistics.fmean(ours):.4f}" in text
