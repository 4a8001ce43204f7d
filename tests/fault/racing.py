"""One of two processes that race for names: reads a name a line, publishes it, says who won.

It can be told to wait right before the commit, so that both come to it with all files written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from batchtrain.artifacts import Artifact, ArtifactKind, Draft, reuse_or_build
from batchtrain.errors import ArtifactError
from batchtrain.storage import FolderStorage, Storage
from batchtrain.storage.objects import ObjectStorage

__all__ = ["KIND", "Racer", "held_by", "opened", "racers"]

KIND = ArtifactKind("raced", 1)
FILES = ("one", "two", "three")
ROOT = Path(__file__).resolve().parents[2]


def opened(place: str) -> Storage:
    """The storage at an address or in a folder."""
    return ObjectStorage(place) if "://" in place else FolderStorage(Path(place))


def held_by(artifact: Artifact) -> str:
    """Whose artifact it is; raises `AssertionError` if it is a mixture of several."""
    writers = {artifact.read(name).decode().rstrip(".") for name in FILES}
    writers.add(str(artifact.manifest.content["writer"]))
    assert len(writers) == 1, f"a mixture: {writers}"
    return writers.pop()


class Racer:
    """A process that publishes names of its own accord, as fast as it can."""

    def __init__(self, process: subprocess.Popen[str], writer: str) -> None:
        self.writer = writer
        self._process = process

    def start(self, key: str, inputs: str, *, waits: bool) -> None:
        """Let it publish a key for some inputs; one that waits does not commit before `go_on`."""
        self._say(f"{key} {inputs} {'waits' if waits else 'runs'}")

    def wait_until_ready(self) -> None:
        """Wait until its files are written."""
        assert self.answer() == {"status": "ready"}

    def go_on(self) -> None:
        """Let it commit."""
        self._say("go")

    def answer(self) -> dict[str, str]:
        """Wait for it; `status` is built, reused or refused, and `held` the winner's name."""
        assert self._process.stdout is not None
        answer: dict[str, str] = json.loads(self._process.stdout.readline())
        return answer

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@contextmanager
def racers(place: str) -> Iterator[list[Racer]]:
    """Two of them on one storage; they live until the end of the block."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with ExitStack() as stack:
        started = []
        for writer in ("left", "right"):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.fault.racing", place, writer],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=environ,
                )
            )
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            started.append(Racer(process, writer))
        yield started


def race(storage: Storage, key: str, inputs: str, writer: str, *, waits: bool) -> dict[str, str]:
    """Publish one key, with contents that only this writer makes."""

    def build(draft: Draft) -> Mapping[str, Any]:
        for number, name in enumerate(FILES):
            draft.add(name, f"{writer}{'.' * 1000 * number}".encode())
        return {"writer": writer}

    def wait() -> None:
        if waits:
            tell({"status": "ready"})
            assert sys.stdin.readline() == "go\n"

    try:
        artifact, status = reuse_or_build(
            storage, key, KIND, inputs={"of": inputs}, build=build, check=wait
        )
    except ArtifactError as error:
        return {"status": "refused", "held": "", "error": str(error)}
    return {"status": status, "held": held_by(artifact)}


def tell(answer: Mapping[str, str]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> None:
    """Race for every name on standard input."""
    os.fsync = lambda file: None  # nobody cuts the power, and disks are slow
    place, writer = sys.argv[1:]
    storage = opened(place)
    while line := sys.stdin.readline():
        key, inputs, how = line.split()
        tell(race(storage, key, inputs, writer, waits=how == "waits"))


if __name__ == "__main__":
    main()
