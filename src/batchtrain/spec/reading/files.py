"""The text of a spec file, which may be missing, huge, special or binary."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NoReturn

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.reading.yaml_reader import MAX_BYTES, STARTER
from batchtrain.spec.suggest import did_you_mean

__all__ = ["read_text"]

SUFFIXES = (".yaml", ".yml", ".json")


def read_text(path: Path, file: str, *, starter: str = STARTER) -> str:
    """Read a file of UTF-8 text.

    Args:
        path: The file.
        file: As messages name it.
        starter: What to do where there is none, and none like it.

    Raises:
        SpecError: If it cannot be read, or holds more than `MAX_BYTES`.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _refuse(file, "expected a file, found a folder", _a_file_in(path, starter))
        if not stat.S_ISREG(mode):
            _refuse(file, "expected a regular file, found a device, socket or pipe")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        _refuse(file, "there is no such file", _similar_file(path, starter))
    except (OSError, ValueError) as error:  # ValueError: a name that holds NUL
        reason = getattr(error, "strerror", None) or str(error)
        _refuse(file, f"the file cannot be read: {reason.lower()}")
    if len(data) > MAX_BYTES:
        _refuse(file, f"expected at most {MAX_BYTES} bytes, found more", "A spec holds no data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        found = f"expected UTF-8, found the byte 0x{data[error.start]:02X}"
        _refuse(f"{file}:{line}:{column}", found, "Save the file as UTF-8")


def _refuse(where: str, message: str, hint: str = "") -> NoReturn:
    raise SpecError([Problem(where, "", message, hint)]) from None


def _a_file_in(folder: Path, starter: str) -> str:
    names = sorted(each.name for each in folder.iterdir() if each.suffix in SUFFIXES)
    return f"Name a spec in it, such as {str(folder / names[0])!r}" if names else starter


def _similar_file(path: Path, starter: str) -> str:
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in SUFFIXES]
    except OSError:
        names = []
    close = did_you_mean(path.name, sorted(names))
    return f"Did you mean {str(path.with_name(close))!r}?" if close else starter
