"""Columns of images and of text, from raw rows to predictions of a bundle."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from batchtrain.prediction.predict import predict_file
from batchtrain.progress import Progress
from batchtrain.tables import SAMPLES
from tests.support.builders import write_table
from tests.support.runs import FinishedRun, finish
from tests.support.sources import write_json_lines

WriteSpec = Callable[[str], Path]

PRAISE = ("great", "lovely", "superb", "not bad at all", "a joy")
BLAME = ("awful", "dull", "poor", "not good at all", "a bore")
FILLER = ("the", "plot", "of", "this", "film", "with", "music", "and", "scenes", "is", "was")


def reviews(num_rows: int, *, seed: int) -> pa.Table:
    """Only the words of a review tell what its label is; some praise by words of blame."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, num_rows)
    texts = []
    for liked in label:
        words = [*random.choice(FILLER, 6), str(random.choice(PRAISE if liked else BLAME))]
        texts.append(" ".join(random.permutation(words)).capitalize() + ".")
    year = random.integers(1990, 2020, num_rows)
    return pa.table({"review": texts, "year": year, "liked": np.array(["no", "yes"])[label]})


def digits_as_images() -> pa.Table:
    """Scans of the sample of digits, each as a PNG file of twice its size."""
    table = SAMPLES["digits"]().slice(0, 1400)
    pixels = np.stack([table[name].to_numpy() for name in table.column_names if name != "target"])
    scans = []
    for scan in (pixels.T.reshape(-1, 8, 8) * 15).astype(np.uint8):
        sink = io.BytesIO()
        Image.fromarray(scan).resize((16, 16), Image.Resampling.NEAREST).save(sink, "PNG")
        scans.append(sink.getvalue())
    return pa.table({"scan": scans, "digit": table["target"]})


def accuracy_of_file(run: FinishedRun, table: pa.Table, source: str, target: str) -> float:
    """The share of rows of a file that the bundle predicts right."""
    folder = run.loaded.path.parent
    out = folder / f"{source}.out.parquet"
    predict_file(run.model, source, out, base=folder, progress=Progress())
    predicted = pq.read_table(out)["prediction"].to_pylist()
    actual = table[target].cast(pa.string()).to_pylist()
    return float(np.mean([one == other for one, other in zip(predicted, actual, strict=True)]))


def test_seed_2_16_image_and_text_columns(tmp_path: Path, write_spec: WriteSpec) -> None:
    write_table(tmp_path / "reviews.csv", reviews(1000, seed=1))
    spec = write_spec(
        "name: reviews\n"
        "data:\n"
        "  source: reviews.csv\n"
        "  target: liked\n"
        "  columns: {review: {kind: text, features: 512}}\n"
        "model: {kind: mlp, hidden: [32]}\n"
        "training: {epochs: 12}\n"
    )
    run = finish(spec, "tracking.tensorboard=false")
    assert run.metrics["test"]["accuracy"] >= 0.9
    assert run.tensors("train")[0].shape[1] == 513
    unseen = reviews(300, seed=2)
    write_json_lines(tmp_path / "new.jsonl", unseen)
    assert accuracy_of_file(run, unseen, "new.jsonl", "liked") >= 0.9
    table = unseen.select(["review", "year"]).to_pandas()
    assert (run.model.predict(table)["prediction"] == unseen["liked"].to_pandas()).mean() >= 0.9

    left_out = ("data.exclude=[review]", "data.columns={}", "training.epochs=4")
    blind = finish(spec, "tracking.tensorboard=false", *left_out, last="evaluate")
    assert blind.metrics["test"]["accuracy"] < 0.7

    scans = digits_as_images()
    write_table(tmp_path / "digits.parquet", scans)
    spec = write_spec(
        "name: scans\n"
        "data:\n"
        "  source: digits.parquet\n"
        "  target: digit\n"
        "  columns: {scan: {kind: image, height: 8, width: 8, channels: 1}}\n"
        "model: {kind: cnn, shape: [1, 8, 8], channels: [16, 32], hidden: [64]}\n"
        "training: {epochs: 12, optimizer: {kind: adam, lr: 4e-3}}\n"
    )
    run = finish(spec, "tracking.tensorboard=false")
    assert run.metrics["test"]["accuracy"] >= 0.9
    assert run.statuses["export"] == "built"
    assert accuracy_of_file(run, scans, "digits.parquet", "digit") >= 0.9
    assert len(run.page) < 2_000_000
    assert "scan[0]" not in run.page


def test_pixels_as_lists_learn_as_the_columns_of_pixels_do(
    tmp_path: Path, write_spec: WriteSpec
) -> None:
    table = SAMPLES["digits"]().slice(0, 600)
    names = [name for name in table.column_names if name != "target"]
    pixels = np.stack([table[name].to_numpy() for name in names], axis=1).reshape(-1, 1, 8, 8)
    write_table(
        tmp_path / "digits.parquet",
        pa.table({"pixels": pixels.tolist(), "target": table["target"]}),
    )
    write_table(tmp_path / "wide.parquet", table)
    text = (
        "name: {name}\n"
        "data: {{source: {name}.parquet, target: target, task: classification{more}}}\n"
        "model: {{kind: cnn, shape: [1, 8, 8], channels: [8], hidden: [16]}}\n"
        "training: {{epochs: 3}}\n"
    )
    lists = ", columns: {pixels: {kind: vector, size: 64, scale: standard}}"
    fast = ("tracking.tensorboard=false",)
    one = finish(write_spec(text.format(name="digits", more=lists)), *fast, last="evaluate")
    other = finish(write_spec(text.format(name="wide", more="")), *fast, last="evaluate")

    assert one.row_ids("train").tolist() == other.row_ids("train").tolist()
    found, expected = one.tensors("train")[0].numpy(), other.tensors("train")[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    accuracy, expected_accuracy = (run.metrics["test"]["accuracy"] for run in (one, other))
    assert abs(accuracy - expected_accuracy) <= 0.02
