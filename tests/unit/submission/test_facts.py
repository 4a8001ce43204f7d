"""What a dashboard is asked, and what is said where it does not answer as it should."""

from __future__ import annotations

import copy
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import ClusterError
from batchtrain.submission.facts import ClusterFacts, NodeFacts, facts_from, gather_facts
from batchtrain.submission.token import find_token

RECORDED = Path(__file__).resolve().parents[2] / "support" / "ray-2.60-dashboard.json"
"""The answers of a head with 2 cores and a node without any (Ray 2.60.0)."""

PATHS = {
    "/api/version": "version",
    "/api/v0/cluster_metadata": "metadata",
    "/api/v0/nodes?limit=10000": "nodes",
    "/api/cluster_status": "status",
}
TOKEN = "0f" * 32
FACTS = ClusterFacts(
    ray="2.60.0",
    python="3.11.7",
    nodes=(
        NodeFacts("192.0.2.2", 2.0, 0.0, 23987232768.0, 2.0, 0.0),
        NodeFacts("192.0.2.2", 0.0, 0.0, 23689674752.0, 0.0, 0.0),
    ),
)

Answer = tuple[int, bytes]


def recorded() -> Any:
    return json.loads(RECORDED.read_text())


@contextmanager
def serving(answer: Callable[[str, Mapping[str, str]], Answer]) -> Iterator[str]:
    """A web server on this machine; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answer(self.path, self.headers)  # type: ignore[arg-type]
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("Location", body.decode())
            with suppress(BrokenPipeError):
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ray(path: str, headers: Mapping[str, str]) -> Answer:
    """Ray's dashboard, with token authentication."""
    shown = headers.get("Authorization")
    if shown is None:
        return 401, b"Unauthorized: Missing authentication token"
    if shown != f"Bearer {TOKEN}":
        return 403, b"Forbidden: Invalid authentication token"
    return 200, json.dumps(recorded()[PATHS[path]]).encode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_cluster_says_what_it_has_to_whoever_has_its_token(home: Path) -> None:
    with serving(ray) as address:
        assert gather_facts(address, environ={"RAY_AUTH_TOKEN": f"{TOKEN}\n"}) == FACTS
        assert gather_facts(f"{address}/", environ={"RAY_AUTH_TOKEN": TOKEN}) == FACTS
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)
        assert gather_facts(address, environ={}) == FACTS
        with pytest.raises(ClusterError, match="that it asks for a token"):
            gather_facts(address, environ={"RAY_AUTH_MODE": "disabled"})


REFUSED: dict[str, tuple[Callable[[str, Mapping[str, str]], Answer], str]] = {
    "no token": (
        lambda path, headers: ray(path, {}),
        "refuses the token of RAY_AUTH_TOKEN (401). Compare it with what `ray get-auth-token`",
    ),
    "another token": (
        lambda path, headers: ray(path, {"Authorization": "Bearer other"}),
        "refuses the token of RAY_AUTH_TOKEN (403). Compare it with what `ray get-auth-token`",
    ),
    "another server": (
        lambda path, headers: (404, b"no such page"),
        "found a web server that is none. Correct the address: the port of a dashboard is 8265",
    ),
    "no JSON": (lambda path, headers: (200, b"<html>"), "found a web server that is none"),
    "a list": (lambda path, headers: (200, b"[1]"), "found a web server that is none"),
    "other JSON": (lambda path, headers: (200, b"{}"), "found a web server that is none"),
    "deep JSON": (
        lambda path, headers: (200, b"[" * 200_000),
        "found a web server that is none",
    ),
    "no text": (lambda path, headers: (200, b"\xff\xfe\x00"), "found a web server that is none"),
    "an error": (
        lambda path, headers: (503, b"secret of the server"),
        "to answer, found the error 503. Look at the cluster's head",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_cluster_of_ours_gets_one_sentence(case: str, home: Path) -> None:
    answer, message = REFUSED[case]
    with serving(answer) as address, pytest.raises(ClusterError) as caught:
        gather_facts(address, environ={"RAY_AUTH_TOKEN": TOKEN})
    said = str(caught.value)
    assert message in said
    assert address in said
    assert "\n" not in said
    assert TOKEN not in said
    assert "secret of the server" not in said


def test_nobody_waits_long_for_a_dashboard(home: Path) -> None:
    over = threading.Event()

    def silent(path: str, headers: Mapping[str, str]) -> Answer:
        over.wait(10)
        return 200, b""

    with serving(silent) as address:
        try:
            with pytest.raises(ClusterError, match=r"no answer within 0.1 s. Look whether its hea"):
                gather_facts(address, environ={}, limit=0.1)
        finally:
            over.set()


def test_a_token_is_not_carried_to_where_a_server_sends_on(home: Path) -> None:
    seen: list[str | None] = []

    def thief(path: str, headers: Mapping[str, str]) -> Answer:
        seen.append(headers.get("Authorization"))
        return 200, b"{}"

    with (
        serving(thief) as other,
        serving(lambda *_: (302, other.encode())) as address,
        pytest.raises(ClusterError, match=r"sends on to another \(302\)"),
    ):
        gather_facts(address, environ={"RAY_AUTH_TOKEN": TOKEN})
    assert seen == []


def test_what_is_not_answered_is_unknown(home: Path) -> None:
    def old(path: str, headers: Mapping[str, str]) -> Answer:
        return ray(path, headers) if path == "/api/version" else (500, b"")

    with serving(old) as address:
        facts = gather_facts(address, environ={"RAY_AUTH_TOKEN": TOKEN})
    assert facts == ClusterFacts("2.60.0", None, None, may_grow=False)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "that nobody listens there. Start the cluster with"),
        ("http://no-such-host.invalid:8265", "no machine of that name. Correct the address"),
        ("head:8265", "found one of another kind. Correct it"),
        ("http://me:hunter2hunter2@head:8265", "found credentials in it. Correct it"),
    ],
)
def test_an_address_that_leads_nowhere_gets_one_sentence(
    address: str, message: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, *_: Any) -> Any:
        if host == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ClusterError) as caught:
        gather_facts(address, environ={})
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_port_that_speaks_something_else_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00")  # as gRPC does

        thread = threading.Thread(target=greet)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"something that speaks no HTTP. Correct the addre"):
            gather_facts(address, environ={})
        thread.join()


