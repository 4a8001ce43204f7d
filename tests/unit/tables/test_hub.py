"""Names of the hub: pinned, resolved as the hub resolves them, downloaded file by file."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from batchtrain.errors import DataError
from batchtrain.tables import hub as module
from batchtrain.tables import open_source, read_blocks
from batchtrain.tables.hub import HubName, HuggingFaceHub, discover_on_hub
from tests.support.builders import write_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """\
---
license: mit
configs:
- config_name: small
  data_files:
  - split: train
    path: small/tr-*
  - split: test
    path: [small/te.csv]
- config_name: large
  data_files: large/*.csv
---
# A data set
"""


@dataclass
class FakeHub:
    """Data sets in a folder; remembers what was downloaded."""

    folder: Path
    revision: str = COMMIT
    downloaded: list[str] = field(default_factory=list)

    def files(self, repository: str, revision: str) -> Sequence[str]:
        assert (repository, revision) == ("org/name", self.revision)
        return [
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        ]

    def download(self, repository: str, revision: str, name: str) -> Path:
        assert (repository, revision) == ("org/name", self.revision)
        self.downloaded.append(name)
        return self.folder / name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Stands for the hub; it has no data set yet."""
    fake = FakeHub(tmp_path / "hub")
    fake.folder.mkdir()
    monkeypatch.setattr(module, "HUB", fake)
    return fake


def publish(hub: FakeHub, files: Mapping[str, Sequence[int]], card: str = "") -> None:
    for name, values in files.items():
        path = hub.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, pa.table({"a": list(values)}))
    if card:
        (hub.folder / "README.md").write_text(card)


def read(source: str) -> list[int]:
    opened = open_source(source, base=Path.cwd(), null_values=())
    blocks = read_blocks(opened, {"a": "integer"})
    return [value for block in blocks for value in block["a"].to_pylist()]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"hf:org/name@{COMMIT}", HubName("org/name", COMMIT, ())),
        ("hf:imdb@v1.0/train", HubName("imdb", "v1.0", ("train",))),
        ("hf:o/n@main/sub/test", HubName("o/n", "main", ("sub", "test"))),
        (
            "hf:o/n@refs/convert/parquet/sub/test",
            HubName("o/n", "refs/convert/parquet", ("sub", "test")),
        ),
    ],
)
def test_a_name_has_a_revision_and_maybe_a_subset_and_a_split(
    source: str, expected: HubName
) -> None:
    assert HubName.parse(source) == expected


@pytest.mark.parametrize(
    "source",
    ["hf:org/name", "hf:org/name@", "hf:@main", "hf:a/b/c@main", "hf:o/n@main/a/b/c", "hf:o n@v"],
)
def test_a_name_without_a_revision_or_form_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="hf:NAME@REVISION"):
        HubName.parse(source)


def test_splits_follow_from_the_words_in_the_paths(hub: FakeHub) -> None:
    publish(
        hub,
        {
            "data/train-00001-of-00002.parquet": [3],
            "data/train-00000-of-00002.parquet": [1, 2],
            "data/validation-00000-of-00001.parquet": [4],
            "data/test-00000-of-00001.parquet": [5],
        },
        card="# No front matter\n",
    )
    source = open_source(f"hf:org/name@{COMMIT}", base=Path.cwd(), null_values=())
    assert source.splits == ("train", "train", "valid", "test")
    assert source.files[0].name == "train/data/train-00000-of-00002.parquet"
    assert read(f"hf:org/name@{COMMIT}") == [1, 2, 3, 4, 5]
    hub.downloaded.clear()
    # Of one split the other files are not fetched.
    assert read(f"hf:org/name@{COMMIT}/test") == [5]
    assert [name for name in hub.downloaded if name != "README.md"] == [
        "data/test-00000-of-00001.parquet"
    ]


def test_words_count_as_words_only(hub: FakeHub) -> None:
    publish(hub, {"latest.csv": [1], "contest/pretrained.csv": [2], ".hidden/train.csv": [9]})
    source = open_source(f"hf:org/name@{COMMIT}", base=Path.cwd(), null_values=())
    assert source.splits == ()
    assert read(source.text) == [2, 1]


def test_subsets_are_those_of_the_card(hub: FakeHub) -> None:
    files = {"small/tr-1.csv": [1], "small/te.csv": [2], "large/x.csv": [3], "train.csv": [9]}
    publish(hub, files, card=CARD)
    assert read(f"hf:org/name@{COMMIT}/small") == [1, 2]
    assert read(f"hf:org/name@{COMMIT}/small/test") == [2]
    assert read(f"hf:org/name@{COMMIT}/large") == [3]
    with pytest.raises(DataError, match="small, large"):
        read(f"hf:org/name@{COMMIT}")
    with pytest.raises(DataError, match="found train, test"):
        read(f"hf:org/name@{COMMIT}/small/valid")


def test_a_card_that_is_no_yaml_declares_nothing(hub: FakeHub) -> None:
    publish(hub, {"train.csv": [1], "test.csv": [2]}, card="---\n: [\n---\n")
    assert read(f"hf:org/name@{COMMIT}/test") == [2]


def test_a_data_set_without_rows_says_what_is_there(hub: FakeHub) -> None:
    (hub.folder / "model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"a file of rows.*model\.bin"):
        read(f"hf:org/name@{COMMIT}")


def test_the_library_is_asked_for_files_of_that_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "train.csv", pa.table({"a": [1]}))
    asked: list[object] = []

    class HfApi:
        def list_repo_files(self, repository: str, **options: str) -> list[str]:
            asked.append((repository, options))
            return ["train.csv"]

    def hf_hub_download(repository: str, name: str, **options: str) -> str:
        asked.append((repository, name, options))
        return str(tmp_path / name)

    library = types.SimpleNamespace(HfApi=HfApi, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    found = discover_on_hub("hf:org/name@v2/train", HuggingFaceHub())
    assert found == {"": {"train.csv": tmp_path / "train.csv"}}
    options = {"repo_type": "dataset", "revision": "v2"}
    assert asked == [("org/name", options), ("org/name", "train.csv", options)]


def test_without_the_library_or_a_network_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"batchtrain\[hf\].*hf:./FOLDER"):
        discover_on_hub("hf:org/name@v2", HuggingFaceHub())

    class HfApi:
        def list_repo_files(self, repository: str, **options: str) -> list[str]:
            raise ConnectionError("no route to host\nand a long trace")

    library = types.SimpleNamespace(HfApi=HfApi)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    with pytest.raises(DataError) as caught:
        discover_on_hub("hf:org/name@v2", HuggingFaceHub())
    message = str(caught.value)
    fragments = ["the list of files", "ConnectionError: no route to host", "network", "hf:./FOLDER"]
    assert [each for each in fragments if each not in message] == []
    assert "long trace" not in message
