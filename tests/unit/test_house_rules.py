"""The rules that no linter checks, on the source and the documents themselves (X22)."""

from __future__ import annotations

import ast
import inspect
import os
import pickle  # noqa: TID251  # to test that errors survive it
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchtrain import errors

ROOT = Path(__file__).resolve().parents[2]
SRC = sorted((ROOT / "src").rglob("*.py"))
SHIPPED = sorted([*SRC, *(ROOT / "jobs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
FOLDERS = ("docs", "cluster", "docker", "jobs")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

BANNED_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "tarfile"}
BANNED_NAMES = {
    "__import__",
    "compile",
    "eval",
    "exec",
    "numpy.random.seed",
    "os.popen",
    "os.system",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
}
BANNED_KEYWORDS = {"allow_pickle", "shell"}
"""Refused unless the value is written out as False."""
BROKEN_KEYWORDS = {"local_shuffle_buffer_size"}
"""Refused whatever the value: the order of rows is ours, and Ray's shuffle drops some."""

Rule = Callable[[ast.Module], Iterator[tuple[int, str]]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


# ----------------------------------------------------------------------------------------------
# The rules: each gives the line and the reason of every breach.


def dangerous_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Whatever can run code that came with data."""
    aliases = dict(_aliases(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in _imported_modules(node):
                if module.split(".")[0] in BANNED_MODULES:
                    yield node.lineno, f"imports {module}"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, aliases).removeprefix("builtins.")
            if name in BANNED_NAMES:
                yield node.lineno, f"uses {name}"
        elif isinstance(node, ast.keyword):
            is_false = isinstance(node.value, ast.Constant) and node.value.value is False
            if node.arg in BROKEN_KEYWORDS or (node.arg in BANNED_KEYWORDS and not is_false):
                yield node.value.lineno, f"passes {node.arg}"


def missing_docstring(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A module says in its first line what it is for."""
    if not ast.get_docstring(tree):
        yield 1, "has no docstring"


def long_function(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A function fits on one screen."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {num_lines} lines"


def dodged_layer(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """An internal import under TYPE_CHECKING is a dependency that the layers do not show."""
    for branch in ast.walk(tree):
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test):
            for node in ast.walk(branch):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    modules = _imported_modules(node)
                    if any(module.split(".")[0] == "batchtrain" for module in modules):
                        yield node.lineno, "imports batchtrain under TYPE_CHECKING"


def undeclared_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A module with public names lists them in `__all__`, in ruff's order, each of them there."""
    defined = set(_defined_names(tree))
    declared = _declared_names(tree)
    if declared is None:
        public = sorted(name for name in defined if not name.startswith("_"))
        if public:
            yield 1, f"has no __all__, but defines {', '.join(public)}"
        return
    if "__getattr__" not in defined:  # a package that imports late gives its names through it
        for name in sorted(set(declared) - defined - set(_imported_names(tree))):
            yield 1, f"__all__ names {name}, which is not defined"
    if declared != sorted(set(declared), key=_isort_key):
        yield 1, "__all__ is not sorted: CONSTANTS, then Classes, then functions"


def _imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""]


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name to full name, so that `from torch import load as read` is seen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """`np.random.seed` as `numpy.random.seed`; empty where it does not start with a name."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, aliases)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def _defined_names(tree: ast.Module) -> Iterator[str]:
    """What the top level of a module defines itself."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def _imported_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _declared_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            return list(names)
    return None


def _isort_key(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


# ----------------------------------------------------------------------------------------------
# The rules see what they must see ...

BREACHES: list[tuple[Rule, str]] = [
    (dangerous_code, "import pickle"),
    (dangerous_code, "import joblib as j"),
    (dangerous_code, "from cloudpickle import loads"),
    (dangerous_code, "import tarfile"),
    (dangerous_code, "def late():\n    import pickle"),
    (dangerous_code, "eval('1')"),
    (dangerous_code, "run = exec"),
    (dangerous_code, "compile('1', '', 'eval')"),
    (dangerous_code, "import builtins\nbuiltins.eval('1')"),
    (dangerous_code, "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)"),
    (dangerous_code, "import yaml as y\ny.load(text)"),
    (dangerous_code, "from torch import load as read\nread(path)"),
    (dangerous_code, "import torch\ntorch.save(model, path)"),
    (dangerous_code, "import numpy as np\nnp.random.seed(0)"),
    (dangerous_code, "import numpy\nnumpy.load(path, allow_pickle=True)"),
    (dangerous_code, "import subprocess\nsubprocess.run('ls', shell=True)"),
    (dangerous_code, "import subprocess\nsubprocess.run('ls', shell=flag)"),
    (dangerous_code, "rows.iter_torch_batches(local_shuffle_buffer_size=100)"),
    (missing_docstring, "x = 1"),
    (long_function, "def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (dodged_layer, "if TYPE_CHECKING:\n    from batchtrain.spec import RunSpec"),
    (dodged_layer, "if typing.TYPE_CHECKING:\n    import batchtrain.spec"),
    (undeclared_names, "def f(): ..."),
    (undeclared_names, "X = 1"),
    (undeclared_names, "__all__ = ['f', 'g']\ndef f(): ..."),
    (undeclared_names, "__all__ = ['g', 'f']\ndef f(): ...\ndef g(): ..."),
    (undeclared_names, "__all__ = ['Name', 'LIMIT']\nLIMIT = 1\nclass Name: ..."),
]

ALLOWED: list[tuple[Rule, str]] = [
    (dangerous_code, "import re, torch\nre.compile('x')\ntorch.compile(model)\nmodel.eval()"),
    (dangerous_code, "import yaml\nyaml.safe_load(text)\nnumpy.load(path, allow_pickle=False)"),
    (dangerous_code, "from safetensors.torch import load\nload(data)"),
    (long_function, "def fits():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (dodged_layer, "if TYPE_CHECKING:\n    import torch"),
    (undeclared_names, "__all__ = ['LIMIT', 'Name', 'f']\nfrom a import LIMIT, Name, f"),
    (undeclared_names, "__all__ = ['run']\ndef __getattr__(name): ..."),
    (undeclared_names, "__version__ = '1'\n_private = 1\nimport os"),
]


@pytest.mark.parametrize(("rule", "source"), BREACHES)
def test_a_rule_sees_a_breach(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source)))


@pytest.mark.parametrize(("rule", "source"), ALLOWED)
def test_a_rule_lets_pass_what_is_allowed(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source))) == []


# ----------------------------------------------------------------------------------------------
# ... and find nothing in what we ship.


def breaches(rule: Rule, paths: list[Path]) -> list[str]:
    """All breaches of a rule, as `file:line reason`."""
    return [
        f"{path.relative_to(ROOT)}:{line} {reason}"
        for path in paths
        for line, reason in rule(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    ]


def test_x22_nothing_shipped_can_run_code_that_came_with_data() -> None:
    assert breaches(dangerous_code, SHIPPED) == []


def test_every_module_has_a_docstring() -> None:
    assert breaches(missing_docstring, SHIPPED) == []


def test_no_function_is_longer_than_a_screen() -> None:
    assert breaches(long_function, SRC) == []


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SRC}
    assert [path.name for path, length in lengths.items() if length > MAX_FILE_LINES] == []


def test_no_internal_import_hides_under_type_checking() -> None:
    assert breaches(dodged_layer, SRC) == []


def test_public_modules_declare_their_names() -> None:
    public = [path for path in SRC if path.name == "__init__.py" or path.name[0] != "_"]
    assert breaches(undeclared_names, public) == []


# ----------------------------------------------------------------------------------------------
# Errors


def _error_classes() -> list[type[errors.BatchtrainError]]:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [each for each in classes if issubclass(each, errors.BatchtrainError)]


@pytest.mark.parametrize("error_class", _error_classes())
def test_an_error_crosses_process_borders(error_class: type[errors.BatchtrainError]) -> None:
    problem = errors.Problem("spec.yaml:3:5", "data.target", "expected a column", "name one")
    argument: Any = [problem] if error_class is errors.SpecError else "expected 3, found 4"
    error = error_class(argument)

    copy = pickle.loads(pickle.dumps(error))  # our own bytes, of a moment ago

    assert type(copy) is error_class
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error_class", _error_classes())
def test_an_error_ends_with_a_documented_exit_code(
    error_class: type[errors.BatchtrainError],
) -> None:
    assert error_class.exit_code in {1, 2, 130}


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"(\w+Error)\b.*?\b(\d+)\b", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == {
        each.__name__: each.exit_code for each in _error_classes()
    }


# ----------------------------------------------------------------------------------------------
# Imports

HEAVY = ("matplotlib", "pandas", "ray", "sklearn", "torch")
LIGHT = [
    module
    for module, path in {
        "batchtrain": "__init__.py",
        "batchtrain.cli": "cli",
        "batchtrain.spec.load": "spec/load.py",
    }.items()
    if list((ROOT / "src/batchtrain").glob(f"{path}*"))
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_every_command_imports_is_light(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# ----------------------------------------------------------------------------------------------
# Documents

LINK = re.compile(r"(?<!`)\[[^\]`]*(?:`[^`]*`[^\]`]*)*\]\(([^)\s]+)\)")


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(document: Path) -> set[str]:
    """The fragments that GitHub gives to a document's headings."""
    headings = re.findall(
        r"^#+ (.+)$", _without_code(document.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    """The relative links of a Markdown document that lead nowhere."""
    dead = []
    for target in LINK.findall(_without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = document.parent / name if name else document
        is_document = file.suffix == ".md" and file.is_file()
        if not file.exists() or (fragment and is_document and fragment not in _anchors(file)):
            dead.append(target)
    return dead


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# What is here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#what-is-here) [c](https://example.org) [d](#top)\n"
        "# Top\n[e](gone.md) [`f`](there.md#gone) ![g](plots/gone.svg)\n"
        "```\n[h](in-code.md)\n```\n"
    )
    assert dead_links(page) == ["gone.md", "there.md#gone", "plots/gone.svg"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    assert dead_links(document) == []
