"""Profiles: where they are looked for, what is refused in them, and what they change of a spec."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import SpecError
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.submission.profile import Origin, Profile, address_problem
from batchtrain.submission.profiles import (
    find_profile,
    parse_profiles,
    profile_files,
    with_profile,
)

ROOT = Path(__file__).resolve().parents[3]

SPEC = """\
version: 1
name: tiny
data: {source: a.csv, target: y}
resources: {workers: 2, rows: streaming}
storage: runs
search:
  space: {training.optimizer.lr: {log_uniform: [1e-5, 1]}}
"""

HIDDEN = "hunter2hunter2"
GITHUB = "ghp_" + "aB3" * 12
RAY = "0f" * 32

REFUSED = {
    "{addres: http://head:8265}": (
        "there is no key 'addres' here  Did you mean `profiles.a.address`?"
    ),
    "{workers: 3}": (
        "there is no key 'workers' here  It belongs under `profiles.NAME.resources`: "
        "did you mean `profiles.NAME.resources.workers`?"
    ),
    "{backend: rya}": "expected one of ray, kuberay or local, found 'rya'  Did you mean 'ray'?",
    "{resources: {workers: 0}}": "expected auto or a whole number from 1 to 4096, found 0",
    "{stages: {tain: {cpus: 1}}}": (
        "expected one of prepare, train, evaluate or export, found 'tain'  Did you mean 'train'?"
    ),
    "{rate_per_hour: -1}": "expected a number from 0 to 1000000, found -1",
    "{forward: [a-b]}": ("expected the name of a variable, such as HTTPS_PROXY, found 'a-b'"),
    "{backend: kuberay, kubernetes: {memory_per_node: 16GB}}": (
        "expected a size such as 512Mi or 16Gi, found '16GB'"
    ),
    "{kubernetes: {nodes: 1}}": (
        "`kubernetes` is read with `backend: kuberay` only, found `backend: ray`"
    ),
    "{backend: kuberay, address: 'http://head:8265'}": (
        "`address` is read with `backend: ray or local` only, found `backend: kuberay`"
    ),
    "{address: 'ray://head:10001'}": (
        "expected the address of a dashboard, such as http://head:8265, found one of another kind"
    ),
    "{storage: 'ftp://host/runs'}": (
        "expected a folder or an address with s3://, gs:// or az://, found another address"
    ),
    "{backend: kuberay, image: 'name with spaces'}": (
        "expected the name of an image, such as registry.example/team/batchtrain:1.4"
    ),
    # None of these may repeat the secret.
    f"{{address: 'http://me:{HIDDEN}@head:8265'}}": "found credentials in an address  Remove them",
    f"{{address: 'http://head:8265/?token={HIDDEN}'}}": (
        "expected the address of a dashboard, such as http://head:8265, found a query in it"
    ),
    f"{{storage: 's3://me:{HIDDEN}@bucket/runs'}}": "found credentials in an address  Remove them",
    f"{{backend: kuberay, image: 'me:{HIDDEN}@host/x:1'}}": "found credentials in an address",
    f"{{forward: [API_KEY={HIDDEN}]}}": "expected the name of a variable, found a value with it",
    f"{{forward: [{GITHUB}]}}": "expected the name of a variable, found what looks like a secret",
    f"{{forward: ['{RAY}']}}": "expected the name of a variable, found what looks like a secret",
    "{forward: [AWS_SECRET_ACCESS_KEY]}": (
        "'AWS_SECRET_ACCESS_KEY' is the name of a secret  Give it to the machines instead"
    ),
}


@pytest.mark.parametrize("profile", REFUSED)
def test_a_profile_that_is_wrong_is_refused_at_its_place(profile: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_profiles(f"version: 1\nprofiles:\n  a: {profile}\n", "p.yaml")
    (problem,) = caught.value.problems
    assert problem.where.startswith("p.yaml:3:")
    assert problem.key.startswith("profiles.a")
    said = f"{problem.message}  {problem.hint}".removeprefix("`address`: ")
    assert said.startswith(REFUSED[profile])
    for secret in (HIDDEN, GITHUB, RAY):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("version: 1\nprofiles: {}\n", "expected a profile at least, found none"),
        ("version: 1\nprofiles: {Big One: {}}\n", "expected lower-case letters, digits"),
        ("version: 1\nprofiles: {a: {}, a: {}}\n", "the key appears twice"),
        ("version: 2\nprofiles: {a: {}}\n", "expected 1, found 2"),
        ("version: 1\nprofiles: [a]\n", "expected a section, found a list of 1"),
        ("version: 1\n", "the key 'profiles' is missing"),
    ],
)
def test_a_file_of_profiles_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_profiles(text, "p.yaml")
    assert [each.message.startswith(message) for each in caught.value.problems] == [True]


def test_the_example_is_right_and_goes_with_a_spec() -> None:
    file = ROOT / "jobs" / "profiles.yaml"
    profiles = parse_profiles(file.read_text(), str(file)).profiles
    assert list(profiles) == ["laptop", "local-cluster", "gpu8", "kuberay"]
    assert {name: profile.backend for name, profile in profiles.items()} == {
        "laptop": "local",
        "local-cluster": "ray",
        "gpu8": "ray",
        "kuberay": "kuberay",
    }
    loaded = parse_spec(SPEC, "s.yaml")
    for name in profiles:
        profile = find_profile(name, file, ROOT)
        assert profile.name == name
        asked = profile.resources
        found = with_profile(loaded, profile).spec.resources
        assert asked is not None
        assert (found.workers, found.rows) == (asked.workers, "streaming")


Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """A file in each place, with `shared`, of a rate that tells them apart, and one of its own."""
    made = {}
    for rate, place in enumerate(("named", "own", "here", "beside")):
        name = "batchtrain/profiles.yaml" if place == "own" else "batchtrain-profiles.yaml"
        made[place] = tmp_path / place / name
        made[place].parent.mkdir(parents=True)
        profiles = f"{{shared: {{rate_per_hour: {rate}}}, {place}: {{}}}}"
        made[place].write_text(f"version: 1\nprofiles: {profiles}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("BATCHTRAIN_PROFILES", str(made["named"]))
    return made


def test_the_user_s_own_files_come_before_those_that_came_with_a_spec(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = files["beside"].parent
    assert list(profile_files(beside, os.environ).items()) == [
        (files["named"], True),
        (files["own"], True),
        (files["here"], False),
        (files["beside"], False),
    ]

    for name in files:
        assert find_profile(name, None, beside).name == name
    shared = find_profile("shared", None, beside)
    assert shared.rate_per_hour == 0
    assert shared.origin == Origin(files["named"], True, tuple(files.values())[1:])
    monkeypatch.delenv("BATCHTRAIN_PROFILES")
    assert find_profile("shared", None, beside).rate_per_hour == 1
    files["own"].unlink()
    # What is not needed may be wrong.
    files["beside"].write_text("profiles: [")
    assert find_profile("shared", None, beside).origin == Origin(files["here"], False)
    found = find_profile("shared", Path("batchtrain-profiles.yaml"), beside)
    assert found.origin == Origin(files["here"], is_own=True)


def test_a_file_that_two_ways_lead_to_is_one(files: Files, tmp_path: Path) -> None:
    around = tmp_path / "beside" / ".." / "here"
    assert [path.parent.name for path in profile_files(around, {})] == ["here"]
    environ = {"BATCHTRAIN_PROFILES": str(around / "batchtrain-profiles.yaml")}
    assert list(profile_files(around, environ).values()) == [True]


def test_where_a_name_is_in_several_files_the_others_are_said() -> None:
    origin = Origin(Path("/a"), True, (Path("/b"), Path("/c")))
    assert str(origin) == "/a, not the one in /b and /c"
    assert str(Origin(Path("/a"))) == "/a"


def test_a_name_that_no_file_has_is_one_sentence(files: Files) -> None:
    beside, named = files["beside"].parent, files["named"]
    with pytest.raises(SpecError, match=r"no profile 'shard' in .*  Did you mean 'shared'\? There"):
        find_profile("shard", None, beside)
    with pytest.raises(SpecError, match=r"no profile 'own' in .*named"):
        find_profile("own", named, beside)
    with pytest.raises(SpecError, match="has several profiles  There are named, shared"):
        find_profile(None, named, beside)
    named.write_text("version: 1\nprofiles: {only: {}}\n")
    assert find_profile(None, named, beside).name == "only"


def test_a_file_that_was_asked_for_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(SpecError, match="no profile 'a', and no file of profiles  Copy jobs/prof"):
        find_profile("a", None, tmp_path)
    with pytest.raises(SpecError, match=r"gone\.yaml  there is no such file"):
        find_profile("a", tmp_path / "gone.yaml", tmp_path)
    monkeypatch.setenv("BATCHTRAIN_PROFILES", str(tmp_path / "gone.yaml"))
    with pytest.raises(SpecError, match=r"gone\.yaml  there is no such file"):
        find_profile("a", None, tmp_path)


def test_a_profile_stands_in_place_of_the_spec_and_set_has_the_last_word() -> None:
    profile = parse_profiles(
        "version: 1\nprofiles: {big: {storage: 's3://bucket/runs', resources: {workers: 8}}}",
        "p.yaml",
    ).profiles["big"]
    profile = profile.named("big")
    plain = parse_spec(SPEC, "s.yaml")
    changed = with_profile(plain, profile)
    assert changed.spec.storage == "s3://bucket/runs"
    assert changed.spec.resources.model_dump(exclude_unset=True) == {
        "workers": 8,
        "rows": "streaming",
    }
    assert changed.spec.search == plain.spec.search
    assert changed.spec.data == plain.spec.data
    assert changed.where("resources.workers") == changed.where("storage") == "profile big"
    assert changed.where("name") == "s.yaml:2:1"
    assert plain.spec.storage == "runs"

    overrides = ["resources.rows=resident", "storage=/mnt/mine"]
    kept = with_profile(parse_spec(SPEC, "s.yaml", overrides), profile)
    assert kept.spec.resources.model_dump(exclude_unset=True) == {"workers": 8, "rows": "resident"}
    assert kept.spec.storage == "/mnt/mine"
    assert kept.where("storage") == "--set storage=/mnt/mine"
    assert kept.where("resources.rows") == "--set resources.rows=resident"
    assert kept.where("resources.workers") == "profile big"

    whole = with_profile(parse_spec(SPEC, "s.yaml", ["resources={workers: 3}"]), profile)
    assert whole.spec.resources.workers == 3
    assert with_profile(plain, Profile()) is plain


def test_a_profile_that_the_spec_cannot_have_is_refused_by_name() -> None:
    loaded: LoadedSpec = parse_spec(SPEC + "determinism: canonical\n", "s.yaml")
    text = "version: 1\nprofiles: {big: {resources: {workers: 16}}}"
    profile = parse_profiles(text, "p.yaml").profiles["big"].named("big")
    with pytest.raises(SpecError) as caught:
        with_profile(loaded, profile)
    (problem,) = caught.value.problems
    assert problem.where == "profile big"
    assert problem.message.startswith("`resources.workers` is 16, but `determinism: canonical`")


@given(user=st.text(min_size=1), password=st.text(min_size=8))
def test_no_address_with_credentials_passes_or_is_repeated(user: str, password: str) -> None:
    problem = address_problem(f"http://{user}:{password}@head:8265")
    assert problem is not None
    assert password not in problem
