"""What KubeRay makes of a RayJob is a command for bash: values arrive in it, and do not run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchtrain.errors import SpecError
from batchtrain.submission.kuberay_manifest import Manifest, manifest_of
from batchtrain.submission.profile import Profile
from batchtrain.submission.request import JobRequest
from batchtrain.submission.submitter_shell import shell_problems

PROFILE = Profile(backend="kuberay", image="repo/batchtrain:1", storage="s3://bucket/runs")

NAMED_BY_GO = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def quoted_by_go(text: str) -> str:
    """What `strconv.Quote` makes of a text."""

    def character(char: str) -> str:
        if char in NAMED_BY_GO or char.isprintable():
            return NAMED_BY_GO.get(char, char)
        number = ord(char)
        if number < 0x20 or number == 0x7F:
            return f"\\x{number:02x}"
        return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"

    return '"' + "".join(character(char) for char in text) + '"'


def json_of_go(document: Any) -> str:
    """What `json.Marshal` makes of a document."""
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def heard_by_ray(manifest: Manifest) -> tuple[Any, Any]:
    """Runtime environment and metadata that `ray job submit` would get from KubeRay's command."""
    spec = yaml.safe_load(manifest.text.split("---\n")[1])["spec"]
    words = ["ray", "job", "submit", "--runtime-env-json"]
    words += [quoted_by_go(json_of_go(yaml.safe_load(spec["runtimeEnvYAML"])))]
    words += ["--metadata-json", quoted_by_go(json_of_go(spec["metadata"]))]
    words += ["--submission-id", spec["jobId"], "--", spec["entrypoint"], ";"]
    command = "ray() { printf '%s\\0' \"$@\"; } ; " + " ".join(words)
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-ce", "--", command], capture_output=True, check=True)
    heard = done.stdout.decode().split("\0")
    return json.loads(heard[3]), json.loads(heard[5])


def a_request(storage: str, forwarded: str) -> JobRequest:
    return JobRequest(
        submission_id="tiny-0123456789ab",
        entrypoint="python -m batchtrain.cli.entry " + "a" * 64,
        arguments={},
        runtime_env={"env_vars": {"FORWARDED": forwarded}},
        metadata={"run": "tiny", "storage": storage},
    )


OBEYED = ["$(touch CANARY)", "`touch CANARY`", '"$(touch CANARY)"', "\\$(touch CANARY)", "$HOME"]


@pytest.mark.parametrize("value", OBEYED)
def test_j04_what_the_shell_of_a_submitter_would_obey_never_gets_there(
    value: str, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    value = value.replace("CANARY", str(canary))
    for key, request in (
        ("storage", a_request(f"s3://bucket/{value}", "x")),
        ("FORWARDED", a_request("s3://bucket/runs", value)),
    ):
        with pytest.raises(SpecError, match=f"{key}  expected a value that a shell takes") as error:
            heard_by_ray(manifest_of(request, PROFILE, tmp_path))
        assert str(canary) not in str(error.value)
        assert "HOME" not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("value", ["\x7f", "\U0010fffd", "\U0001f600", "byte \udcff"])
def test_a_character_that_would_not_arrive_is_refused(value: str) -> None:
    [problem] = shell_problems({"A": "fine", "B": f"x{value}"}, "here")
    assert (problem.where, problem.key) == ("here", "B")
    assert f"U+{ord(value[-1]):04X}" in problem.message


ARRIVES = (
    "; touch CANARY",
    "' && touch CANARY '",
    '" ; touch CANARY ; "',
    '\\" ; touch CANARY ; "',
    "\\",
    "\\\\",
    'ends with \\"',
    "a\nb\r\tc\x01\x1b[31m",
    "| > CANARY < & * ? [a] {a,b} ~ # !! !x (touch CANARY)",
    "<>&\u2028\u00a0\u200b\ufeff \\\u00a0 ü 漢",
    "'",
    "",
    " ",
    "true",
)


def test_j04_all_other_values_arrive_as_they_are_and_nothing_runs(
    tmp_path: Path,
) -> None:
    canary = tmp_path / "canary"
    for text in ARRIVES:
        value = text.replace("CANARY", str(canary))
        request = a_request(f"s3://bucket/{value}", value)

        runtime_env, metadata = heard_by_ray(manifest_of(request, PROFILE, tmp_path / "none"))

        assert runtime_env["env_vars"] == {"FORWARDED": value}
        assert metadata == dict(request.metadata)
    assert not canary.exists()


@pytest.mark.parametrize("text", ["y", "N", "1e3", "-1.5e3", ".5e3", "0o17", "+0x1F", "0B1", "1_0"])
def test_what_go_takes_for_a_number_or_a_boolean_is_quoted(text: str, tmp_path: Path) -> None:
    request = a_request(text, text)
    manifest = manifest_of(request, PROFILE.model_copy(update={"storage": None}), tmp_path)

    assert f"storage: '{text}'\n" in manifest.text
    assert f"FORWARDED: '{text}'\n" in manifest.rayjob["spec"]["runtimeEnvYAML"]
