"""The spec reader: a file and overrides in, a checked spec out, or every problem at once."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.data import with_source
from batchtrain.spec.reading.locations import location_faults
from batchtrain.spec.reading.outline import Outline
from batchtrain.spec.reading.overrides import with_overrides
from batchtrain.spec.reading.places import Places, problems_of
from batchtrain.spec.reading.planned import planned_faults
from batchtrain.spec.reading.problems import faults_of
from batchtrain.spec.reading.yaml_reader import MAX_BYTES, STARTER, Document, read_yaml
from batchtrain.spec.run import RunSpec
from batchtrain.spec.schema import json_schema
from batchtrain.spec.suggest import did_you_mean

__all__ = ["LoadedSpec", "load_spec", "parse_spec"]

LITERAL_NUMBERS = (("version",),)
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that was checked, and where each of its keys was written.

    Attributes:
        spec: The spec; defaults are filled in.
        path: The absolute path of its file, from whose folder its relative paths count.
    """

    spec: RunSpec
    path: Path
    places: Places = field(repr=False)

    def where(self, key: str) -> str:
        """Say where a dotted key was written.

        Returns:
            `file:line:column` of the key or of the deepest section above it that was written,
            `--set KEY=VALUE` where an override gave it, or the file where all is default.
        """
        return self.places.of_key(key).text


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Read and check a spec file, YAML or JSON.

    Args:
        path: The file; messages name it as it is given here.
        overrides: `key=value` each, such as `training.optimizer.lr=1e-3`.

    Raises:
        SpecError: With every problem of file and overrides, in the order of their lines.
    """
    return parse_spec(_read_text(Path(path), str(path)), str(path), overrides)


def parse_spec(text: str, file: str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Check the text of a spec file, as `load_spec`; nothing is read from disk.

    Args:
        text: What the file holds.
        file: Its name, which need not exist.
        overrides: `key=value` each.

    Raises:
        SpecError: With every problem of text and overrides, in the order of their lines.
    """
    outline = _outline()
    document = with_overrides(read_yaml(text, file), overrides, outline)
    spec, errors = _validate(document)
    planned = planned_faults(document.value, document.places)
    faults = [
        *document.faults,
        *planned,
        *location_faults(document.value, document.places, planned={each.key for each in planned}),
    ]
    faults += faults_of(errors, document, outline, known=faults)
    if spec is None or faults:
        raise SpecError(problems_of(faults))
    return LoadedSpec(spec, Path(file).absolute(), document.places)


@cache
def _outline() -> Outline:
    """The keys of a spec; making it takes a tenth of a second."""
    return Outline(json_schema())


def _validate(document: Document) -> tuple[RunSpec | None, list[Any]]:
    # The JSON mode of pydantic is the one in which strict still takes a list for a tuple.
    text = json.dumps(with_source(document.value), allow_nan=False)
    spec: RunSpec | None = None
    errors: list[Any] = []
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        # Without the inputs, which may hold a secret.
        errors += error.errors(include_url=False, include_input=False, include_context=False)
    return spec, [*errors, *_lookalikes(document.value)]


def _lookalikes(document: Any) -> list[dict[str, Any]]:
    """Give errors for true and 1.0 where pydantic lets them pass as the literal 1."""
    errors = []
    for loc in LITERAL_NUMBERS:
        value = document
        for name in loc:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, bool | float):
            errors.append({"type": "literal_error", "loc": loc})
    return errors


def _read_text(path: Path, file: str) -> str:
    """Read a file that may be missing, huge, special or binary."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _refuse(file, "expected a file, found a folder", _a_file_in(path))
        if not stat.S_ISREG(mode):
            _refuse(file, "expected a regular file, found a device, socket or pipe")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        _refuse(file, "there is no such file", _similar_file(path))
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


def _a_file_in(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir() if each.suffix in SUFFIXES)
    return f"Name a spec in it, such as {str(folder / names[0])!r}" if names else STARTER


def _similar_file(path: Path) -> str:
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in SUFFIXES]
    except OSError:
        names = []
    close = did_you_mean(path.name, sorted(names))
    return f"Did you mean {str(path.with_name(close))!r}?" if close else STARTER
