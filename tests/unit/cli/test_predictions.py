"""`batchtrain predict`: what a person reads of a row or a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchtrain.cli.predictions import asked_rows, predict_row
from batchtrain.prediction.loaded import load_bundle


def test_d09_a_key_of_a_row_that_the_model_does_not_use_is_said_once(
    finished: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = load_bundle(finished.result.bundle.artifact.url)
    row = {**finished.table.slice(5, 1).to_pylist()[0], "bogus": 1}
    values = asked_rows(None, None, json.dumps(row))
    assert isinstance(values, dict)
    predict_row(model, values, as_json=False)
    printed = capsys.readouterr()
    assert printed.err.count("columns are not used by the model: 'bogus'") == 1
    assert printed.out.startswith("label: ")
    assert not caplog.records