def test_cores_that_are_held_are_not_free_and_nodes_that_are_gone_do_not_count() -> None:
    answers = recorded()
    head, other = answers["nodes"]["data"]["result"]["result"]
    head["resources_total"]["GPU"] = 4.0
    report = answers["status"]["data"]["clusterStatus"]
    usage = report["loadMetricsReport"]["usageByNode"][head["node_id"]]
    usage["CPU"], usage["GPU"] = [1.5, 2.0], [3.0, 4.0]
    other["state"] = "DEAD"
    facts = facts_from(*(answers[name] for name in PATHS.values()))
    assert facts.nodes == (NodeFacts("192.0.2.2", 2.0, 4.0, 23987232768.0, 0.5, 1.0),)


def test_a_cluster_with_an_autoscaler_may_grow() -> None:
    answers = recorded()
    facts = [answers[name] for name in ("version", "metadata", "nodes")]
    assert not facts_from(*facts, answers["status"]).may_grow
    first = copy.deepcopy(answers["status"])
    kinds = first["data"]["clusterStatus"]["autoscalerReport"]["nodeTypeMapping"]
    kinds[next(iter(kinds))] = "gpu-workers"
    assert facts_from(*facts, first).may_grow
    # The second autoscaler of Ray reports nothing there.
    second = {"result": True, "data": {"clusterStatus": None, "autoscalingStatus": None}}
    assert facts_from(*facts, second).may_grow
    assert not facts_from(*facts, {}).may_grow


def test_answers_of_other_shapes_are_unknown_and_never_an_error() -> None:
    for strange in ({}, {"data": []}, {"data": {"result": {"result": [{}, 1, None]}}}):
        facts = facts_from({"ray_version": 7}, strange, strange, strange)
        assert facts.ray is None
        assert facts.nodes in (None, ())
    node = {"state": "ALIVE", "node_ip": "a\x1b[31mb", "resources_total": {"CPU": "NaN", "GPU": -1}}
    (found,) = facts_from({}, {}, {"data": {"result": {"result": [node]}}}, {}).nodes or ()
    assert (found.name, found.cpus, found.gpus, found.free_cpus) == ("a[31mb", 0.0, 0.0, None)


def test_a_token_is_looked_for_where_ray_does(tmp_path: Path) -> None:
    file, own = tmp_path / "token", tmp_path / ".ray" / "auth_token"
    own.parent.mkdir()
    assert find_token({}, tmp_path) is None
    for path, text in ((file, "of-file\n"), (own, "of-home")):
        path.touch(mode=0o600)
        path.write_text(text)
    environ = {"RAY_AUTH_TOKEN": "of-variable", "RAY_AUTH_TOKEN_PATH": str(file)}
    for wanted, source in (
        ("of-variable", "RAY_AUTH_TOKEN"),
        ("of-file", str(file)),
        ("of-home", str(own)),
    ):
        token = find_token(environ, tmp_path)
        assert token is not None
        assert (token.value, token.source, token.others_read) == (wanted, source, False)
        assert wanted not in repr(token).replace(str(tmp_path), "")
        environ.pop(next(iter(environ), ""), None)
    own.chmod(0o640)
    token = find_token({}, tmp_path)
    assert token is not None
    assert token.others_read


@pytest.mark.parametrize("text", ["two words", "line\nline", "ümlaut", "\x00"])
def test_what_can_be_no_token_is_not_repeated(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    for environ in ({"RAY_AUTH_TOKEN": text}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}):
        with pytest.raises(ClusterError, match="expected a token in") as caught:
            find_token(environ, tmp_path)
        assert text not in str(caught.value)
    with pytest.raises(ClusterError, match="found no file"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path)
