"""Columns of images: PNG and JPEG files as bytes become pixels, as Pillow reads them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchtrain.cli.predictions import predict_row
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import DataError, SchemaMismatchError, SpecError
from batchtrain.prediction.loaded import LoadedBundle, load_bundle
from batchtrain.prediction.predict import predict_file
from batchtrain.preparation.stage import prepare
from batchtrain.preprocessing import (
    FittedColumn,
    FittedPreprocessor,
    FittedTarget,
    images,
    transform,
)
from batchtrain.preprocessing.fitted_wide import FittedImage
from batchtrain.preprocessing.images import decoded
from batchtrain.progress import Progress
from batchtrain.spec.columns import ImageColumn
from batchtrain.spec.data import SPLITS
from batchtrain.tables import conform
from tests.support.builders import prepared_for, run, spec_for, storage_of
from tests.support.sources import write_arrow, write_hugging_face

LABEL = FittedTarget("label", "classification", ("a", "b"))
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)


def encoded(
    pixels: npt.NDArray[Any] | Image.Image, file_format: str = "PNG", **options: Any
) -> bytes:
    sink = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(sink, file_format, **options)
    return sink.getvalue()


def column(
    channels: int = 3, height: int = 5, width: int = 7, missing: str = "drop"
) -> FittedColumn:
    return FittedColumn("scan", "image", missing, wide=FittedImage(channels, height, width))


def apply(fitted: FittedColumn, values: list[bytes | None], first: int = 0) -> Any:
    table = pa.table({"scan": pa.array(values, pa.large_binary())})
    ids = np.arange(first, first + len(values))
    return transform(FittedPreprocessor((fitted,), LABEL), table, row_id=ids)


def test_pixels_come_by_channel_row_and_column_from_0_to_1() -> None:
    found = apply(column(), [encoded(COLOURS)]).numeric
    expected = COLOURS.transpose(2, 0, 1).reshape(1, -1) / 255
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32))
    grey = apply(column(channels=1), [encoded(GREY)]).numeric
    assert np.array_equal(grey.reshape(5, 7), (GREY / 255).astype(np.float32))


def test_jpeg_is_read_as_pillow_reads_it() -> None:
    data = encoded(COLOURS, "JPEG", quality=60)
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(decoded(data, FittedImage(3, 5, 7)), expected)


@pytest.mark.parametrize(("height", "width"), [(5, 3), (10, 14), (2, 2), (1, 9)])
def test_another_size_is_resized_bilinearly(height: int, width: int) -> None:
    found = decoded(encoded(GREY), FittedImage(1, height, width))
    resized = Image.fromarray(GREY).resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(resized)[None])
    assert found.shape == (1, height, width)


def test_a_halved_image_is_the_mean_of_its_neighbours_not_every_second_pixel() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (8, 16))
    found = decoded(encoded(stripes), FittedImage(1, 4, 16))[0, :, 2:-2].astype(int)
    assert (abs(found - 127) < 40).all()


def test_colours_become_shades_and_shades_become_colours() -> None:
    grey = decoded(encoded(COLOURS), FittedImage(1, 5, 7))[0]
    # ITU-R 601-2, as Pillow documents it for its mode L.
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma).max() <= 1
    assert np.array_equal(decoded(encoded(GREY), FittedImage(3, 5, 7)), np.stack([GREY] * 3))


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    deep = np.array([[0, 128, 129, 257], [32_768, 65_535, 65_278, 65_407]], dtype=np.uint16)
    found = decoded(encoded(deep), FittedImage(1, 2, 4))
    assert np.array_equal(found[0], np.rint(deep / 257).astype(np.uint8))


def test_palettes_transparency_and_bits_are_read() -> None:
    rgba = np.dstack([COLOURS, np.full((5, 7), 0, np.uint8)])
    assert np.array_equal(decoded(encoded(rgba), FittedImage(3, 5, 7)), COLOURS.transpose(2, 0, 1))
    palette = Image.fromarray(GREY // 64).convert("P")
    data = encoded(palette, transparency=bytes([0, 9, 200, 255]))
    assert np.array_equal(decoded(data, FittedImage(1, 5, 7))[0], GREY // 64)
    bits = encoded(Image.fromarray(GREY).point(lambda shade: 255 * (shade > 99), "1"))
    assert np.array_equal(decoded(bits, FittedImage(1, 5, 7))[0], 255 * (GREY > 99))


def test_an_image_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = decoded(encoded(GREY, exif=exif), FittedImage(1, 7, 5))
    assert np.array_equal(found[0], np.rot90(GREY, k=-1))


def png_that_says(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


PNG = encoded(COLOURS)
JPEG = encoded(RANDOM.integers(0, 256, (60, 60, 3), dtype=np.uint8), "JPEG")

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "neither"),
    "text": (b"scan.png", "neither"),
    "gif": (encoded(GREY, "GIF"), "neither"),
    "tiff": (encoded(GREY, "TIFF"), "neither"),
    "cut png": (PNG[: len(PNG) // 2], "Error"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "flipped bit": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "Error"),
    "8193 x 8193": (png_that_says(8193, 8193), "8193 x 8193 pixels"),
    "a bomb": (png_that_says(60_000, 60_000), "DecompressionBomb"),
}


@pytest.mark.parametrize(("data", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_image_is_named_with_its_row(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"'scan'.*PNG or JPEG.*row 42: .*{said}"):
        apply(column(), [PNG, None, data], first=40)


def test_pixels_of_a_bomb_are_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="7 x 5 pixels"):
        decoded(PNG, FittedImage(3, 5, 7))


def test_each_policy_for_a_missing_image_does_what_it_says() -> None:
    found = apply(column(), [PNG, None])
    assert (found.filled, found.usable.tolist()) == ({}, [True, False])
    assert not found.numeric[1].any()
    with pytest.raises(DataError, match=r"'scan'.*row 8\."):
        apply(column(missing="error"), [PNG, None], first=7)


def test_the_state_of_an_image_comes_back_from_json() -> None:
    fitted = FittedPreprocessor((column(),), LABEL)
    document = json.loads(json.dumps(fitted.to_json()))
    assert FittedPreprocessor.from_json(document, where="here") == fitted
    assert (fitted.num_numeric, fitted.feature_names[-1]) == (105, "scan[104]")


def test_an_image_of_two_channels_or_too_many_features_is_no_spec() -> None:
    with pytest.raises(ValueError, match=r"must be 1 .* or 3 .*, found 2"):
        ImageColumn(kind="image", height=1, width=1, channels=2)
    with pytest.raises(ValueError, match="must be at most 1048576, found 4194304"):
        ImageColumn(kind="image", height=1024, width=4096, channels=1)


# ----------------------------------------------------------------------------------------------
# Reading


BYTES = [b"one", None, b"three"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(BYTES, pa.binary()),
        pa.array(BYTES, pa.large_binary()),
        pa.array(BYTES, pa.binary_view()),
        pa.array([None if each is None else {"bytes": each, "path": "x.png"} for each in BYTES]),
        pa.array([{"bytes": each, "path": None} for each in BYTES]),
        pa.array([{"bytes": each} for each in BYTES]),
    ],
    ids=lambda values: str(values.type),
)
def test_bytes_and_the_pairs_of_datasets_are_read(values: pa.Array) -> None:
    for start in (0, 1):
        table = pa.table({"scan": values.slice(start)})
        found = conform(table, {"scan": "image"}, first_row=0, where="t")["scan"]
        assert found.type == pa.large_binary()
        assert found.to_pylist() == BYTES[start:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "dir/a.png"}]),
            r"row_id 6: .*found only a path, 'dir/a.png'.*embed_table_storage",
        ),
        (pa.array([None, "a.png"]), r"row_id 6: expected the bytes.*'a.png' of type string"),
        (pa.array([{"x": 1}]), r"row_id 5: expected the bytes of an image"),
        (pa.array([[1]]), r"row_id 5: expected the bytes of an image"),
    ],
)
def test_what_holds_no_bytes_is_refused_with_its_row(values: pa.Array, message: str) -> None:
    with pytest.raises(SchemaMismatchError, match=rf"'scan' of t, {message}"):
        conform(pa.table({"scan": values}), {"scan": "image"}, first_row=5, where="t")


# ----------------------------------------------------------------------------------------------
# From a spec to predictions


def table_of(rows: int = 40) -> pa.Table:
    random = np.random.default_rng(2)
    label = random.integers(0, 2, rows)
    pixels = random.integers(0, 128, (rows, 4, 4), dtype=np.uint8)
    pixels[:, 1] += (100 * label[:, None]).astype(np.uint8)
    scans = [None if place % 8 == 5 else encoded(each) for place, each in enumerate(pixels)]
    return pa.table({"scan": scans, "label": np.array(["dark", "light"])[label]})


SCAN = {"kind": "image", "height": 4, "width": 4, "channels": 1}
DECLARED = {"columns": {"scan": SCAN}}


def test_every_source_gives_the_same_features(tmp_path: Path) -> None:
    table = table_of()
    pairs = [
        None if each is None else {"bytes": each, "path": None}
        for each in table["scan"].to_pylist()
    ]
    paired = table.set_column(0, "scan", pa.array(pairs))
    write_arrow(tmp_path / "rows.arrow", table)
    write_hugging_face(tmp_path / "folder", [paired.slice(0, 20), paired.slice(20)])
    first = prepared_for(spec_for(tmp_path, table, data=DECLARED))
    assert first.num_numeric == 16
    assert first.profile()["missing"] == {"scan": 5, "label": 0}
    (change,) = first.profile()["changes"]
    assert (change["what"], change["count"]) == ("dropped", 5)
    for file in ("rows.arrow", "hf:./folder"):
        other = prepared_for(spec_for(tmp_path, file=file, data=DECLARED))
        for split in SPLITS:
            assert other.load(split).numeric.tobytes() == first.load(split).numeric.tobytes()


@pytest.mark.parametrize("block_rows", [7, 25])
def test_the_size_of_a_block_does_not_show(tmp_path: Path, block_rows: int) -> None:
    large = prepared_for(spec_for(tmp_path, table_of(), data=DECLARED))
    (tmp_path / "other").mkdir()
    again = spec_for(tmp_path / "other", table_of(), data=DECLARED)
    small, _ = prepare(again, storage_of(again), Progress(), engine=EmbeddedEngine(block_rows))
    for split in SPLITS:
        assert small.load(split).numeric.tobytes() == large.load(split).numeric.tobytes()


def test_a_setting_of_the_column_is_another_artifact(tmp_path: Path) -> None:
    keys = {
        prepared_for(
            spec_for(tmp_path, table_of(), data={"columns": {"scan": {**SCAN, **more}}})
        ).artifact.key
        for more in ({}, {"height": 2}, {"channels": 3})
    }
    assert len(keys) == 3


def test_a_broken_image_among_the_rows_is_an_error_of_the_data(tmp_path: Path) -> None:
    scans = table_of()["scan"].to_pylist()
    scans[17] = scans[17][:50]
    table = table_of().set_column(0, "scan", pa.array(scans))
    with pytest.raises(DataError, match=r"'scan'.*in row 17: "):
        prepared_for(spec_for(tmp_path, table, data=DECLARED))


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_text_is_no_image(tmp_path: Path, file: str) -> None:
    table = table_of().set_column(0, "scan", pa.array(["a.png"] * 40))
    with pytest.raises(SpecError, match=r"data.columns.scan.*declared image but holds text"):
        prepared_for(spec_for(tmp_path, table, file=file, data=DECLARED))


def test_undeclared_bytes_are_refused_and_told_how_to_be_declared(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\{kind: image, height: ROWS, width: COLUMNS\}"):
        prepared_for(spec_for(tmp_path, table_of()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    folder = tmp_path_factory.mktemp("image")
    model = {"kind": "cnn", "shape": [1, 4, 4], "channels": [2], "hidden": [4]}
    result = run(spec_for(folder, table_of(), data=DECLARED, model=model))
    assert result.bundle is not None
    return load_bundle(result.bundle.artifact.url)


def test_a_frame_may_hold_bytes_or_the_pairs_of_datasets(bundle: LoadedBundle) -> None:
    table = table_of()
    scans = table["scan"].to_pylist()
    frame = pd.DataFrame({"scan": scans})
    found = bundle.predict(frame)
    assert found["prediction"].isna().tolist() == [scan is None for scan in scans]
    pairs = [None if scan is None else {"bytes": scan, "path": None} for scan in scans]
    assert bundle.predict(pd.DataFrame({"scan": pairs})).equals(found)
    assert bundle.predict(table).equals(found)


def test_a_file_predicts_as_the_rows_in_memory_do(bundle: LoadedBundle, tmp_path: Path) -> None:
    pq.write_table(table_of(), tmp_path / "new.parquet")
    out = tmp_path / "p.parquet"
    done = predict_file(bundle, "new.parquet", out, base=tmp_path, progress=Progress())
    assert pq.read_table(done.path).to_pandas().equals(bundle.predict(table_of()))
    assert done.counts.unusable == 5


def test_an_image_of_another_size_is_resized_at_prediction_too(bundle: LoadedBundle) -> None:
    small = RANDOM.integers(0, 256, (4, 4), dtype=np.uint8)
    large = np.kron(small, np.ones((8, 8), np.uint8))
    same = Image.fromarray(large).resize((4, 4), Image.Resampling.BILINEAR)
    one, other = (bundle.predict({"scan": [encoded(image)]}) for image in (large, same))
    assert one.equals(other)
    with pytest.raises(DataError, match=r"'scan'.*in row 1: bytes that are neither"):
        bundle.predict({"scan": [encoded(small), b"x"]})


def test_a_single_row_without_an_image_has_no_prediction_and_says_so(
    bundle: LoadedBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_row(bundle, {"scan": [None]}, as_json=False)
    said = capsys.readouterr()
    assert said.out.splitlines() == ["label: None", "  dark: n/a", "  light: n/a"]
    assert "1 rows have no prediction" in said.err


def test_another_struct_is_not_taken_for_an_image(tmp_path: Path) -> None:
    table = table_of().set_column(0, "scan", pa.array([{"x": 1}] * 40))
    with pytest.raises(SpecError, match=r"exclude: \[scan\]` under data, or convert the column"):
        prepared_for(spec_for(tmp_path, table))
    with pytest.raises(SpecError, match=r"row_id 0: expected the bytes of an image"):
        prepared_for(spec_for(tmp_path, table, data=DECLARED))
