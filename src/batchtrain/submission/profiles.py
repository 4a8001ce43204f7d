"""Find a profile by its name, and put a spec where it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.base import NAME_PATTERN
from batchtrain.spec.load import LoadedSpec, with_replaced
from batchtrain.spec.reading.files import read_text
from batchtrain.spec.reading.outline import Outline
from batchtrain.spec.reading.places import Fault, Places, join_key, problems_of
from batchtrain.spec.reading.problems import faults_of
from batchtrain.spec.reading.yaml_reader import read_yaml
from batchtrain.spec.suggest import did_you_mean
from batchtrain.submission.profile import Origin, Profile, Profiles, StageName
from batchtrain.submission.secrets import is_secret_variable

__all__ = ["FILE_NAME", "find_profile", "parse_profiles", "profile_files", "with_profile"]

FILE_NAME = "batchtrain-profiles.yaml"
VARIABLE = "BATCHTRAIN_PROFILES"
STARTER = "Copy jobs/profiles.yaml, and keep what is yours"

GIVE_IT_TO_MACHINES = (
    "Give it to the machines instead: their environment or role, or for kuberay "
    "`kubernetes.secret`; whoever may see a job sees what is forwarded"
)
MIXED = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])|^[0-9A-Fa-f]{32,}$")
SHORTEST_SECRET = 20
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
MAX_NAMES = 20


def find_profile(name: str | None, file: Path | None, spec_folder: Path) -> Profile:
    """The profile of this name, from the first file that has it.

    Args:
        name: Which; may be left out where there is only one.
        file: The file to look in; left out, those of `profile_files`.
        spec_folder: The folder of the spec.

    Raises:
        SpecError: With all that is wrong with a file that was looked in, or if there is no such
            profile.
    """
    files = {file: True} if file is not None else profile_files(spec_folder)
    known: set[str] = set()
    for number, (path, is_own) in enumerate(files.items()):
        profiles = _profiles_in(path)
        chosen = min(profiles) if name is None and len(profiles) == 1 else name
        if chosen is not None and chosen in profiles:
            others = tuple(each for each in list(files)[number + 1 :] if _has(each, chosen))
            return profiles[chosen].named(chosen, Origin(path.absolute(), is_own, others))
        known |= set(profiles)
    raise SpecError([_no_such(name, list(files), known)])


def profile_files(spec_folder: Path, environ: Mapping[str, str] = os.environ) -> dict[Path, bool]:
    """The files that profiles are looked for in, in order, and whether each is the user's own.

    What BATCHTRAIN_PROFILES names and what lies in the user's configuration come before what lies
    in the current folder and beside the spec: the latter may have come with the spec from anybody,
    and a profile says where data and token are sent.

    Args:
        spec_folder: The folder of the spec.
        environ: The environment.
    """
    home = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    # What was asked for is kept, so that its reader says that it is not there.
    own = [Path(environ[VARIABLE]).expanduser()] if environ.get(VARIABLE) else []
    own += [path for path in [home / "batchtrain" / "profiles.yaml"] if path.exists()]
    near = [path for path in [Path.cwd() / FILE_NAME, spec_folder / FILE_NAME] if path.exists()]
    found: dict[Path, tuple[Path, bool]] = {}
    for path in [*own, *near]:
        found.setdefault(path.resolve(), (path.absolute(), path in own))
    return dict(found.values())


def parse_profiles(text: str, file: str) -> Profiles:
    """Check the text of a file of profiles.

    Args:
        text: What the file holds.
        file: Its name, for messages.

    Raises:
        SpecError: With every problem, in the order of their lines; none repeats a secret.
    """
    document = read_yaml(text, file, starter=STARTER)
    own = [*document.faults, *_own_faults(document.value, document.places)]
    errors: list[Any] = []
    profiles = None
    try:
        profiles = Profiles.model_validate_json(json.dumps(document.value, allow_nan=False))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        # Of a name we say it ourselves: pydantic knows it by a pattern alone.
        errors = [each for each in found if each["loc"][2:] != ("[key]",)]
    faults = own + faults_of(errors, document, _outline(), known=own)
    if profiles is None or faults:
        raise SpecError(problems_of(faults))
    return profiles


def with_profile(loaded: LoadedSpec, profile: Profile) -> LoadedSpec:
    """The spec with what a profile writes of storage and resources in place of its own.

    What `--set` gave stays. Messages name the profile as the place of what it gave.

    Args:
        loaded: A spec; it stays as it is.
        profile: Where it is to run.

    Raises:
        SpecError: If the profile does not go with the spec.
    """
    values: dict[str, Any] = {}
    if profile.storage is not None:
        values["storage"] = profile.storage
    if profile.resources is not None:
        found = profile.resources.model_dump(mode="json", exclude_unset=True)
        values |= {f"resources.{name}": value for name, value in found.items()}
    return with_replaced(loaded, values, f"profile {profile.name}".rstrip()) if values else loaded


def _profiles_in(path: Path) -> Mapping[str, Profile]:
    return parse_profiles(read_text(path, str(path), starter=STARTER), str(path)).profiles


def _has(path: Path, name: str) -> bool:
    """Whether a file that is not needed has a profile of this name."""
    with suppress(SpecError):
        return name in _profiles_in(path)
    return False


def _no_such(name: str | None, files: list[Path], known: Collection[str]) -> Problem:
    """There is no profile of this name: which there are, and where."""
    asked = repr((name or "")[:63])
    if not files:
        message = f"there is no profile {asked}, and no file of profiles"
        return Problem("--profile", "", message, f"{STARTER}, as {FILE_NAME} beside the spec")
    where = ", ".join(str(path) for path in files)
    names = sorted(known)
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    close = did_you_mean(name, names) if name else None
    hint = f"Did you mean {close!r}? " if close else ""
    message = f"there is no profile {asked} in {where}" if name else f"{where} has several profiles"
    return Problem("--profile", "", message, f"{hint}There are {listed}")


@cache
def _outline() -> Outline:
    """The keys of a file of profiles."""
    schema = Profiles.model_json_schema()
    profiles = schema["properties"]["profiles"]
    (profiles["additionalProperties"],) = profiles.pop("patternProperties").values()
    # pydantic leaves out what the keys of a dict may be.
    stages = schema["$defs"]["Profile"]["properties"]["stages"]
    stages["propertyNames"] = {"enum": list(get_args(StageName))}
    return Outline(schema)


def _own_faults(document: Any, places: Places) -> Iterator[Fault]:
    """Names that are none, and secrets; no message repeats what it found of these."""
    profiles = document.get("profiles") if isinstance(document, dict) else None
    if profiles == {}:
        message = "expected a profile at least, found none"
        yield Fault(places.of_value("profiles"), "profiles", message, STARTER)
    for name, profile in profiles.items() if isinstance(profiles, dict) else ():
        key = join_key("profiles", name)
        if not re.match(NAME_PATTERN, name):
            wanted = "lower-case letters, digits and hyphens, at most 63, the first no hyphen"
            yield Fault(places.of_key(key), key, f"expected {wanted}, as the name of a profile")
        if isinstance(profile, dict):
            yield from _credentials(profile, key, places)
            yield from _forwarded(profile.get("forward"), join_key(key, "forward"), places)


def _credentials(profile: Mapping[str, Any], section: str, places: Places) -> Iterator[Fault]:
    for name in ("address", "storage", "image"):
        value, key = profile.get(name), join_key(section, name)
        if not isinstance(value, str) or "@" not in DIGEST.sub("", value):
            continue
        if "://" in value or name == "image":
            hint = "Remove them, and change the secret: it was written down here"
            yield Fault(places.of_value(key), key, "found credentials in an address", hint)


def _forwarded(names: Any, section: str, places: Places) -> Iterator[Fault]:
    for number, name in enumerate(names if isinstance(names, list) else ()):
        if not isinstance(name, str):
            continue
        key = join_key(section, number)
        message = hint = ""
        if "=" in name:
            message = "expected the name of a variable, found a value with it"
            hint = "Write the name alone; its value comes from the environment of who submits"
        elif _may_be_secret(name):
            message = "expected the name of a variable, found what looks like a secret"
            hint = "Remove it, and change the secret: it was written down here"
        elif is_secret_variable(name):
            message, hint = f"{name[:63]!r} is the name of a secret", GIVE_IT_TO_MACHINES
        if message:
            yield Fault(places.of_value(key), key, message, hint)


def _may_be_secret(text: str) -> bool:
    """Whether a text is a token rather than a name.

    Example:
        >>> _may_be_secret("RAY_task_oom_retries"), _may_be_secret("ghp_16C7e42F292c6912E7710c8")
        (False, True)
    """
    return len(text) >= SHORTEST_SECRET and MIXED.search(text) is not None
