"""What travels with a job, and what must not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import DataError, UnsafeInputError
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.submission.request import JobRequest
from batchtrain.submission.secrets import is_secret_variable
from batchtrain.submission.shipping import PACKAGE_FOLDER, Shipment, ship, stage_files
from batchtrain.tables import open_source

Load = Callable[..., LoadedSpec]


def names(shipment: Shipment) -> list[str]:
    return [file.name for file in shipment.files]


def shipped(loaded: LoadedSpec, **options: Any) -> Shipment:
    return ship(loaded, **{"ship_package": False, **options})


def staged(shipment: Shipment, folder: Path) -> LoadedSpec:
    """The spec as a job finds it, with all that travels in place."""
    folder.mkdir()
    stage_files(JobRequest("x", "", {}, files=shipment.files), folder)
    return load_spec(folder / shipment.spec)


def test_only_what_the_spec_names_travels(load: Load) -> None:
    assert names(shipped(load())) == ["job/rows.csv", "job/tiny.yaml"]


def test_a_file_is_known_by_its_bytes_and_not_by_where_it_lies(
    load: Load, folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)

    here, there = shipped(load()), shipped(load(base=moved))

    assert here.files == there.files
    [rows] = [file for file in here.files if file.name == "job/rows.csv"]
    assert rows.sha256 == hashlib.sha256((folder / "rows.csv").read_bytes()).hexdigest()
    (moved / "rows.csv").write_text("a,label\n1,x\n2,x\n")
    assert shipped(load(base=moved)).files != here.files


def test_the_job_reads_the_spec_that_was_meant(load: Load, tmp_path: Path) -> None:
    space = "{training.optimizer.lr: {log_uniform: [1e-4, 1e-2]}}"
    loaded = load("training.epochs=7", f"search={{trials: 4, space: {space}}}")

    there = staged(shipped(loaded), tmp_path / "work")

    assert there.spec == loaded.spec
    assert there.spec.search is not None
    assert there.spec.training.epochs == 7


@pytest.mark.parametrize("source", ["../tables/a.csv", "{tables}/a.csv", "../tables", "{tables}/*"])
def test_a_table_outside_of_the_folder_travels_under_another_name(
    source: str, load: Load, folder: Path, tmp_path: Path
) -> None:
    tables = folder.parent / "tables"
    tables.mkdir()
    (tables / "a.csv").write_text("a,label\n3,x\n")
    if "a.csv" not in source:
        (tables / "b.csv").write_text("a,label\n4,y\n")
    source = source.format(tables=tables)
    loaded = load(f"data.source='{source}'")

    there = staged(shipped(loaded), tmp_path / "work")

    before = open_source(source, base=folder, null_values=())
    after = open_source(there.spec.data.source, base=there.path.parent, null_values=())
    # Names are part of what prepared data depend on, and so are the same.
    assert [file.name for file in after.files] == [file.name for file in before.files]
    assert [file.path.read_bytes() for file in after.files] == [
        file.path.read_bytes() for file in before.files
    ]
    assert after.files[0].path.is_relative_to(tmp_path / "work")


def test_files_of_splits_and_code_and_assets_travel(load: Load, folder: Path) -> None:
    (folder / "nets").mkdir()
    (folder / "nets" / "__init__.py").write_text("")
    (folder / "nets" / "mine.py").write_text("class Net: ...")
    (folder / "vocabulary.txt").write_text("a b")
    model = "{kind: custom, target: 'nets.mine:Net', assets: {words: vocabulary.txt}}"
    splits = "{kind: files, train: rows.csv, test: other.csv}"

    found = shipped(
        load(f"data.split={splits}", f"model={model}"), allow_code=["nets", "installed"]
    )

    assert names(found) == [
        "job/nets/__init__.py",
        "job/nets/mine.py",
        "job/other.csv",
        "job/rows.csv",
        "job/tiny.yaml",
        "job/vocabulary.txt",
    ]


def test_batchtrain_travels_from_a_checkout_whole_and_without_caches(load: Load) -> None:
    found = {name.removeprefix("batchtrain/") for name in names(ship(load()))}

    wanted = {"cli/entry.py", "reporting/report.html", "reporting/report.css", "py.typed"}
    assert wanted <= found
    own = {path.relative_to(PACKAGE_FOLDER).as_posix() for path in PACKAGE_FOLDER.rglob("*.py")}
    assert own <= found
    assert not [name for name in found if "__pycache__" in name]


def test_j14_what_is_too_large_is_refused_with_the_largest_files(load: Load, folder: Path) -> None:
    (folder / "extra").mkdir()
    for number in range(12):
        (folder / "extra" / f"{number}.bin").write_bytes(b"x" * (number + 1) * 2**16)

    with pytest.raises(DataError, match="expected 4 MiB at most") as refused:
        shipped(load(), include=[folder / "extra"], limit=4 * 2**20)

    lines = str(refused.value).splitlines()
    assert lines[1].split() == ["0.8", "MiB", "job/extra/11.bin"]
    assert lines[2].split() == ["0.7", "MiB", "job/extra/10.bin"]
    assert "1.bin" not in " ".join(lines[1:11]).split("/")  # ten of them
    assert len([line for line in lines if line.endswith(".bin")]) == 10
    assert "absolute path" in lines[-1]


def test_a_large_table_with_an_absolute_path_stays_and_is_said(load: Load, folder: Path) -> None:
    rows = folder / "rows.csv"
    loaded = load(f"data.source={rows}")

    found = shipped(loaded, limit=8)

    assert names(found) == ["job/tiny.yaml"]
    assert found.notes == (f"data.source: {rows} does not travel; every node must see it there",)
    assert found.loaded.spec.data.source == str(rows)
    [line] = found.stays
    assert line.startswith(f"{rows} {rows.stat().st_size} ")


def test_an_absolute_path_that_is_not_here_is_the_cluster_s(load: Load) -> None:
    found = shipped(load("data.source=/mnt/only/there/*.parquet"))

    assert names(found) == ["job/tiny.yaml"]
    assert found.stays == ("/mnt/only/there/*.parquet",)


def test_a_relative_path_that_is_not_here_is_an_error_here(load: Load) -> None:
    with pytest.raises(DataError, match=r"gone\.csv"):
        shipped(load("data.source=gone.csv"))


@pytest.mark.parametrize("name", [".env", "id_rsa", ".git/config"])
def test_a_secret_is_refused_by_its_name(name: str, load: Load, folder: Path) -> None:
    with pytest.raises(UnsafeInputError, match="secrets") as refused:
        shipped(load(), include=[folder / name])
    assert "canary-secret" not in str(refused.value)


def test_a_link_to_a_secret_is_that_secret(load: Load, folder: Path) -> None:
    (folder / "words.txt").symlink_to(folder / "id_rsa")
    model = "{kind: custom, target: 'nets:Net', assets: {words: words.txt}}"

    with pytest.raises(UnsafeInputError, match=r"words\.txt"):
        shipped(load(f"model={model}"))


def test_a_folder_with_a_secret_in_it_is_refused(load: Load, folder: Path) -> None:
    (folder / "extra").mkdir()
    (folder / "extra" / ".env.local").write_text("TOKEN=x")

    with pytest.raises(UnsafeInputError, match=r"\.env\.local"):
        shipped(load(), include=[folder / "extra"])


def test_what_is_included_must_lie_beside_the_spec(load: Load, folder: Path) -> None:
    with pytest.raises(DataError, match="below the folder of the spec"):
        shipped(load(), include=[folder.parent])


@pytest.mark.parametrize("name", ["new\nline.txt", "back\\slash.txt", "bell\a.txt"])
def test_j03_a_name_that_could_be_more_than_a_name_is_refused(
    name: str, load: Load, folder: Path
) -> None:
    (folder / name).write_text("")

    with pytest.raises(UnsafeInputError, match="file name"):
        shipped(load(), include=[folder / name])


def test_a_file_that_changes_while_it_is_sent_is_noticed(
    load: Load, folder: Path, tmp_path: Path
) -> None:
    found = shipped(load())
    (folder / "rows.csv").write_text("a,label\n9,z\n")

    with pytest.raises(DataError, match="found other bytes"):
        staged(found, tmp_path / "work")


def test_on_this_machine_results_and_large_tables_stay_where_they_are(
    load: Load, folder: Path, tmp_path: Path
) -> None:
    loaded = load("storage=results", "tracking.tensorboard.dir=events")

    there = staged(shipped(loaded, keep_paths=True, limit=8), tmp_path / "work")

    assert there.spec.storage == str(folder / "results")
    assert there.spec.data.source == str(folder / "rows.csv")
    assert there.spec.tracking.tensorboard == replace_dir(loaded, str(folder / "events"))


def replace_dir(loaded: LoadedSpec, place: str) -> Any:
    tensorboard: Any = loaded.spec.tracking.tensorboard
    return tensorboard.model_copy(update={"dir": place})


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("GITHUB_TOKEN", True),
        ("DB_PASSWORD", True),
        ("openai_api_key", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("SENTRY_DSN", True),
        ("AWS_REGION", False),
        ("OMP_NUM_THREADS", False),
        ("MONKEY_COUNT", False),
    ],
)
def test_a_secret_variable_is_known_by_its_name(name: str, is_secret: bool) -> None:
    assert is_secret_variable(name) is is_secret


def test_a_shipment_is_a_value(load: Load) -> None:
    found = shipped(load())
    assert replace(found) == found
