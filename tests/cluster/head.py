"""A Ray head of our own on this machine, started and asked as a user would."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Head", "Job", "starting_head"]

BIN = Path(sys.executable).parent
READY = "This command will now block forever"
SUBMIT_LIMIT_S = 110


@dataclass(frozen=True)
class Job:
    """A job that is over.

    Attributes:
        exit_code: What `ray job submit` ended with.
        log: What the job wrote, Ray's line about the entry point first.
        status: Ray's word for how it ended.
        driver_exit_code: What the entry point ended with.
        client: What `ray job submit` printed.
    """

    exit_code: int
    log: str
    status: str
    driver_exit_code: int | None
    client: str

    @property
    def lines(self) -> list[str]:
        """What our own process wrote into the log."""
        return self.log.partition("Running entrypoint for job")[2].splitlines()[1:]


@dataclass(frozen=True)
class Head:
    """A cluster that was started with `ray start --head` and token authentication.

    Attributes:
        dashboard: The address that jobs are submitted to.
        address: The address that a driver joins, `host:port`.
        environ: The environment of whoever talks to it.
        folder: What Ray writes.
    """

    dashboard: str
    address: str
    environ: dict[str, str]
    folder: Path

    def submit(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        within: Path,
        env: str = "",
        limit_s: float = SUBMIT_LIMIT_S,
    ) -> Job:
        """Submit an entry point of `jobs/` from a checkout and wait for its end.

        Args:
            name: Of the entry point, such as `pipeline`; and of the job.
            arguments: Its options.
            within: The checkout.
            env: The runtime environment; left out, the one that is shipped.
            limit_s: Seconds until it must have ended.
        """
        job_id = f"{name}-{secrets.token_hex(4)}"
        done = subprocess.run(
            self._submit_command(job_id, name, arguments, env),
            cwd=within,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        info = self.ask(f"jobs/{job_id}")
        log = self.ask(f"jobs/{job_id}/logs")["logs"]
        client = done.stdout + done.stderr
        return Job(done.returncode, log, info["status"], info["driver_exit_code"], client)

    @contextmanager
    def submitting(self, name: str, arguments: Sequence[str], *, within: Path) -> Iterator[Any]:
        """Submit a job and give its id and the log as it grows, line by line."""
        job_id = f"{name}-{secrets.token_hex(4)}"
        process = subprocess.Popen(
            self._submit_command(job_id, name, arguments, ""),
            cwd=within,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield job_id, process.stdout
        finally:
            process.terminate()
            process.communicate()

    def command(self, *words: str, within: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment, such as `ray job stop ID`."""
        return subprocess.run(
            [BIN / words[0], *words[1:]],
            cwd=within,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=SUBMIT_LIMIT_S,
        )

    def ask(self, path: str, *, method: str = "GET") -> Any:
        """What the dashboard answers to whoever has the token."""
        token = Path(self.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(  # noqa: S310  # an address of this machine
            f"{self.dashboard}/api/{path}",
            headers={"Authorization": f"Bearer {token}"},
            method=method,
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return json.load(answer)

    def _submit_command(
        self, job_id: str, name: str, arguments: Sequence[str], env: str
    ) -> list[str]:
        words = ["--address", self.dashboard, "--submission-id", job_id, "--working-dir", "."]
        words += ["--runtime-env", env or "jobs/runtime_env.yaml", "--log-style", "record"]
        entry = ["python", f"jobs/{name}.py", *arguments]
        return [str(BIN / "ray"), "job", "submit", *words, "--log-color", "false", "--", *entry]


@contextmanager
def starting_head(
    *, num_cpus: int, second_node: dict[str, str] | None = None, second_cpus: int = 0
) -> Iterator[Head]:
    """Start a head; at the end it is gone with everything that it started.

    Args:
        num_cpus: The cores that it counts.
        second_node: Whether to add a node, and what its environment has besides.
        second_cpus: The cores that this node counts.
    """
    # Sockets lie in this folder, and their paths may have about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-head-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environ = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    dashboard_port, client_port = _free_ports(2)
    words = ["--head", "--port", "0", "--num-cpus", str(num_cpus), "--temp-dir", f"{folder}/ray"]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    words += ["--ray-client-server-port", str(client_port), "--disable-usage-stats"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_kill_all, f"RAY_AUTH_TOKEN_PATH={token}")
        said = stack.enter_context(_ray_start(words, environ))
        address = re.search(r"--address='([\d.:]+)'", said)
        assert address is not None, said
        if second_node is not None:
            # Its own folder: nodes of one folder delete each other's working directories.
            words = ["--address", address[1], "--num-cpus", str(second_cpus)]
            words += ["--temp-dir", f"{folder}/node"]
            stack.enter_context(_ray_start(words, {**environ, **second_node}))
        yield Head(f"http://127.0.0.1:{dashboard_port}", address[1], environ, folder / "ray")


@contextmanager
def _ray_start(words: Sequence[str], environ: dict[str, str]) -> Iterator[str]:
    """Start a node in the foreground, and give what it said until it was ready."""
    memory = ["--object-store-memory", str(100 * 2**20), "--dashboard-agent-listen-port", "0"]
    command = [str(BIN / "ray"), "start", *words, *memory, "--block", "--log-style", "record"]
    process = subprocess.Popen(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield "".join(_until_ready(process.stdout))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _until_ready(lines: IO[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if READY in line:
            return
    raise AssertionError("`ray start` ended before it was ready")


def _kill_all(marker: str) -> None:
    """End every process whose environment holds a marker: drivers, workers, agents."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
