"""`docker/`: an image and Compose that no test can build or run, held to rules and each other."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from batchtrain.submission.kuberay_manifest import USER_ID

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
STAGES = {
    re.match(r"\S+ AS (\S+)", stage)[1]: stage  # type: ignore[index]
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
}


def commands(stage: str) -> list[str]:
    """What a stage runs, as its shell gets it."""
    found = re.findall(r"^RUN ((?:.*\\\n)*.*)$", STAGES[stage], re.MULTILINE)
    return [re.sub(r"--mount=\S+\s+(\\\n\s*)?", "", each) for each in found]


def run_with(stubs: dict[str, str], command: str, folder: Path) -> tuple[int, list[str], str]:
    """Run a command with scripts in place of others: exit code, calls, standard error."""
    calls = folder / "calls"
    calls.write_text("")
    for name, body in stubs.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{body}\n')
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    return done.returncode, calls.read_text().splitlines(), done.stderr


# ----------------------------------------------------------------------------------------------
# The image


def test_the_last_stages_are_small_not_root_and_watched() -> None:
    for name in ("cpu", "gpu"):
        assert re.search(r"^USER \$\{UID\}:\$\{GID\}$", STAGES[name], re.MULTILINE)
        assert f"COPY --from=requirements-{name} /usr/local /usr/local" in STAGES[name]
        assert "--no-index /wheels/*.whl" in STAGES[name]
        assert "/src" not in STAGES[name]
    assert 'CMD ["ray", "health-check"]' in STAGES["runtime"]
    for compiler in ("gcc", "g++", "build-essential"):
        assert compiler not in DOCKERFILE
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert len(installs) == 5
    assert all(
        "--constraint /build/constraints.txt" in each or "--no-deps" in each for each in installs
    )


def test_the_user_may_have_ids_that_the_system_has_and_is_not_root(tmp_path: Path) -> None:
    (command,) = commands("runtime")
    stubs = dict.fromkeys(["groupadd", "useradd", "install"], "")

    def built(uid: str, gid: str) -> tuple[int, list[str], str]:
        # In the text, since some shells have a variable UID of their own.
        text = command.replace("${UID}", uid).replace("${GID}", gid)
        return run_with(stubs, text, tmp_path)

    # A Mac's first user, and the group that all of them have.
    code, calls, _ = built("501", "20")
    assert code == 0
    assert calls[0] == "groupadd --non-unique --gid 20 batchtrain"
    assert calls[1].startswith("useradd --non-unique --uid 501 --gid 20 --create-home")
    for uid in ("0", "00", "", "me"):
        code, calls, said = built(uid, "1000")
        assert (code, calls) == (1, [])
        assert f"expected UID to be that of a user other than root, found '{uid}'" in said
    for tool in ("groupadd", "useradd"):
        found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
        if found is not None:
            told = subprocess.run([found, "--help"], capture_output=True, text=True, check=True)
            assert "-o, --non-unique" in told.stdout


def test_the_user_is_the_same_wherever_nobody_says_otherwise() -> None:
    assert set(re.findall(r"^ARG [UG]ID=(.*)$", DOCKERFILE, re.MULTILINE)) == {str(USER_ID)}
    assert set(re.findall(r"BATCHTRAIN_[UG]ID:-(\d+)", str(COMPOSE))) == {str(USER_ID)}
    home = re.search(r"^ENV HOME=(\S+)", STAGES["runtime"], re.MULTILINE)
    assert home is not None
    for path in sorted((ROOT / "cluster" / "vm").glob("*.yaml")):
        assert set(yaml.safe_load(path.read_text())["file_mounts"]) == {
            f"{home[1]}/.ray/auth_token"
        }
    assert f"{home[1]}/.ray" in commands("runtime")[0]


def test_torch_for_cpus_comes_alone_and_what_it_needs_with_the_rest(tmp_path: Path) -> None:
    alone, rest = commands("requirements-cpu")
    words = shlex.split(alone)
    assert words[-1] == "torch"
    assert {"--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu"} <= set(words)
    assert "--no-deps" not in rest
    assert "--index-url" not in rest
    assert "--requirement /build/requirements.txt" in rest
    assert commands("requirements-gpu") == [rest.partition(" \\\n")[0]]

    for frozen, code in (("torch==2.13.0+cpu", 0), ("nvidia-nccl-cu13==2.29.1", 1)):
        stubs = {"pip": f"[ $1 != freeze ] || echo {frozen}"}
        assert run_with(stubs, rest, tmp_path)[0] == code


def test_what_is_installed_is_all_that_the_project_names_in_versions_that_are_pinned() -> None:
    script = re.search(r"^RUN python - > \S+ <<'END'\n(.*?)^END$", DOCKERFILE, re.M | re.S)
    extras = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert script is not None
    assert extras is not None
    done = subprocess.run(
        [sys.executable, "-c", script[1].replace("/build/", f"{ROOT}/")],
        env={"EXTRAS": extras[1]},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {re.split(r"[^\w-]", line)[0] for line in done.stdout.splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"]]
    for extra in extras[1].split(","):
        named += project["optional-dependencies"][extra]
    assert done.stdout.splitlines() == named
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found - {name.lower() for name in pinned} == set()


def test_the_build_sees_only_what_it_copies() -> None:
    lines = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?:--chmod=\d+ )?(?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {word for words in copied for word in words.split()} == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert "**/.env*" in rules


# ----------------------------------------------------------------------------------------------
# Compose, and the secrets


def test_no_port_of_compose_is_open_to_others_and_no_secret_is_written_down() -> None:
    ports = [port for each in COMPOSE["services"].values() for port in each.get("ports", ())]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    for name, service in COMPOSE["services"].items():
        values = service.get("environment", {})
        for key, value in values.items():
            if re.search(r"TOKEN|SECRET|PASSWORD|KEY|USER", key):
                assert str(value).startswith("/run/secrets/"), (name, key)
    files = {each["file"] for each in COMPOSE["secrets"].values()}
    assert {Path(each).parent.as_posix() for each in files} == {"secrets"}
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    made = (ROOT / "docker" / "make-secrets.sh").read_text()
    assert all(Path(each).name in made for each in files)


def test_every_image_of_compose_is_pinned() -> None:
    for service in COMPOSE["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d", tag)
        assert tag != "latest"


def test_secrets_come_from_files_into_the_environment_of_the_command_alone(tmp_path: Path) -> None:
    script = ROOT / "docker" / "with-secrets.sh"
    (tmp_path / "key").write_text("a $(touch canary) 'b'")
    show = [sys.executable, "-c", "import os; print(os.environ['AWS_SECRET_ACCESS_KEY'])"]
    environ = {"PATH": "/usr/bin:/bin", "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "key")}

    done = subprocess.run(
        [script, *show], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "a $(touch canary) 'b'\n"
    assert not (tmp_path / "canary").exists()

    environ["AWS_SECRET_ACCESS_KEY_FILE"] = str(tmp_path / "none")
    done = subprocess.run([script, *show], env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected a file that I may read in AWS_SECRET_ACCESS_KEY_FILE" in done.stderr
