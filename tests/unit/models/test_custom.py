"""The policy of user code (X12): what is refused, what is found where, and what is hashed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchtrain.errors import SpecError, TrainingError
from batchtrain.models.custom import OWN_PACKAGES, code_hash, load_custom

NET = "from torch import nn\nclass Net(nn.Module):\n    pass\n"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def forget_imports():
    """Let each test import its own module under the same name."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"my_nets", "my_pkg"}:
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_nets.py").write_text(NET)
    return tmp_path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "my_pkg"
    (root / "deep").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "deep" / "__init__.py").write_text("")
    (root / "deep" / "nets.py").write_text("from my_pkg.parts import Part\n" + NET)
    (root / "parts.py").write_text("class Part: pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os:system", "standard library"),
        ("builtins:eval", "standard library"),
        ("subprocess:Popen", "standard library"),
        ("importlib.util:module_from_spec", "standard library"),
        ("json:JSONDecoder", "standard library"),
        ("torch.nn:Linear", "dependencies"),
        ("numpy:ndarray", "dependencies"),
        ("batchtrain.models.mlp:MlpNet", "dependencies"),
        ("a.b:c.__globals__", "expected package.module:Class"),
        ("my_nets:Net.forward", "expected package.module:Class"),
        ("my_nets:_Net", "expected package.module:Class"),
        ("my_nets:__builtins__", "expected package.module:Class"),
        ("_private:Net", "expected package.module:Class"),
        ("my_nets._hidden:Net", "expected package.module:Class"),
        ("my_nets:Net()", "expected package.module:Class"),
        ("my_nets:Net\n", "expected package.module:Class"),
        ("my_nets", "expected package.module:Class"),
        ("..my_nets:Net", "expected package.module:Class"),
        ("my_nets;os:Net", "expected package.module:Class"),
        ("", "expected package.module:Class"),
    ],
)
def test_a_target_against_the_policy_is_refused_whatever_is_allowed(folder, target, message):
    everything = [target, target.partition(":")[0], target.partition(".")[0], "my_nets", "os"]
    with pytest.raises(SpecError, match=message):
        load_custom(target, everything, search=folder)
    with pytest.raises(SpecError, match=message):
        code_hash(target, search=folder)


@pytest.mark.parametrize("allow", [(), ("my",), ("my_nets.Net",), ("other",)])
def test_a_package_that_is_not_allowed_is_not_imported_and_the_flag_is_named(folder, allow):
    (folder / "my_nets.py").write_text("raise RuntimeError('it was imported')")
    with pytest.raises(SpecError, match=re.escape("--allow-code my_nets")):
        load_custom("my_nets:Net", allow, search=folder)


def test_an_allowed_class_is_loaded_and_the_path_is_as_before(folder):
    before = list(sys.path)
    network = load_custom("my_nets:Net", ["my_nets"], search=folder)
    assert network.__name__ == "Net"
    assert sys.path == before
    assert load_custom("my_nets:Net", ["my_nets"], search=folder) is network


def test_a_class_deep_in_a_package_is_loaded(package):
    network = load_custom("my_pkg.deep.nets:Net", ["my_pkg"], search=package)
    assert network.__module__ == "my_pkg.deep.nets"


def test_the_path_is_as_before_when_the_import_fails(folder):
    before = list(sys.path)
    (folder / "my_nets.py").write_text("1 / 0")
    with pytest.raises(TrainingError):
        load_custom("my_nets:Net", ["my_nets"], search=folder)
    assert sys.path == before


def test_the_folder_cannot_shadow_a_standard_or_an_installed_module(folder):
    for name in ("json", "textwrap", "yaml"):
        (folder / f"{name}.py").write_text("raise RuntimeError('shadowed')")
    (folder / "my_nets.py").write_text("import json, textwrap, yaml\n" + NET)
    code = (
        "import sys, pathlib; from batchtrain.models.custom import load_custom; "
        "load_custom('my_nets:Net', ['my_nets'], search=pathlib.Path(sys.argv[1])); "
        "assert sys.modules['json'].dumps([1]) == '[1]'"
    )
    # In a process of its own, where none of the three is imported yet by a test.
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    with pytest.raises(SpecError, match="standard library"):
        load_custom("json:Net", ["json"], search=folder)


