"""All that is looked at before a job is sent, in the order in which it costs time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from batchtrain.errors import ClusterError
from batchtrain.spec.load import LoadedSpec
from batchtrain.submission.facts import gather_facts
from batchtrain.submission.findings import Finding, errors_among
from batchtrain.submission.preflight import check_cluster, check_connection, check_request
from batchtrain.submission.profile import Profile
from batchtrain.submission.token import find_token

__all__ = ["all_findings", "dashboard_address"]

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
