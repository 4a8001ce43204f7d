"""Which trials may be trained in one pack, and how many of them should be; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.model import LinearModel, MlpModel, ModelSpec, ResNetModel
from batchtrain.spec.optimizers import Adam, AdamW, Sgd
from batchtrain.spec.run import RunSpec

__all__ = ["auto_pack_size", "num_parameters", "pack_key", "why_not_packed"]

MEASURED = ("valid_loss", "valid_accuracy", "valid_r2")
"""What is known of every epoch anyway, so that early stopping may follow it."""

FREE_OF_MODEL = {"dropout", "hidden_dropout", "residual_dropout"}
FREE_OF_OPTIMIZER = {"lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov"}
FREE_OF_TRAINING = {"optimizer", "schedule", "warmup", "early_stopping", "checkpoint"}
"""What the trials of one pack may differ in, besides the seed. A schedule and early stopping are
numbers on the host; the other values are one number for each trial."""

SIZES = {"cpu": ((2**22, 32), (2**24, 8)), "cuda": ((2**31, 32),)}
"""Up to how many multiply-adds how many trials; see `auto_pack_size`."""


def why_not_packed(spec: RunSpec) -> str | None:
    """Why the trials of a spec are each trained alone, as a sentence; None where they are packed.

    What stands here is either not the same for each row of a batch of trials (a network of the
    user's), or is so rare in a search that a run of its own serves it.
    """
    return next(_reasons(spec), None)


def _reasons(spec: RunSpec) -> Iterator[str]:
    yield from _of_model(spec.model)
    yield from _of_training(spec)
    yield from _of_run(spec)


def _of_model(model: ModelSpec) -> Iterator[str]:
    if not isinstance(model, LinearModel | MlpModel | ResNetModel):
        yield f"a model of kind `{model.kind}` is not packed"
    elif getattr(model, "activation", "") == "rrelu":
        yield "the activation `rrelu` draws numbers of its own"


def _of_training(spec: RunSpec) -> Iterator[str]:
    training = spec.training
    if not isinstance(training.optimizer, Sgd | Adam | AdamW):
        yield f"the optimizer `{training.optimizer.kind}` is not packed"
    for key in ("clip_norm", "clip_value", "ema", "warm_start", "max_steps", "max_time"):
        if getattr(training, key) is not None:
            yield f"`training.{key}` is for trials that are each trained alone"
    for key, usual in (("precision", "float32"), ("compile", False), ("micro_batch", "auto")):
        if getattr(training, key) not in {"auto", usual}:
            yield f"`training.{key}: {_text(getattr(training, key))}` is not packed"
    if training.changes:
        yield "`training.changes` is for trials that are each trained alone"
    if training.on_nan != "stop":
        yield f"`training.on_nan: {training.on_nan}` is not packed"
    if training.checkpoint.keep_best > 1:
        yield "`training.checkpoint.keep_best` above 1 keeps more weights than a pack does"
    if training.early_stopping and training.early_stopping.metric not in MEASURED:
        yield (
            f"early stopping follows `{training.early_stopping.metric}`, and a pack measures "
            "loss, accuracy and R2"
        )


def _of_run(spec: RunSpec) -> Iterator[str]:
    if spec.determinism != "order":
        yield f"`determinism: {spec.determinism}` is not packed"
    if spec.resources.rows == "streaming":
        yield "`resources.rows: streaming` is not packed: a pack has its rows in memory"
    if spec.resources.workers != "auto" and spec.resources.workers > 1:
        yield f"a trial with {spec.resources.workers} workers is a run of its own"
    if spec.tracking.profile is not None:
        yield "`tracking.profile` traces the steps of one run"


def pack_key(spec: RunSpec, prepared_fingerprint: str) -> str:
    """A name that is equal for trials that may be trained in one pack.

    Args:
        spec: Of a trial; `why_not_packed` found nothing.
        prepared_fingerprint: Of the rows that it is trained on.
    """
    model, training = spec.model.model_dump(mode="json"), spec.training.model_dump(mode="json")
    optimizer = training["optimizer"]
    document: dict[str, Any] = {
        "prepared": prepared_fingerprint,
        "model": {key: value for key, value in model.items() if key not in FREE_OF_MODEL},
        "training": {key: value for key, value in training.items() if key not in FREE_OF_TRAINING},
        "optimizer": {
            key: value for key, value in optimizer.items() if key not in FREE_OF_OPTIMIZER
        },
        "monitor": sorted(spec.tracking.monitor),
        "device": spec.resources.device,
    }
    return fingerprint_of(document)


def auto_pack_size(*, parameters: int, batch_rows: int, device: str = "cpu") -> int:
    """How many trials to train together.

    A small step is mostly the calls of its operations, which a pack makes once for all; a large
    one is mostly products, which a pack cannot make fewer, and its weights leave the cache. So the
    rule goes by the multiply-adds of a trial's forward pass, parameters x rows. Measured on one
    core with 32 features, the time of a trial alone over its share of a pack:

    | network | rows | products | 8 | 32 | 64 |
    |---|---|---|---|---|---|
    | 32-16 | 32 | 0.05 M | 4.0 | 9.1 | 11.8 |
    | 128-64 | 32 | 0.4 M | 2.7 | 4.8 | 5.8 |
    | 128-64 | 128 | 1.6 M | 2.3 | 2.6 | 2.6 |
    | 256-256 | 32 | 2.4 M | 2.1 | 2.2 | 1.9 |
    | 512-256 | 32 | 4.8 M | 1.7 | 1.5 | 1.4 |
    | 128-64 | 1024 | 13 M | 1.5 | 1.3 | 1.3 |
    | 512-256 | 256 | 38 M | 1.1 | 1.1 | 1.0 |
    | 512-256 | 1024 | 152 M | 1.0 | 0.9 | 0.9 |

    So 32 up to four million and 8 up to sixteen; above that a trial alone is as fast. More than 32
    would win little where it wins, and leave fewer packs than a small machine has cores.

    Args:
        parameters: Of the model.
        batch_rows: Of a global batch, at most the training rows.
        device: `cpu` or `cuda`. The bound of a GPU was not measured: it is 500 times that of a
            core, about as much faster as it is at products.
    """
    products = parameters * batch_rows
    return next((trials for most, trials in SIZES[device] if products <= most), 1)


def num_parameters(
    model: ModelSpec, *, num_numeric: int, cardinalities: Sequence[int], num_outputs: int
) -> int:
    """The trained numbers of a model that can be packed, without building it.

    Args:
        model: Its section.
        num_numeric: F, the numeric features.
        cardinalities: The codes of each categorical column.
        num_outputs: K, the outputs of a row.
    """
    if isinstance(model, LinearModel):
        return (num_numeric + sum(cardinalities) + 1) * num_outputs
    if not isinstance(model, MlpModel | ResNetModel):
        raise TypeError(f"expected a model that can be packed, found {model.kind}")
    embedding_dim = _embedding_dim(model, cardinalities)
    width = num_numeric + embedding_dim * len(cardinalities)
    slope = 1 if model.activation == "prelu" else 0
    count = embedding_dim * sum(cardinalities)
    if isinstance(model, ResNetModel):
        hidden = max(1, int(model.width * model.hidden_factor))
        block = 2 * model.width * hidden + hidden + 3 * model.width + slope
        last = 2 * model.width + slope + (model.width + 1) * num_outputs
        return count + (width + 1) * model.width + model.blocks * block + last
    scales = 2 if model.normalization == "layer" else 0
    for hidden in model.hidden:
        count += (width + 1 + scales) * hidden + slope
        width = hidden
    return count + (width + 1) * num_outputs


def _embedding_dim(model: MlpModel | ResNetModel, cardinalities: Sequence[int]) -> int:
    """The width of an embedding, as `auto_embedding_dim` has it, whose module imports torch."""
    if not cardinalities:
        return 0
    if model.embedding_dim != "auto":
        return model.embedding_dim
    return min(50, math.ceil(1.6 * math.pow(max(cardinalities), 0.56)))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
