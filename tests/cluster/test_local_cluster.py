"""`cluster/local.sh`: a real cluster on this machine, that nobody else can reach or talk to."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.cluster.head import BIN

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "local.sh"


def local_sh(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        [SCRIPT, *words, "--folder", str(folder)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Its folder, and the environment of whoever uses it."""
    # Paths of sockets must be short.
    folder = Path(f"/tmp/bt-local-{os.getpid()}")  # noqa: S108
    ports = ["--port", "0", "--dashboard-port", "0"]
    started = local_sh("start", "--nodes", "2", "--memory-mb", "100", *ports, folder=folder)
    try:
        assert started.returncode == 0, started.stderr
        exports = dict(re.findall(r"^export (\w+)='?([^'\s]+)", started.stdout, re.MULTILINE))
        yield folder, {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **exports}
    finally:
        local_sh("stop", folder=folder)
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> set[int]:
    """All that was started for a folder, by their environment."""
    marker = f"BATCHTRAIN_LOCAL_CLUSTER={folder}".encode()
    found = set()
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (each / "environ").read_bytes().split(b"\0"):
                found.add(int(each.name))
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, as in /proc/net/tcp, on which processes listen."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(link.readlink().name)
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                addresses.add(words[1].partition(":")[0])
    return addresses


LOOPBACK = {
    "0100007F",  # 127.0.0.1
    "00000000000000000000000001000000",  # ::1
    "0000000000000000FFFF00000100007F",  # 127.0.0.1, in IPv6
}


def test_nobody_else_can_reach_it_or_read_its_token(cluster: tuple[Path, dict[str, str]]) -> None:
    folder, environ = cluster
    found = listening(processes_of(folder))
    assert found
    assert found <= LOOPBACK

    token = Path(environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    jobs = f"{environ['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(jobs)  # noqa: S310  # of this machine
    # No command line shows it.
    assert not [
        pid
        for pid in processes_of(folder)
        if token.read_bytes() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_its_nodes_are_real_and_a_job_runs_on_one_that_is_no_head(
    cluster: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environ = cluster
    script = (
        "import json, os, ray; ray.init(logging_level='ERROR'); "
        "print(json.dumps(sorted(n['Resources'].get('CPU', 0) for n in ray.nodes()))); "
        "print(os.environ['RAY_AUTH_MODE'])"
    )
    (tmp_path / "look.py").write_text(script)
    words = ["job", "submit", "--working-dir", ".", "--entrypoint-num-cpus", "1", "--"]
    done = subprocess.run(
        [BIN / "ray", *words, "python", "look.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    # Its log is found though it ran on another node than the head.
    assert "[0, 1.0, 1.0]\ntoken\n" in done.stdout
    # Each node has a folder of its own: those of one folder delete each other's files.
    folders = {each.name for each in folder.iterdir() if each.is_dir()}
    assert folders == {"head", "node-1", "node-2", "secret"}


def test_a_job_may_wait_a_week_for_its_turn(cluster: tuple[Path, dict[str, str]]) -> None:
    folder, _ = cluster
    heads = [pid for pid in processes_of(folder) if b"raylet" in _of(pid, "cmdline")]
    assert heads
    for pid in heads:
        assert f"RAY_JOB_START_TIMEOUT_SECONDS={7 * 24 * 3600}".encode() in _of(pid, "environ")


def _of(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def test_two_pods_of_a_night_follow_one_job_and_end_with_its_exit_code(
    cluster: tuple[Path, dict[str, str]],
) -> None:
    _, environ = cluster
    night = yaml.safe_load((ROOT / "cluster/kuberay/base/cronjob.yaml").read_text())["spec"]
    (container,) = night["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for _ in range(2):
        pod = subprocess.run(
            container["command"],
            env={**environ, "JOB_UID": "1"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        # There is no spec here.
        assert pod.returncode == 2, pod.stderr
        assert "/etc/batchtrain/spec/spec.yaml" in pod.stdout
    jobs = subprocess.run(
        [BIN / "ray", "job", "list"], env=environ, capture_output=True, text=True, timeout=100
    )
    assert jobs.stdout.count("submission_id='batchtrain-nightly-1'") == 1


def test_a_second_start_is_refused(cluster: tuple[Path, dict[str, str]]) -> None:
    folder, _ = cluster
    before = processes_of(folder)
    done = local_sh("start", folder=folder)
    assert done.returncode == 1
    assert f"a cluster was started in {folder}; stop it first" in done.stderr
    assert before <= processes_of(folder)


def test_stop_ends_what_start_began_and_nothing_else(cluster: tuple[Path, dict[str, str]]) -> None:
    folder, environ = cluster
    mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environ)
    # A process id that is another's now, as after a restart of the machine.
    (folder / "node-9.pid").write_text(f"{mine.pid}\n")
    try:
        done = local_sh("stop", folder=folder)
        assert done.returncode == 0, done.stderr
        assert processes_of(folder) == set()
        assert mine.poll() is None
        assert {each.suffix for each in folder.iterdir()} == {".log"}
        again = local_sh("stop", folder=folder)
        assert again.returncode == 1
        assert f"no cluster was started in {folder}" in again.stderr
    finally:
        mine.kill()
        mine.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "--nodes", "two"], "expected a whole number after --nodes, found 'two'"),
        (["start", "--node", "2"], "there is no option --node"),
        (["status"], "no cluster was started in"),
        (["env"], "no cluster was started in"),
        (["go"], "expected start, stop, status, env or help, found 'go'"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], message: str, tmp_path: Path) -> None:
    folder = Path(f"/tmp/bt-none-{os.getpid()}")  # noqa: S108
    done = local_sh(*words, folder=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert not folder.exists()
