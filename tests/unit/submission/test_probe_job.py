"""The probe of a storage: what it says on a cluster, and what is read out of it here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batchtrain.engines.nodes import Node, Question, answer, check_storage_on_nodes
from batchtrain.errors import ClusterError
from batchtrain.storage import FolderStorage, Storage, open_storage
from batchtrain.submission.building import (
    PROBE,
    SubmitOptions,
    build_request,
    entrypoint_of,
)
from batchtrain.submission.findings import Finding
from batchtrain.submission.probe_job import (
    ask_probe,
    probe_findings,
    probe_line,
    probe_nodes,
    probe_request,
)
from batchtrain.submission.profile import Profile
from batchtrain.submission.request import JobRequest, JobState, JobStatus
from batchtrain.submission.shipping import ship
from tests.support.builders import mixed_table, spec_for

NODES = [Node("aa11bb22cc33", "10.0.0.2"), Node("dd44ee55ff66", "10.0.0.3")]


def checking(storages: Mapping[str, Storage]) -> object:
    """A check of a cluster whose nodes see a storage each of their own."""

    def ask(question: Question, nodes: Sequence[Node]) -> Mapping[Node, str]:
        return {
            node: answer(replace(question, storage=storages[node.address]), node) for node in nodes
        }

    def check(storage: Storage) -> None:
        check_storage_on_nodes(storage, nodes=NODES, ask=ask)

    return check


def ended(state: JobState = "succeeded", message: str = "") -> JobStatus:
    return JobStatus("probe-1", state, message, exit_code=0 if state == "succeeded" else 1)


def request_for(folder: Path) -> JobRequest:
    loaded = spec_for(folder, mixed_table(20), storage="/mnt/runs")
    shipment = ship(loaded, ship_package=False)
    return build_request(loaded, shipment, Profile(), SubmitOptions(), {})


def test_nodes_that_share_a_storage_give_no_finding_and_keep_nothing(tmp_path: Path) -> None:
    shared = FolderStorage(tmp_path)
    check = checking({node.address: shared for node in NODES})
    document = probe_nodes(open_storage(str(tmp_path), tmp_path), check=check)  # type: ignore[arg-type]
    log = f"Running entrypoint for job probe-1\n{probe_line(document)}\n"
    assert probe_findings(ended(), log) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_node_with_another_root_is_named_in_one_sentence(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    check = checking({"10.0.0.2": FolderStorage(mine), "10.0.0.3": FolderStorage(other)})
    document = probe_nodes(open_storage(str(mine), tmp_path), check=check)  # type: ignore[arg-type]
    (found,) = probe_findings(ended(), probe_line(document))
    assert found == Finding(
        "error",
        "storage",
        f"{mine}: expected that every node of the cluster reads and writes it, found 1 of "
        "2 other nodes that do not: 10.0.0.3 (node dd44ee55): does not see what the driver wrote. "
        "Set `storage` to a folder that is mounted on every node, or to an address: "
        "`--set storage=/mnt/shared/runs`, `--set storage=s3://bucket/runs`",
    )


def test_a_storage_without_exclusive_create_is_found(tmp_path: Path) -> None:
    class Careless(FolderStorage):
        def create(self, key: str, data: bytes) -> bool:
            self.write(key, data)
            return True

    asked: list[Storage] = []
    document = probe_nodes(Careless(tmp_path), check=asked.append)
    (found,) = probe_findings(ended(), probe_line(document))
    assert found.severity == "error"
    assert "keeps the promise 'exclusive create', a second create of the name was" in found.message
    assert asked == []
    assert found.message.count("expected") == 1


@pytest.mark.parametrize(
    ("job", "log", "says"),
    [
        (
            ended("failed"),
            "Running\n/usr/bin/python: Error while finding module: No module named 'batchtrain'",
            (
                "expected that the cluster runs a probe of the storage, found no batchtrain there. "
                "Install the same version, or ship it with the job: `ship_package: true` in the "
                "profile"
            ),
        ),
        (
            ended("failed", "The entry point failed"),
            "",
            (
                "expected that the cluster runs a probe of the storage, found that it failed: The "
                "entry point failed. Look at the log of that job on the cluster"
            ),
        ),
        (
            ended("succeeded"),
            'nothing of ours\n{"batchtrain_probe": 2}\nbatchtrain_probe \x1b[2J\n',
            (
                "expected that the cluster runs a probe of the storage, found that it succeeded: "
                "batchtrain_probe [2J. Look at the log of that job on the cluster"
            ),
        ),
    ],
)
def test_a_probe_without_an_answer_is_told_in_a_sentence(
    job: JobStatus, log: str, says: str
) -> None:
    assert probe_findings(job, log) == [Finding("error", "probe", says)]


def test_another_torch_is_a_warning_and_none_an_error(tmp_path: Path) -> None:
    document = probe_nodes(FolderStorage(tmp_path), check=lambda _: None)
    assert probe_findings(ended(), probe_line(document)) == []
    (older,) = probe_findings(ended(), probe_line({**document, "torch": "1.13.0"}))
    assert (older.severity, older.key) == ("warning", "torch")
    (none,) = probe_findings(ended(), probe_line({**document, "torch": None}))
    assert (none.severity, none.key) == ("error", "torch")


def test_the_probe_of_a_request_takes_its_spec_alone_and_no_cores(tmp_path: Path) -> None:
    request = request_for(tmp_path)
    assert len(request.files) == 2
    probe, other = probe_request(request), probe_request(request)
    assert [file.name for file in probe.files] == [request.arguments["spec"]]
    assert probe.arguments["command"] == PROBE
    assert probe.arguments["files"] == {file.name: file.sha256 for file in probe.files}
    assert probe.entrypoint == entrypoint_of(probe.arguments) != request.entrypoint
    assert probe.resources.cpus == probe.resources.gpus == 0
    assert probe.submission_id != other.submission_id
    assert "batchtrain" not in probe.metadata


class Jobs:
    """A backend with one job, which goes from state to state each time that it is looked at."""

    def __init__(self, states: Sequence[JobState], log: str) -> None:
        self.states: Iterator[JobState] = iter(states)
        self.state: JobState = "pending"
        self.written = log
        self.stopped: list[str] = []

    def status(self, submission_id: str) -> JobStatus:
        self.state = next(self.states, self.state)
        return JobStatus(submission_id, self.state)

    def log(self, submission_id: str) -> str:
        return self.written

    def stop(self, submission_id: str) -> JobStatus:
        self.stopped.append(submission_id)
        return JobStatus(submission_id, "stopped")


def test_a_probe_is_sent_waited_for_and_read(tmp_path: Path) -> None:
    document = probe_nodes(FolderStorage(tmp_path / "runs"), check=lambda _: None)
    jobs = Jobs(["pending", "running", "succeeded"], probe_line({**document, "problem": "bad"}))
    sent: list[JobRequest] = []
    found = ask_probe(
        request_for(tmp_path),
        jobs,  # type: ignore[arg-type]
        sent.append,
        sleep=lambda _: None,
    )
    assert found == [Finding("error", "storage", "bad")]
    assert [json.dumps(dict(each.metadata)) for each in sent] == ['{"batchtrain_probe": "1"}']


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["pending"], "would begin within 60 s, found it pending still. The job is sent"),
        (["pending", "running"], "would end within 90 s, found it running still. The job is sent"),
    ],
)
def test_a_probe_that_does_not_end_is_ended_and_warned_of(
    states: list[JobState], words: str, tmp_path: Path
) -> None:
    jobs, times = Jobs(states, ""), iter(range(0, 1000, 40))
    (found,) = ask_probe(
        request_for(tmp_path),
        jobs,  # type: ignore[arg-type]
        lambda _: None,
        sleep=lambda _: None,
        clock=lambda: float(next(times)),
    )
    assert (found.severity, found.key) == ("warning", "probe")
    assert found.message.startswith("the storage was not tried: expected that its probe probe-")
    assert words in found.message
    assert len(jobs.stopped) == 1


def test_the_time_that_a_probe_waits_is_not_of_its_time_to_run(tmp_path: Path) -> None:
    document = probe_nodes(FolderStorage(tmp_path / "runs"), check=lambda _: None)
    now = 0.0

    def sleep(_seconds: float) -> None:
        nonlocal now
        now += 50

    found = ask_probe(
        request_for(tmp_path),
        Jobs(["pending", "pending", "running", "running", "succeeded"], probe_line(document)),  # type: ignore[arg-type]
        lambda _: None,
        sleep=sleep,
        clock=lambda: now,
    )
    assert (found, now) == ([], 200)


def test_a_probe_that_cannot_be_stopped_is_a_warning_too(tmp_path: Path) -> None:
    class Stubborn(Jobs):
        def stop(self, submission_id: str) -> JobStatus:
            raise ClusterError("expected an answer, found none")

    times = iter(range(0, 1000, 40))
    (found,) = ask_probe(
        request_for(tmp_path),
        Stubborn(["running"], ""),  # type: ignore[arg-type]
        lambda _: None,
        sleep=lambda _: None,
        clock=lambda: float(next(times)),
    )
    assert found.severity == "warning"


def test_a_cluster_that_takes_no_probe_is_told_in_a_sentence(tmp_path: Path) -> None:
    def refuse(_: JobRequest) -> None:
        raise ClusterError("expected a Ray cluster,\n  found none")

    found = ask_probe(request_for(tmp_path), Jobs([], ""), refuse)  # type: ignore[arg-type]
    assert found == [Finding("error", "probe", "expected a Ray cluster, found none")]
