"""Ask every node of a cluster whether it writes and reads the storage of a run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from batchtrain.errors import BatchtrainError, ClusterError
from batchtrain.storage import Storage
from batchtrain.storage.probe import PROBES
from batchtrain.storage.retrying import RetryingStorage

__all__ = ["AskNodes", "Node", "Question", "answer", "ask_nodes", "check_storage_on_nodes"]

LIMIT_S = 30.0
"""Seconds in which every node must have answered."""

CALL_LIMIT_S = 10.0
"""Seconds after which a node does not try a call of the storage again."""

DRIVER = "driver"


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        id: Ray's name of it, in hex.
        address: Its address, by which a person knows it.
    """

    id: str
    address: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.address} (node {self.id[:8]})"


@dataclass(frozen=True)
class Question:
    """What every node is asked.

    Attributes:
        storage: What it reads and writes.
        folder: The folder of the tokens.
        token: What the driver wrote under `DRIVER` in that folder; unique to the question.
    """

    storage: Storage
    folder: str
    token: str

    def key(self, name: str) -> str:
        """Where the token of the driver or of a node lies."""
        return f"{self.folder}/{name}"

    def token_of(self, node: Node) -> bytes:
        """What a node writes under its id."""
        return f"{self.token} {node.id}".encode()


AskNodes = Callable[[Question, Sequence[Node]], Mapping[Node, str]]
"""Gives for each node that is still there what is wrong with it, or an empty text."""


def check_storage_on_nodes(
    storage: Storage,
    *,
    nodes: Sequence[Node] | None = None,
    ask: AskNodes | None = None,
) -> None:
    """Make sure that what the driver writes is read on all nodes, and the other way round.

    The driver writes a token; each other node reads it and writes one of its own, which the
    driver reads. All tokens are deleted. Where the driver's node is the only one, nothing is
    asked.

    Args:
        storage: What the run writes to.
        nodes: The nodes to ask; left out, all that are alive but this one.
        ask: Left out, `ask_nodes`.

    Raises:
        ClusterError: Naming every node that fails, and why.
        StorageError: If the driver itself cannot write there.
    """
    nodes = _other_nodes() if nodes is None else nodes
    if not nodes:
        return
    question = Question(storage, f"{PROBES}/nodes-{uuid.uuid4().hex}", uuid.uuid4().hex)
    try:
        storage.create(question.key(DRIVER), question.token.encode())
        answers = (ask or ask_nodes)(question, nodes)
        problems = {
            node: problem or _unseen_by_driver(question, node) for node, problem in answers.items()
        }
    finally:
        _forget(question, nodes)
    failed = [f"  {node}: {problem}" for node, problem in problems.items() if problem]
    if failed:
        raise ClusterError(
            f"storage {storage.url()}: expected that every node of the cluster reads and writes "
            f"it, found {len(failed)} of {len(nodes)} other nodes that do not:\n"
            + "\n".join(failed)
            + "\nSet `storage` to a folder that is mounted on every node, or to an address: "
            "`--set storage=/mnt/shared/runs`, `--set storage=s3://bucket/runs`"
        )


def answer(question: Question, node: Node) -> str:
    """Read the driver's token and write one; runs on the node.

    Returns:
        What is wrong, as words; empty where all is well.
    """
    storage = RetryingStorage(_innermost(question.storage), limit=CALL_LIMIT_S)
    try:
        found = storage.read(question.key(DRIVER))
        if found != question.token.encode():
            return "reads something else than what the driver wrote"
        storage.create(question.key(node.id), question.token_of(node))
    except FileNotFoundError:
        return "does not see what the driver wrote"
    except BatchtrainError as error:
        return _one_line(error)
    return ""


def ask_nodes(
    question: Question,
    nodes: Sequence[Node],
    *,
    run: Callable[[Question, Node], str] = answer,
    limit: float = LIMIT_S,
) -> Mapping[Node, str]:
    """Ask with one task a node, all at once; see `AskNodes`.

    A node that is lost meanwhile is left out: nothing will run on it.

    Args:
        question: What to ask.
        nodes: Whom.
        run: What runs on each node.
        limit: Seconds until all must have answered.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(run)
    asked: dict[Any, Node] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        placed = task.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[placed.remote(question, node)] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=limit)
    found = {asked[reference]: _answered(reference) for reference in done}
    for reference in late:
        with suppress(Exception):
            ray.cancel(reference, force=True)
        found[asked[reference]] = f"did not answer within {limit:.0f} s; look at its Ray logs"
    alive = {node.id for node in _alive_nodes()}
    return {node: found[node] for node in nodes if node.id in alive}


def _answered(reference: Any) -> str:
    """The answer of a task that has ended, one way or the other."""
    import ray

    try:
        return str(ray.get(reference))
    except Exception as error:  # noqa: BLE001 - whatever keeps a node from answering is its answer
        text = str(error)
        if "No module named 'batchtrain" in text:
            return "has no batchtrain; install the same version there, or ship it with the job"
        return f"could not be asked: {_one_line(error)}"


def _unseen_by_driver(question: Question, node: Node) -> str:
    """What is wrong with the token that a node has written; empty where it is there."""
    try:
        found = question.storage.read(question.key(node.id))
    except FileNotFoundError:
        return "wrote what the driver does not see"
    return "" if found == question.token_of(node) else "wrote what the driver reads differently"


def _forget(question: Question, nodes: Sequence[Node]) -> None:
    """Delete all tokens; what cannot be deleted now `batchtrain gc` finds later."""
    for name in (DRIVER, *(node.id for node in nodes)):
        with suppress(BatchtrainError):
            question.storage.delete(question.key(name))


def _other_nodes() -> list[Node]:
    """The nodes that are alive, save the one that this process runs on."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in _alive_nodes() if node.id != here]


def _alive_nodes() -> list[Node]:
    import ray

    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    return [
        Node(entry["NodeID"], entry["NodeManagerAddress"])
        for entry in list_nodes()
        if entry["Alive"]
    ]


def _innermost(storage: Storage) -> Storage:
    """A storage without the layers that try again for long, and probe."""
    while (inner := getattr(storage, "inner", None)) is not None:
        storage = inner
    return storage


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1:])[:300] or type(error).__name__
