"""An S3 server in this process: enough of the protocol for a storage, and faults on request.

It keeps what S3 promises: reads after writes, and `If-None-Match: *` under one lock, so that
of many writers of a name one wins.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest

__all__ = ["ACCESS_KEY", "SECRET_KEY", "FakeS3", "Fault", "serving_s3", "use_s3"]

BUCKET = "bucket"
ACCESS_KEY = "AKIAEXAMPLEACCESSKEY"
SECRET_KEY = "example/secret+key/that/no/message/may/show"  # noqa: S105

MAX_KEYS = 7
"""Names in one answer to a listing; few, so that every test of a listing turns pages."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: The answer; 0 closes the connection without one, -1 in the middle of the body.
        code: S3's name of the error.
        is_done: Whether the server does the work first: then only the reply is lost.
    """

    status: int
    code: str = ""
    is_done: bool = False


@dataclass
class FakeS3:
    """The objects of one bucket and how the server treats requests for them.

    Attributes:
        objects: Key to data.
        fault: Asked at every request with its method and key.
        creates: Whether `If-None-Match: *` is honoured, ignored, or not known.
        requests: The method and key of every request so far.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[str, str], Fault | None] = lambda method, key: None
    creates: Literal["honoured", "ignored", "unknown"] = "honoured"
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """An empty bucket on a server without faults."""
        self.__dict__.update(FakeS3().__dict__)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for an answer; two would wait for each other (Nagle's algorithm)
    state: FakeS3

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        _, bucket, *rest = unquote(url.path).split("/", 2)
        key = rest[0] if rest else ""
        query = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.state.lock:
            self.state.requests.append((self.command, key))
            fault = self.state.fault(self.command, key)
            if fault is None or fault.is_done:
                answer = self._done(bucket, key, query, body)
        if fault is not None and fault.status > 0:
            self._error(fault.status, fault.code)
        elif fault is not None and fault.status == 0:
            self.close_connection = True
        else:
            self._send(*answer, cut=fault is not None)

    def _done(
        self, bucket: str, key: str, query: dict[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Do what is asked; the status, body and headers of the answer."""
        state = self.state
        if bucket != BUCKET:
            return self._refusal(404, "NoSuchBucket")
        if not key:
            return self._deleted(body) if "delete" in query else self._listed(query)
        if "uploads" in query or "uploadId" in query:
            return self._uploaded(key, query, body)
        if self.command == "PUT":
            if self.headers.get("If-None-Match") == "*" and state.creates == "unknown":
                return self._refusal(501, "NotImplemented")
            wants_new = self.headers.get("If-None-Match") == "*" and state.creates == "honoured"
            if wants_new and key in state.objects:
                return self._refusal(412, "PreconditionFailed")
            state.objects[key] = body
            return 200, b"", {"ETag": _etag(body)}
        if key not in state.objects:
            return self._refusal(404, "NoSuchKey")
        return self._read(state.objects[key])

    def _read(self, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        headers = {"ETag": _etag(data), "Last-Modified": formatdate(usegmt=True)}
        wanted = self.headers.get("Range")
        if self.headers.get("If-Match") not in {None, _etag(data)}:
            return self._refusal(412, "PreconditionFailed")
        if wanted is None:
            return 200, data, headers
        start, end = (int(each) for each in wanted.removeprefix("bytes=").split("-"))
        end = min(end, len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, data[start : end + 1], headers

    def _uploaded(
        self, key: str, query: dict[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        uploads = self.state.uploads
        if "uploads" in query:
            upload = str(len(uploads))
            uploads[upload] = {}
            return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        parts = uploads[query["uploadId"]]
        if self.command == "PUT":
            parts[int(query["partNumber"])] = body
            return 200, b"", {"ETag": _etag(body)}
        if self.command == "POST":
            self.state.objects[key] = b"".join(parts[number] for number in sorted(parts))
        del uploads[query["uploadId"]]
        return _xml("CompleteMultipartUploadResult", f"<ETag>{_etag(b'')}</ETag>")

    def _listed(self, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        keys = [key for key in sorted(self.state.objects) if key.startswith(prefix) and key > after]
        shown = keys[:MAX_KEYS]
        content = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.state.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in shown
        )
        if len(keys) > len(shown):
            content += f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>"
        content += f"<IsTruncated>{str(len(keys) > len(shown)).lower()}</IsTruncated>"
        return _xml("ListBucketResult", content)

    def _deleted(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        tree = ET.fromstring(body)  # noqa: S314  # our own client wrote it
        keys = [element.text or "" for element in tree.iter() if element.tag.endswith("Key")]
        for key in keys:
            self.state.objects.pop(key, None)
        deleted = (f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _xml("DeleteResult", "".join(deleted))

    def _refusal(self, status: int, code: str) -> tuple[int, bytes, dict[str, str]]:
        # S3 repeats the access key in what it says of a wrong signature.
        content = f"<Code>{code}</Code><Message>m</Message><AWSAccessKeyId>{ACCESS_KEY}"
        return status, f"<Error>{content}</AWSAccessKeyId></Error>".encode(), {}

    def _error(self, status: int, code: str) -> None:
        self._send(*self._refusal(status, code))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up on a fault is what the test wants."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _xml(name: str, content: str) -> tuple[int, bytes, dict[str, str]]:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{content}</{name}>'
    return 200, text.encode(), {"Content-Type": "application/xml"}


@contextmanager
def serving_s3() -> Iterator[tuple[FakeS3, str]]:
    """Serve an empty bucket `bucket`; yields its state and the address of the server."""
    state = FakeS3()
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_s3(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point the environment at a server, with credentials that are easy to find in a message."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    patch.setenv("AWS_REGION", "us-east-1")
