"""What a cluster has, asked of its dashboard over HTTP; Ray is not needed for it."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from batchtrain.errors import ClusterError
from batchtrain.submission.profile import address_problem
from batchtrain.submission.token import Token, find_token

__all__ = ["ClusterFacts", "NodeFacts", "facts_from", "gather_facts", "is_loopback"]

LIMIT_S = 8.0
"""Seconds for all that is asked."""

MOST_BYTES = 64 * 2**20
CHUNK_BYTES = 2**16
MOST_NODES = 10_000
MOST_SHOWN = 64

VERSION = "/api/version"
METADATA = "/api/v0/cluster_metadata"
NODES = f"/api/v0/nodes?limit={MOST_NODES}"
STATUS = "/api/cluster_status"


@dataclass(frozen=True)
class NodeFacts:
    """A node that is alive.

    Attributes:
        name: Its address.
        cpus: The cores that Ray counts there.
        gpus: The GPUs.
        memory: In bytes, as Ray counts it; None where unknown.
        free_cpus: The cores that nobody holds now; None where unknown.
        free_gpus: The GPUs that nobody holds now; None where unknown.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    memory: float | None = None
    free_cpus: float | None = None
    free_gpus: float | None = None


@dataclass(frozen=True)
class ClusterFacts:
    """What is known of a cluster before anything is sent to it.

    Attributes:
        ray: Its version of Ray, such as 2.60.0; None where unknown.
        python: Its version of Python; None where unknown.
        nodes: Those that are alive; None where unknown.
        may_grow: Whether an autoscaler may add nodes; up to how many no dashboard says.
    """

    ray: str | None
    python: str | None
    nodes: tuple[NodeFacts, ...] | None
    may_grow: bool = False


def gather_facts(
    address: str,
    *,
    token: Token | None = None,
    environ: Mapping[str, str] = os.environ,
    limit: float = LIMIT_S,
) -> ClusterFacts:
    """Ask the dashboard of a cluster for its versions and nodes.

    Args:
        address: Of the dashboard, such as http://head:8265.
        token: What to show there; left out, `find_token` looks for it.
        environ: The environment.
        limit: Seconds in which all answers must be there.

    Raises:
        ClusterError: One sentence, without a secret, if the cluster does not answer, does not let
            us in, or is none.
    """
    problem = address_problem(address)
    if problem:
        raise ClusterError(f"address: {problem}. Correct it")
    asked = _Dashboard(address, token or find_token(environ), time.monotonic() + limit, limit)
    version = asked.ask(VERSION)
    if "ray_version" not in version:
        raise asked.is_another("a web server that is none")
    metadata, nodes, status = (asked.ask(path, must=False) for path in (METADATA, NODES, STATUS))
    return facts_from(version, metadata, nodes, status)


def facts_from(
    version: Mapping[str, Any],
    metadata: Mapping[str, Any],
    nodes: Mapping[str, Any],
    status: Mapping[str, Any],
) -> ClusterFacts:
    """Read the facts out of what a dashboard of Ray 2.60 answers; what is missing is unknown.

    Args:
        version: Of `/api/version`.
        metadata: Of `/api/v0/cluster_metadata`.
        nodes: Of `/api/v0/nodes`.
        status: Of `/api/cluster_status`.
    """
    listed = _at(nodes, "data", "result", "result")
    report = _at(status, "data", "clusterStatus")
    usage = _at(report, "loadMetricsReport", "usageByNode")
    found: tuple[NodeFacts, ...] | None = None
    if isinstance(listed, list):
        alive = [each for each in listed if _at(each, "state") == "ALIVE"]
        found = tuple(_node(each, usage) for each in alive)
    return ClusterFacts(
        ray=_text(version.get("ray_version")),
        python=_text(_at(metadata, "data", "pythonVersion")),
        nodes=found,
        may_grow=_may_grow(status, report),
    )


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine, so that what is sent there leaves it not.

    Example:
        >>> is_loopback("http://127.0.0.1:8265"), is_loopback("http://head:8265")
        (True, False)
    """
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _may_grow(status: Mapping[str, Any], report: Any) -> bool:
    """Whether somebody adds nodes; Ray's second autoscaler leaves no report at all."""
    if _at(status, "result") is not True:
        return False
    if report is None:
        return True
    kinds = _at(report, "autoscalerReport", "nodeTypeMapping")
    names = kinds.values() if isinstance(kinds, dict) else ()
    # Where there is no autoscaler each node has a type of its own, `node_` and its id.
    return any(isinstance(name, str) and not name.startswith("node_") for name in names)