def test_an_installed_package_wins_over_the_folder(folder, tmp_path_factory, monkeypatch):
    installed = tmp_path_factory.mktemp("site")
    (installed / "my_nets.py").write_text(NET + "    installed = True\n")
    monkeypatch.syspath_prepend(str(installed))
    network = load_custom("my_nets:Net", ["my_nets"], search=folder)
    assert network.installed
    expected = hashlib.sha256((installed / "my_nets.py").read_bytes()).hexdigest()
    assert code_hash("my_nets:Net", search=folder) == expected


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def Net(inputs): pass", "expected a subclass of torch.nn.Module"),
        ("class Net: pass", "expected a subclass of torch.nn.Module"),
        (NET + "Net = Net()", "expected a subclass of torch.nn.Module"),
        ("import os as Net", "expected a subclass of torch.nn.Module"),
        ("from torch.nn import Linear as Net", "outside of the allowed package"),
        ("class Other: pass", "has no 'Net'"),
    ],
)
def test_what_is_no_network_of_the_package_is_refused(folder, code, message):
    (folder / "my_nets.py").write_text(code)
    with pytest.raises(SpecError, match=message):
        load_custom("my_nets:Net", ["my_nets"], search=folder)


@pytest.mark.parametrize("target", ["my_absent:Net", "my_nets.absent:Net"])
def test_a_module_that_does_not_exist_is_a_spec_error(folder, target):
    with pytest.raises(SpecError, match="no module"):
        load_custom(target, ["my_nets", "my_absent"], search=folder)


@pytest.mark.parametrize(
    ("code", "message", "cause"),
    [
        ("import my_missing_dependency", "my_missing_dependency", ModuleNotFoundError),
        (
            "x = 1\n1 / 0",
            r"ZeroDivisionError: division by zero \(.*my_nets.py:2\)",
            ZeroDivisionError,
        ),
        ("def broken(:", r"SyntaxError.*my_nets.py, line 1", SyntaxError),
        ("import sys; sys.exit(0)", "SystemExit", SystemExit),
    ],
)
def test_an_error_inside_the_users_module_is_shown_and_kept(folder, code, message, cause):
    (folder / "my_nets.py").write_text(code)
    with pytest.raises(TrainingError, match=message) as raised:
        load_custom("my_nets:Net", ["my_nets"], search=folder)
    assert isinstance(raised.value.__cause__, cause)


def test_code_edited_after_its_import_is_refused_rather_than_run_stale(folder):
    load_custom("my_nets:Net", ["my_nets"], search=folder)
    (folder / "my_nets.py").write_text(NET + "# edited\n")
    with pytest.raises(TrainingError, match="has changed since"):
        load_custom("my_nets:Net", ["my_nets"], search=folder)


def test_a_module_of_the_same_name_from_another_folder_is_not_mistaken_for_it(
    folder, tmp_path_factory
):
    load_custom("my_nets:Net", ["my_nets"], search=folder)
    other = tmp_path_factory.mktemp("other")
    (other / "my_nets.py").write_text(NET)
    with pytest.raises(TrainingError, match="already imported"):
        load_custom("my_nets:Net", ["my_nets"], search=other)


def test_the_hash_of_a_module_is_that_of_its_file_and_runs_no_code(folder):
    (folder / "my_nets.py").write_text("raise RuntimeError('it was imported')")
    expected = hashlib.sha256((folder / "my_nets.py").read_bytes()).hexdigest()
    before = list(sys.path)
    assert code_hash("my_nets:Net", search=folder) == expected
    assert "my_nets" not in sys.modules
    assert sys.path == before


def test_the_hash_of_a_package_follows_every_python_file_in_it(package):
    def digest() -> str:
        return code_hash("my_pkg.deep.nets:Net", search=package)

    seen = [digest()]
    assert digest() == seen[0]
    root = package / "my_pkg"
    (root / "notes.txt").write_text("not code")
    assert digest() == seen[0]
    (root / "parts.py").write_text("class Part: edited = True\n")
    seen.append(digest())
    (root / "parts.py").rename(root / "pieces.py")
    seen.append(digest())
    (root / "new.py").write_text("")
    seen.append(digest())
    (root / "__init__.py").write_text("raise RuntimeError('it was imported')")
    seen.append(digest())
    assert len(set(seen)) == 5


def test_a_source_that_is_not_found_cannot_be_hashed(folder):
    with pytest.raises(SpecError, match="no module 'my_absent'"):
        code_hash("my_absent:Net", search=folder)


def test_hashing_does_not_import_torch(folder):
    code = (
        "import sys, pathlib; from batchtrain.models.custom import code_hash; "
        "code_hash('my_nets:Net', search=pathlib.Path(sys.argv[1])); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def test_every_dependency_of_the_project_is_refused():
    import_names = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    names = re.findall(r'^\s*"([A-Za-z0-9_-]+)', listed[1], re.MULTILINE)
    assert {import_names.get(name, name) for name in names} <= OWN_PACKAGES
