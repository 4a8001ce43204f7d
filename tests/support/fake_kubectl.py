"""A `kubectl` of a folder: it keeps objects as files, and says what the real one says.

A test changes the objects as KubeRay would, and reads in `calls` what was asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["FakeKubectl", "main"]

SCRIPT = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.support.fake_kubectl import main
main({folder!r}, sys.argv[1:])
"""


class FakeKubectl:
    """Its objects and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        script = self.bin / "kubectl"
        root = str(Path(__file__).resolve().parents[2])
        script.write_text(SCRIPT.format(python=sys.executable, root=root, folder=str(folder)))
        script.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call."""
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """All of a kind."""
        return [json.loads(path.read_text()) for path in sorted(self._folder.glob(f"{kind}.*"))]

    def set_status(self, name: str, **status: Any) -> None:
        """What KubeRay would write into a RayJob."""
        path = self._folder / f"rayjob.{name}"
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": status}))

    def answer(
        self,
        verb: str,
        *,
        code: int = 0,
        stdout: str = "",
        stderr: str = "",
        then: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """What `logs` or `exec` says from now on; for `create`, its failure.

        Args:
            verb: The command.
            code: Its exit code.
            stdout: What it prints.
            stderr: What it prints there.
            then: The status that RayJobs have afterwards, by their names.
        """
        text = {"code": code, "stdout": stdout, "stderr": stderr, "then": then or {}}
        (self._folder / f"answer.{verb}").write_text(json.dumps(text))


def main(folder: str, words: list[str]) -> None:
    """One call."""
    place = Path(folder)
    with (place / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    while words[0] in {"--namespace", "--context"}:
        words = words[2:]
    answer = place / f"answer.{words[0]}"
    if answer.exists():
        found = json.loads(answer.read_text())
        for name, status in found["then"].items():
            path = place / f"rayjob.{name}"
            path.write_text(json.dumps({**json.loads(path.read_text()), "status": status}))
        sys.stdout.write(found["stdout"])
        sys.stderr.write(found["stderr"])
        sys.exit(found["code"])
    {"create": _create, "get": _get, "patch": _patch, "logs": _nothing, "exec": _nothing}[words[0]](
        place, words[1:]
    )


def _create(place: Path, _words: list[str]) -> None:
    document = yaml.safe_load(sys.stdin.read())
    kind, name = document["kind"].lower(), document["metadata"]["name"]
    document["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-01-02T03:04:05Z"}
    try:
        with (place / f"{kind}.{name}").open("x") as file:
            file.write(json.dumps(document))
    except FileExistsError:
        sys.exit(f'Error from server (AlreadyExists): {kind}s "{name}" already exists')


def _get(place: Path, words: list[str]) -> None:
    if words[0] == "rayjobs":
        items = [json.loads(path.read_text()) for path in sorted(place.glob("rayjob.*"))]
        sys.stdout.write(json.dumps({"items": items}))
    elif words[0] == "pods":
        sys.stdout.write("pod/head-pod\n")
    else:
        path = place / f"{words[0]}.{words[1]}"
        sys.stdout.write(path.read_text() if path.exists() else "")


def _patch(place: Path, words: list[str]) -> None:
    path = place / words[0].replace("/", ".")
    path.write_text(json.dumps(_merged(json.loads(path.read_text()), json.loads(words[4]))))


def _nothing(_place: Path, _words: list[str]) -> None:
    sys.exit("error: no pods found")


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
