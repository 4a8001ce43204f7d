"""An object store: what its answers mean, what is lost on the way, and what nobody may read."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.errors import ArtifactMissingError, StorageError, StorageUnavailableError
from batchtrain.prediction.loaded import load_bundle
from batchtrain.storage import ProbedStorage, RetryingStorage, open_storage
from batchtrain.storage.objects import ObjectStorage
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, FakeS3, Fault, serving_s3, use_s3
from tests.unit.conftest import Finished

pytestmark = pytest.mark.s3

MAY_PASS = [
    Fault(500, "InternalError"),
    Fault(502),
    Fault(503, "SlowDown"),
    Fault(504),
    Fault(429),
    Fault(408),
    Fault(409, "ConditionalRequestConflict"),
    Fault(400, "RequestTimeout"),
    Fault(0),
]
STAYS = [
    (Fault(403, "AccessDenied"), "credentials"),
    (Fault(403, "SignatureDoesNotMatch"), "credentials"),
    (Fault(403, "InvalidAccessKeyId"), "credentials"),
    (Fault(403, "RequestTimeTooSkewed"), "credentials"),
    (Fault(401), "credentials"),
    (Fault(400, "ExpiredToken"), "credentials"),
    (Fault(301, "PermanentRedirect"), "AWS_REGION"),
    (Fault(400, "InvalidArgument"), "400 InvalidArgument"),
    (Fault(501, "NotImplemented"), "conditional writes"),
]
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("read", ("there",)),
    ("write", ("new", b"data")),
    ("create", ("new", b"data")),
    ("list", ("",)),
    ("delete", ("there",)),
]
HEADS: list[tuple[str, tuple[Any, ...]]] = [("size", ("there",)), ("modified", ("there",))]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeS3, str]]:
    with serving_s3() as served:
        yield served


@pytest.fixture
def s3(server: tuple[FakeS3, str], monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    """An empty bucket, and an environment that leads to it."""
    state, endpoint = server
    state.reset()
    use_s3(monkeypatch, endpoint)
    return state


@pytest.fixture
def storage(s3: FakeS3) -> ObjectStorage:
    return ObjectStorage("s3://bucket/runs")


def always(fault: Fault) -> Callable[[str, str], Fault]:
    return lambda method, key: fault


def once(fault: Fault, method: str = "PUT") -> Callable[[str, str], Fault | None]:
    """A fault at the first request of a method."""
    left = [fault]
    return lambda found, key: left.pop() if found == method and left else None


def shown(error: BaseException) -> str:
    """All that a traceback of an error would print."""
    return "".join(traceback.format_exception(error))


def assert_no_secret(error: BaseException) -> None:
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in shown(error)


@pytest.mark.parametrize(("verb", "arguments"), CALLS + HEADS)
@pytest.mark.parametrize("fault", MAY_PASS, ids=str)
def test_r27_an_answer_that_may_pass_says_so(
    storage: ObjectStorage, s3: FakeS3, verb: str, arguments: tuple[Any, ...], fault: Fault
) -> None:
    if verb in {"size", "modified"} and fault.status == 400:
        pytest.skip("an answer to HEAD has no body that could name the error")
    s3.objects["runs/there"] = b"1"
    s3.fault = always(fault)
    with pytest.raises(StorageUnavailableError) as caught:
        getattr(storage, verb)(*arguments)
    assert storage.url() in str(caught.value)
    assert "Check the network" in str(caught.value)
    assert_no_secret(caught.value)
    assert s3.objects == {"runs/there": b"1"}
    assert len(s3.requests) == 1  # the client does not try again behind our back


@pytest.mark.parametrize(("verb", "arguments"), CALLS)
@pytest.mark.parametrize(("fault", "advice"), STAYS, ids=str)
def test_j12_a_refusal_says_what_to_check_and_no_secret(
    storage: ObjectStorage,
    s3: FakeS3,
    verb: str,
    arguments: tuple[Any, ...],
    fault: Fault,
    advice: str,
) -> None:
    s3.fault = always(fault)
    pauses: list[float] = []
    with pytest.raises(StorageError) as caught:
        getattr(RetryingStorage(storage, sleep=pauses.append), verb)(*arguments)
    assert type(caught.value) is StorageError
    assert storage.url() in str(caught.value)
    assert advice in str(caught.value)
    assert pauses == []
    assert_no_secret(caught.value)


def test_a_reply_that_ends_in_the_middle_is_tried_again(storage: ObjectStorage, s3: FakeS3) -> None:
    s3.objects["runs/key"] = b"x" * 1000
    s3.fault = once(Fault(-1, is_done=True), "GET")
    retrying = RetryingStorage(storage, sleep=lambda seconds: None)
    assert retrying.read("key") == b"x" * 1000
    assert retrying.retried == 1


@pytest.mark.parametrize("lost", [Fault(0, is_done=True), Fault(500, is_done=True)], ids=str)
def test_r28_a_create_whose_reply_is_lost_is_one_version_and_known(
    storage: ObjectStorage, s3: FakeS3, lost: Fault
) -> None:
    s3.fault = once(lost)
    retrying = RetryingStorage(storage, sleep=lambda seconds: None)
    assert retrying.create("key", b"mine") is True
    assert retrying.create("key", b"theirs") is False
    assert s3.objects == {"runs/key": b"mine"}


def test_r28_a_create_whose_reply_and_whose_name_are_lost_is_not_won(
    storage: ObjectStorage, s3: FakeS3
) -> None:
    s3.objects["runs/key"] = b"theirs"
    s3.fault = once(Fault(503))
    retrying = RetryingStorage(storage, sleep=lambda seconds: None)
    assert retrying.create("key", b"mine") is False
    assert s3.objects == {"runs/key": b"theirs"}


@pytest.mark.parametrize(("creates", "said"), [("ignored", "exclusive create"), ("unknown", "501")])
def test_j13_a_server_without_conditional_writes_is_refused(
    s3: FakeS3, creates: Any, said: str
) -> None:
    s3.creates = creates
    with pytest.raises(StorageError, match=said):
        open_storage("s3://bucket/runs", Path()).create("key", b"data")
    assert s3.objects == {}


def test_j12_a_bucket_that_is_absent_is_named(s3: FakeS3) -> None:
    storage = open_storage("s3://nobucket/runs", Path())
    for attempt in (lambda: storage.write("key", b"1"), lambda: storage.create("key", b"1")):
        with pytest.raises(StorageError, match="expected the bucket s3://nobucket, found none"):
            attempt()
    with pytest.raises(StorageError, match="expected the bucket s3://nobucket, found none"):
        storage.list("a")
    with pytest.raises(StorageError, match="expected the bucket s3://nobucket, found none"):
        storage.read("a")


def test_j12_a_right_to_write_that_is_missing_is_found_before_the_first_write(s3: FakeS3) -> None:
    s3.objects["runs/there"] = b"1"
    s3.fault = lambda method, key: Fault(403, "AccessDenied") if method == "PUT" else None
    storage = open_storage("s3://bucket/runs", Path())
    assert storage.read("there") == b"1"
    with pytest.raises(StorageError) as caught:
        storage.write("key", b"data")
    assert "expected to create a new file at the start" in str(caught.value)
    assert "their rights" in str(caught.value)
    assert_no_secret(caught.value)
    assert s3.objects == {"runs/there": b"1"}


def test_j12_nobody_at_the_endpoint_is_told_after_one_call(
    s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage = ProbedStorage(ObjectStorage("s3://bucket/runs"))
    storage._quick._sleep = lambda seconds: None
    with pytest.raises(StorageUnavailableError, match="Check the network, the endpoint") as caught:
        storage.write("key", b"data")
    assert_no_secret(caught.value)


def test_j12_http_must_be_allowed(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP=true"):
        ObjectStorage("s3://bucket/runs").read("key")


def test_j12_no_credentials_is_said_so(
    storage: ObjectStorage, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the client says where neither the environment nor the machine has any.
    error = storage._obstore.exceptions.GenericError(
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - "
        "HTTP error: error sending request"
    )

    def fail(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(storage._obstore, "get", fail)
    with pytest.raises(StorageUnavailableError, match="no credentials in the environment"):
        storage.read("key")


def test_an_azure_container_needs_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        ObjectStorage("az://container/runs")


def test_an_object_that_changes_between_its_parts_is_read_again(
    storage: ObjectStorage, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.storage.objects.PART_BYTES", 10)
    s3.objects["runs/key"] = b"a" * 35
    gets = 0

    def change(method: str, key: str) -> None:
        nonlocal gets
        gets += method == "GET"
        if gets == 3:
            s3.objects["runs/key"] = b"b" * 35

    s3.fault = change
    retrying = RetryingStorage(storage, sleep=lambda seconds: None)
    assert retrying.read("key") == b"b" * 35


def test_the_uri_of_a_key_is_below_the_address(storage: ObjectStorage) -> None:
    assert storage.url() == "s3://bucket/runs"
    assert storage.url("a/b") == "s3://bucket/runs/a/b"
    assert ObjectStorage("s3://bucket/runs/").url("a") == "s3://bucket/runs/a"


# ----------------------------------------------------------------------------------------------
# A bundle on an object store


@pytest.fixture
def bundle_address(s3: FakeS3, finished: Finished) -> str:
    """The bundle of the finished run, copied to the bucket."""
    assert finished.result.bundle is not None
    folder = Path(finished.result.bundle.artifact.url)
    for path in folder.rglob("*"):
        if path.is_file():
            s3.objects[f"models/small/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return "s3://bucket/models/small"


def test_a_bundle_is_loaded_from_an_address(bundle_address: str, finished: Finished) -> None:
    assert finished.result.bundle is not None
    here = load_bundle(finished.result.bundle.artifact.url).predict(finished.table.to_pandas())
    there = load_bundle(bundle_address).predict(finished.table.to_pandas())
    assert there.equals(here)
    with pytest.raises(ArtifactMissingError, match=r"s3://bucket/models/other/manifest\.json"):
        load_bundle("s3://bucket/models/other")


def test_the_command_line_takes_an_address(bundle_address: str, finished: Finished) -> None:
    verified = CliRunner().invoke(app, ["verify", bundle_address, "--json"])
    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout.splitlines()[-1])["exact"] is True
    row = json.dumps(finished.table.slice(0, 1).to_pylist()[0])
    predicted = CliRunner().invoke(app, ["predict", bundle_address, "--row", row, "--json"])
    assert predicted.exit_code == 0, predicted.output
    assert "prediction" in json.loads(predicted.stdout.splitlines()[-1])
