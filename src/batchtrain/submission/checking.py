"""All that is looked at before a job is sent, in the order in which it costs time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from batchtrain.errors import ClusterError
from batchtrain.spec.load import LoadedSpec
from batchtrain.submission.facts import gather_facts, is_loopback
from batchtrain.submission.findings import Finding, errors_among
from batchtrain.submission.preflight import check_cluster, check_connection, check_request
from batchtrain.submission.profile import Profile
from batchtrain.submission.token import Token, find_token

__all__ = ["all_findings", "dashboard_address", "refuse_plain_http"]

HERE = "http://127.0.0.1:8265"


def all_findings(
    loaded: LoadedSpec,
    profile: Profile,
    *,
    environ: Mapping[str, str],
    command: str = "run",
    separate: bool = False,
    probe: Callable[[], list[Finding]] | None = None,
) -> list[Finding]:
    """Look at spec and profile, then at the cluster, then at its storage.

    What costs more is not done where a job cannot run anyway.

    Args:
        loaded: The spec, with what the profile has put in.
        profile: Where it is to run, with the backend and the address that are in force.
        environ: The environment of whoever submits.
        command: What the job does.
        separate: Whether each stage is a job of its own.
        probe: Tries the storage on a cluster of Ray, as `ask_probe` does; left out, it is not
            tried.
    """
    is_ray = profile.backend == "ray"
    findings = check_request(
        loaded,
        profile,
        environ=environ,
        command=command,
        separate=separate,
        will_probe=is_ray and probe is not None,
    )
    if not is_ray or errors_among(findings):
        return findings
    address = dashboard_address(profile.address, environ)
    try:
        token = find_token(environ)
        facts = gather_facts(address, token=token, environ=environ)
    except ClusterError as error:
        return [*findings, Finding("error", "address", str(error))]
    findings += check_connection(address, token)
    findings += check_cluster(loaded, profile, facts, command=command, separate=separate)
    if probe is not None and not errors_among(findings):
        findings += probe()
    return findings


def dashboard_address(address: str | None, environ: Mapping[str, str]) -> str:
    """The dashboard that Ray's own client would ask.

    Args:
        address: What the user says; it may be left out.
        environ: The environment.
    """
    for asked in (address, environ.get("RAY_API_SERVER_ADDRESS"), environ.get("RAY_ADDRESS")):
        if asked and asked.startswith(("http://", "https://")):
            return asked
    return address or HERE


def refuse_plain_http(address: str, file: Path, token: Token | None) -> None:
    """Keep a token off a wire that others may read, where nobody but a file asks for that.

    Args:
        address: Of the dashboard, as a profile has it.
        file: That of the profile, which the user has neither named nor put among their own.
        token: What would be shown there.

    Raises:
        ClusterError: If the token would go over plain http beyond this machine.
    """
    if token is None or is_loopback(address) or urlsplit(address).scheme != "http":
        return
    raise ClusterError(
        f"expected https:// for an address beyond this machine, found {address} in {file}, so that "
        f"others could read the token of {token.source} on the way. Put TLS before the dashboard, "
        "or go through `ssh -L 8265:localhost:8265`; where you trust the file and the network, say "
        f"so with `--address {address}` or `--profiles {file}`"
    )
