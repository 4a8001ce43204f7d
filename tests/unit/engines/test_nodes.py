"""Whether a cluster's nodes share a storage, asked of nodes that are folders of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batchtrain.engines.nodes import Node, Question, answer, check_storage_on_nodes
from batchtrain.errors import ClusterError, StorageError
from batchtrain.storage import FolderStorage, Storage, open_storage

NODES = [Node("aa11bb22cc33", "10.0.0.2"), Node("dd44ee55ff66", "10.0.0.3")]


class ReadOnly(FolderStorage):
    """A folder that may not be written to."""

    def create(self, key: str, data: bytes) -> bool:
        raise StorageError("expected to write, found that the file system is read-only")


class Forgetful(FolderStorage):
    """A mount whose writes stay on the node."""

    def create(self, key: str, data: bytes) -> bool:
        return True


class Garbling(FolderStorage):
    """A mount that shows other bytes than were written."""

    def read(self, key: str) -> bytes:
        return super().read(key)[::-1]


def seeing(storages: Mapping[str, Storage]) -> Callable[..., Mapping[Node, str]]:
    """Nodes that answer as they would, each on the storage that its address has."""

    def ask(question: Question, nodes: Sequence[Node]) -> Mapping[Node, str]:
        return {
            node: answer(replace(question, storage=storages[node.address]), node) for node in nodes
        }

    return ask


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_nodes_that_share_the_storage_are_found_well_and_leave_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), tmp_path)
    (tmp_path / "kept").write_text("of another run")
    asked: list[Node] = []

    def ask(question: Question, nodes: Sequence[Node]) -> Mapping[Node, str]:
        asked.extend(nodes)
        answers = {node: answer(question, node) for node in nodes}
        assert len(files(tmp_path)) == 1 + 1 + len(nodes)  # the driver's token and theirs
        return answers

    check_storage_on_nodes(storage, nodes=NODES, ask=ask)

    assert asked == NODES
    assert files(tmp_path) == [tmp_path / "kept"]


@pytest.mark.parametrize(
    ("kind", "folder", "problem"),
    [
        (FolderStorage, "elsewhere", "does not see what the driver wrote"),
        (ReadOnly, "shared", "expected to write, found that the file system is read-only"),
        (Forgetful, "shared", "wrote what the driver does not see"),
        (Garbling, "shared", "reads something else than what the driver wrote"),
    ],
)
def test_a_node_that_does_not_share_the_storage_is_named_with_its_reason(
    tmp_path: Path, kind: type[FolderStorage], folder: str, problem: str
) -> None:
    shared = FolderStorage(tmp_path / "shared")
    ask = seeing({"10.0.0.2": shared, "10.0.0.3": kind(tmp_path / folder)})

    with pytest.raises(ClusterError) as caught:
        check_storage_on_nodes(shared, nodes=NODES, ask=ask)

    message = str(caught.value)
    assert "found 1 of 2 other nodes" in message
    assert f"10.0.0.3 (node dd44ee55): {problem}" in " ".join(message.split())
    assert "10.0.0.2" not in message
    assert "--set storage=" in message
    assert files(tmp_path) == []
    assert not (tmp_path / "elsewhere").exists()


def test_all_nodes_that_fail_are_named_at_once(tmp_path: Path) -> None:
    ask = seeing({node.address: FolderStorage(tmp_path / node.id) for node in NODES})
    with pytest.raises(ClusterError, match=r"(?s)2 of 2 .*10\.0\.0\.2.*10\.0\.0\.3"):
        check_storage_on_nodes(FolderStorage(tmp_path / "here"), nodes=NODES, ask=ask)


def test_a_node_that_was_lost_meanwhile_does_not_count(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)

    def ask(question: Question, nodes: Sequence[Node]) -> Mapping[Node, str]:
        return {nodes[0]: answer(question, nodes[0])}

    check_storage_on_nodes(storage, nodes=NODES, ask=ask)
    assert files(tmp_path) == []


def test_where_there_is_one_node_nothing_is_written(tmp_path: Path) -> None:
    def ask(question: Question, nodes: Sequence[Node]) -> Mapping[Node, str]:
        raise AssertionError("nobody is there to be asked")

    check_storage_on_nodes(FolderStorage(tmp_path / "runs"), nodes=[], ask=ask)
    assert not (tmp_path / "runs").exists()


def test_a_driver_that_cannot_write_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="read-only"):
        check_storage_on_nodes(ReadOnly(tmp_path), nodes=NODES, ask=seeing({}))