def _node(entry: Mapping[str, Any], usage: Any) -> NodeFacts:
    total = _at(entry, "resources_total")
    used = _at(usage, str(entry.get("node_id"))) or _at(usage, str(entry.get("node_ip")))
    cpus, gpus = _number(_at(total, "CPU")), _number(_at(total, "GPU"))
    return NodeFacts(
        name=_text(entry.get("node_ip")) or "a node",
        cpus=cpus,
        gpus=gpus,
        memory=_number(_at(total, "memory")) or None,
        free_cpus=_free(cpus, used, "CPU"),
        free_gpus=_free(gpus, used, "GPU"),
    )


def _free(total: float, used: Any, name: str) -> float | None:
    if not isinstance(used, dict):
        return None
    held = used.get(name)
    return max(0.0, total - _number(held[0])) if isinstance(held, list) and held else total


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else 0.0


def _text(value: Any) -> str | None:
    """What a server calls something, fit to be printed."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(char for char in value if char.isprintable())[:MOST_SHOWN]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is for the address that was named, not for one that it sends on to."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Dashboard:
    """One address, asked within a time limit."""

    def __init__(self, address: str, token: Token | None, until: float, limit: float) -> None:
        self.address = address.rstrip("/")
        self.token = token
        self._until = until
        self._limit = limit
        handlers: list[Any] = [_NoRedirect()]
        if is_loopback(address):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, path: str, *, must: bool = True) -> Mapping[str, Any]:
        """The object that is answered; an empty one where it need not be and is not.

        Raises:
            ClusterError: If the address cannot be asked, or it must be and is none.
        """
        request = urllib.request.Request(f"{self.address}{path}")  # noqa: S310 # http(s), checked
        if self.token is not None:
            # Not among the headers that a redirect or a proxy's tunnel would pass on.
            request.add_unredirected_header("Authorization", f"Bearer {self.token.value}")
        try:
            with self._opener.open(request, timeout=self._left()) as answer:
                document = json.loads(self._read(answer))
        except urllib.error.HTTPError as error:
            error.close()
            if not must and error.code not in {401, 403}:
                return {}
            raise self._refused(error.code) from None
        except (OSError, HTTPException) as error:
            if not must:
                return {}
            raise self._unreachable(error) from None
        except (ValueError, RecursionError):  # no JSON, or no text
            document = None
        if isinstance(document, dict):
            return document
        if not must:
            return {}
        raise self.is_another("a web server that is none")

    def is_another(self, found: str) -> ClusterError:
        """There is no dashboard at the address, but something else."""
        return ClusterError(
            f"expected the dashboard of a Ray cluster at {self.address}, found {found}. Correct "
            "the address: the port of a dashboard is 8265 unless it was set"
        )

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _read(self, answer: Any) -> bytes:
        """The whole answer, in time and not without end."""
        parts, size = [], 0
        while part := answer.read1(CHUNK_BYTES):
            size += len(part)
            self._left()
            if size > MOST_BYTES:
                raise ValueError
            parts.append(part)
        return b"".join(parts)

    def _refused(self, code: int) -> ClusterError:
        where = f"expected access to the cluster at {self.address}, found"
        if code == 401 and self.token is None:
            return ClusterError(
                f"{where} that it asks for a token. Put the one that `ray get-auth-token` prints "
                "on its head into ~/.ray/auth_token, for you alone to read (chmod 600), or name "
                "its file in RAY_AUTH_TOKEN_PATH"
            )
        if code in {401, 403}:
            of = "what it asks for" if self.token is None else self.token.source
            return ClusterError(
                f"{where} that it refuses the token of {of} ({code}). Compare it with what "
                "`ray get-auth-token` prints on its head"
            )
        if 300 <= code < 400:
            return self.is_another(f"one that sends on to another ({code})")
        if code == 404:
            return self.is_another("a web server that is none")
        return ClusterError(
            f"expected the dashboard of a Ray cluster at {self.address} to answer, found the "
            f"error {code}. Look at the cluster's head"
        )

    def _unreachable(self, error: OSError | HTTPException) -> ClusterError:
        reason: Any = getattr(error, "reason", None) or error
        head = f"expected the dashboard of a Ray cluster at {self.address}, found"
        if isinstance(reason, TimeoutError):
            return ClusterError(
                f"{head} no answer within {self._limit:g} s. Look whether its head is up, and "
                "whether a firewall or a VPN lies between"
            )
        if isinstance(reason, ConnectionRefusedError):
            return ClusterError(
                f"{head} that nobody listens there. Start the cluster with `ray start --head`, or "
                "correct the address"
            )
        if isinstance(reason, socket.gaierror):
            return ClusterError(f"{head} no machine of that name. Correct the address")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ClusterError(
                f"{head} a certificate that this machine does not trust. Name the authority's "
                "file in SSL_CERT_FILE"
            )
        if isinstance(reason, ssl.SSLError):
            return ClusterError(f"{head} no TLS there. Write http://, or correct the port")
        if isinstance(reason, HTTPException | ConnectionResetError):
            return self.is_another("something that speaks no HTTP")
        return ClusterError(f"{head} that it cannot be reached. Look at the network")
