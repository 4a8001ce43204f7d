"""The pages on submitting and on clusters: their profiles are read, and one of them is rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from batchtrain.submission.kuberay_manifest import manifest_of
from batchtrain.submission.profile import Profile, Profiles
from batchtrain.submission.request import JobRequest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "submission.md", ROOT / "cluster" / "README.md"]
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


def profiles_of(example: str) -> dict[str, Profile]:
    return Profiles.model_validate(yaml.safe_load(example)).profiles


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: " ".join(text.split())[:50])
def test_an_example_is_a_good_file_of_profiles(example: str, tmp_path: Path) -> None:
    for profile in profiles_of(example).values():
        if profile.backend == "kuberay":
            request = JobRequest("a-0", "python -m x", {})
            assert manifest_of(request, profile, tmp_path).name == "a-0"


def test_there_is_an_example_of_ray_and_of_kubernetes() -> None:
    backends = {each.backend for example in EXAMPLES for each in profiles_of(example).values()}
    assert {"ray", "kuberay"} <= backends


def test_no_page_puts_secrets_where_whoever_lists_jobs_reads_them() -> None:
    pages = [ROOT / "jobs" / "README.md", *PAGES, ROOT / "docs" / "clusters.md"]
    for page in pages:
        for sentence in re.split(r"(?<=[.:])\s", page.read_text()):
            if "env_vars" in sentence:
                assert sentence.startswith("Not under"), (page, sentence)


def test_the_scripts_that_a_newcomer_is_told_to_run_are_there() -> None:
    for page in [*PAGES, ROOT / "docker" / "README.md"]:
        text = page.read_text()
        named = set(re.findall(r"(?<![\w/.])((?:cluster|docker|jobs)/[\w/.-]+\w)", text))
        made = {"docker/secrets"}
        assert named
        assert [each for each in named - made if not (ROOT / each).exists()] == []
