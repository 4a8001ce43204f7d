"""Which trials are packed, with which others, and how many."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import ModelSpec
from batchtrain.spec.run import RunSpec
from batchtrain.training.packed.rules import (
    auto_pack_size,
    num_parameters,
    pack_key,
    why_not_packed,
)


def spec_of(**sections: Any) -> RunSpec:
    document = {
        "version": 1,
        "name": "small",
        "data": {"source": "rows.csv", "target": "y"},
        **sections,
    }
    return RunSpec.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"model": {"kind": "cnn"}}, "cnn"),
        ({"model": {"kind": "custom", "target": "nets:Net"}}, "custom"),
        ({"model": {"kind": "mlp", "activation": "rrelu"}}, "rrelu"),
        ({"training": {"optimizer": {"kind": "rmsprop"}}}, "rmsprop"),
        ({"training": {"clip_norm": 1.0}}, "clip_norm"),
        ({"training": {"clip_value": 1.0}}, "clip_value"),
        ({"training": {"ema": {}}}, "ema"),
        ({"training": {"warm_start": {"bundle": "b"}}}, "warm_start"),
        ({"training": {"max_steps": 5}}, "max_steps"),
        ({"training": {"max_time": 5.0}}, "max_time"),
        ({"training": {"precision": "bfloat16"}}, "bfloat16"),
        ({"training": {"compile": True}}, "compile: true"),
        ({"training": {"micro_batch": 8}}, "micro_batch: 8"),
        ({"training": {"on_nan": "skip"}}, "on_nan: skip"),
        ({"training": {"checkpoint": {"keep_best": 2}}}, "keep_best"),
        ({"training": {"early_stopping": {"metric": "valid_f1_macro"}}}, "valid_f1_macro"),
        ({"determinism": "canonical"}, "canonical"),
        ({"resources": {"rows": "streaming"}}, "streaming"),
        ({"resources": {"workers": 2}}, "2 workers"),
        ({"tracking": {"profile": {}}}, "profile"),
    ],
)
def test_what_is_trained_alone_says_why(sections: dict[str, Any], word: str) -> None:
    why = why_not_packed(spec_of(**sections))
    assert word in str(why)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"kind": "resnet"}, "resources": {"workers": 1}},
        {
            "model": {"kind": "linear"},
            "training": {
                "compile": False,
                "precision": "float32",
                "early_stopping": {"metric": "valid_accuracy"},
                "schedule": {"kind": "one_cycle"},
                "warmup": {"steps": 3},
            },
        },
    ],
)
def test_what_can_be_packed_is(sections: dict[str, Any]) -> None:
    assert why_not_packed(spec_of(**sections)) is None


BASE: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.1},
    "training": {"optimizer": {"kind": "adam"}, "epochs": 5},
}


def changed(section: str, **values: Any) -> RunSpec:
    return spec_of(**{**BASE, section: {**BASE[section], **values}})


def test_trials_that_differ_in_numbers_alone_share_a_pack() -> None:
    key = pack_key(spec_of(**BASE), "data")
    optimizer = {"kind": "adam", "lr": 0.1, "weight_decay": 0.3, "betas": [0.5, 0.9], "eps": 1e-6}
    for other in (
        spec_of(**BASE, seed=7),
        changed("model", dropout=0.0),
        changed("training", optimizer=optimizer),
        changed("training", schedule={"kind": "cosine"}, early_stopping={"patience": 3}),
    ):
        assert pack_key(other, "data") == key


def test_trials_of_other_shapes_or_rows_do_not() -> None:
    adamax = {"kind": "adam", "amsgrad": True}
    others = [
        pack_key(spec_of(**BASE), "other data"),
        *(
            pack_key(other, "data")
            for other in (
                spec_of(**BASE),
                changed("model", hidden=[9]),
                changed("model", activation="relu"),
                changed("training", optimizer={"kind": "adamw"}),
                changed("training", optimizer=adamax),
                changed("training", batch_size=64),
                changed("training", epochs=6),
                changed("training", label_smoothing=0.1),
                spec_of(**BASE, tracking={"monitor": ["train"]}),
            )
        ),
    ]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "linear"},
        {"kind": "mlp", "hidden": []},
        {"kind": "mlp", "hidden": [7, 7, 3], "normalization": "layer", "activation": "prelu"},
        {"kind": "resnet", "width": 6, "blocks": 3, "hidden_factor": 1.5, "activation": "prelu"},
        {"kind": "resnet", "width": 6, "embedding_dim": 2},
    ],
)
@pytest.mark.parametrize("widths", [(3, ()), (0, (4, 300)), (2, (3,))])
def test_parameters_are_counted_without_the_model(
    document: dict[str, Any], widths: tuple[int, tuple[int, ...]]
) -> None:
    spec: Any = TypeAdapter(ModelSpec).validate_json(json.dumps(document))
    inputs = ModelInputs(*widths, num_outputs=3)
    model = build_model(spec, inputs, seed=0)
    counted = num_parameters(spec, num_numeric=widths[0], cardinalities=widths[1], num_outputs=3)
    assert counted == sum(each.numel() for each in model.parameters())


def test_small_steps_are_packed_and_large_ones_are_not() -> None:
    rows = (1, 32, 256, 1024, 8192)
    sizes = [auto_pack_size(parameters=12_500, batch_rows=each) for each in rows]
    assert sizes == [32, 32, 32, 8, 1]
    assert auto_pack_size(parameters=12_500, batch_rows=8192, device="cuda") == 32


def test_a_plan_needs_no_torch() -> None:
    code = "import sys, batchtrain.training.packed.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
