"""The page on networks and rows of one's own: its example runs as it stands, and learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batchtrain.errors import SpecError
from batchtrain.models.assets import MAX_ASSET_BYTES
from batchtrain.models.protocol import STEP_METHODS
from batchtrain.prediction.loaded import load_bundle
from tests.support.runs import finish

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-models.md"

FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def files_of_the_example() -> dict[str, str]:
    return dict(FILE.findall(PAGE.read_text()))


def test_the_example_runs_learns_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = files_of_the_example()
    assert list(found) == [
        "plant/__init__.py",
        "plant/rows.py",
        "plant/nets.py",
        "calibration.json",
        "plant.yaml",
    ]
    for name, text in found.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    spec = tmp_path / "plant.yaml"
    with pytest.raises(SpecError, match="pass --allow-code plant"):
        finish(spec)

    run = finish(spec, allow_code=["plant"])

    assert run.metrics["test"]["accuracy"] > 0.85
    (tmp_path / "calibration.json").unlink()
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(run.bundle_folder, model="plant.nets:Net", allow_code=["plant"])
    rows = {"temperature": [20.0, 75.0], "load": [0.1, 0.9], "site": ["west", "north"]}
    assert list(bundle.predict(rows)["prediction"]) == ["no", "yes"]


def test_the_page_names_every_method_and_the_limit() -> None:
    page = PAGE.read_text()

    for method in ("forward", *STEP_METHODS):
        assert f"| `{method}(" in page
    assert f"{MAX_ASSET_BYTES >> 20} MiB" in page
