"""The command line as a person and a script use it: outputs, exit codes, what is left behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from batchtrain.cli.app import app
from batchtrain.tables import write_sample

QUICK = ["--set", "training.epochs=3"]


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def last_json(result: Result) -> dict[str, object]:
    document = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its starter spec, and one finished run."""
    path = tmp_path_factory.mktemp("cli")
    write_sample("drug200-missing", path / "people.csv")
    made = invoke("init", path / "people.csv", "--target", "Drug", "--out", path / "people.yaml")
    assert made.exit_code == 0, made.output
    result = invoke("run", path / "people.yaml", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    (path / "result.json").write_text(json.dumps(last_json(result)))
    return path


@pytest.fixture
def finished(folder: Path) -> dict[str, str]:
    loaded = json.loads((folder / "result.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_a_starter_spec_is_never_written_over(folder: Path) -> None:
    before = (folder / "people.yaml").read_bytes()
    spec = folder / "people.yaml"
    result = invoke("init", folder / "people.csv", "--target", "Drug", "--out", spec)
    assert result.exit_code == 2
    assert "does not exist yet" in result.output
    assert spec.read_bytes() == before


def test_a_starter_spec_checks_clean_and_resolves_to_itself(folder: Path, tmp_path: Path) -> None:
    assert invoke("check", folder / "people.yaml").exit_code == 0
    resolved = invoke("check", folder / "people.yaml", "--resolved")
    assert resolved.exit_code == 0
    # Those of the cluster are decided where the run takes place.
    left = set(re.findall(r"(\w+): auto", resolved.stdout))
    choices_of_the_first_start = {"compile", "micro_batch"}
    assert left - choices_of_the_first_start <= {
        *("embedding_dim", "engine", "gpus_per_worker", "init", "rows")
    }
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved.stdout.replace("people.csv", str(folder / "people.csv")))
    twice = invoke("check", again, "--resolved").stdout
    assert twice.replace(str(folder / "people.csv"), "people.csv") == resolved.stdout


def test_run_prints_one_line_a_stage_and_where_things_are(folder: Path) -> None:
    result = invoke("run", folder / "people.yaml", *QUICK)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    names = ["prepare", "train", "evaluate", "export"]
    assert [line.split()[:2] for line in lines[:4]] == [[name, "reused"] for name in names]
    assert [line.split()[0] for line in lines[4:]] == ["prepared", "report", "bundle"]
    assert all(Path(line.split(maxsplit=1)[1]).exists() for line in lines[4:])


def test_a_run_whose_working_directory_is_deleted_ends_well(
    folder: Path, finished: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = invoke("run", folder / "people.yaml", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].split() == ["bundle", finished["bundle"]]


def test_the_last_line_of_json_is_the_whole_result(finished: dict[str, object]) -> None:
    assert set(finished) == {"run", "run_dir", "prepared", "report", "bundle", "stages", "metrics"}
    assert isinstance(finished["metrics"], dict)
    assert set(finished["metrics"]) == {"train", "valid", "test"}
    assert isinstance(finished["stages"], list)
    assert [stage["status"] for stage in finished["stages"]] == ["built"] * 4


def test_a_run_that_reuses_everything_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom batchtrain.cli.app import app\n"
        f"sys.argv = ['batchtrain', 'run', {str(folder / 'people.yaml')!r}, {QUICK[0]!r}, "
        f"{QUICK[1]!r}]\n"
        "try:\n    app()\nexcept SystemExit as error:\n    assert error.code == 0\n"
        "print([name for name in ('torch', 'sklearn', 'matplotlib', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_one_stage_runs_what_it_needs_and_no_more(folder: Path, tmp_path: Path) -> None:
    storage = ["--set", f"storage={tmp_path}"]
    result = invoke("train", folder / "people.yaml", *QUICK, *storage, "--json")
    stages = last_json(result)["stages"]
    assert isinstance(stages, list)
    assert [(stage["name"], stage["status"]) for stage in stages] == [
        ("prepare", "built"),
        ("train", "built"),
    ]


def test_errors_are_an_object_for_scripts(folder: Path) -> None:
    result = invoke("run", folder / "people.yaml", "--set", "training.epoch=3", "--json")
    assert result.exit_code == 2
    document = last_json(result)
    assert document["error"] == "SpecError"
    assert document["problems"] == [
        {
            "where": "--set training.epoch=3",
            "key": "training.epoch",
            "message": "there is no key 'epoch' here",
            "hint": "Did you mean `training.epochs`?",
        }
    ]


def test_predictions_have_every_row_in_order(
    folder: Path, finished: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    result = invoke("predict", finished["bundle"], folder / "people.csv", "--out", out)
    assert result.exit_code == 0, result.output
    assert "20 missing values of 'Age' were filled" in result.output
    table = pq.read_table(out)
    assert table["row_id"].to_pylist() == list(range(200))
    again = tmp_path / "out.csv"
    assert (
        invoke("predict", finished["bundle"], folder / "people.csv", "--out", again).exit_code == 0
    )
    assert pa_csv.read_csv(again)["prediction"].to_pylist() == table["prediction"].to_pylist()
    by_name = tmp_path / "by-name.parquet"
    words = ["--out", by_name, "--engine", "embedded"]
    assert invoke("predict", finished["bundle"], folder / "people.csv", *words).exit_code == 0
    assert by_name.read_bytes() == out.read_bytes()
    refused = invoke("predict", finished["bundle"], folder / "people.csv", "--out", out)
    assert refused.exit_code == 2
    assert "does not exist yet" in refused.output


def test_an_output_among_the_input_is_refused(finished: dict[str, str], tmp_path: Path) -> None:
    write_sample("drug200", tmp_path / "a.csv")
    result = invoke("predict", finished["bundle"], tmp_path, "--out", tmp_path / "out.csv")
    assert result.exit_code == 2
    assert "Choose another folder" in result.output
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ('{"Age": 47, "Sex": "M", "BP": "LOW", "Cholesterol": "HIGH", "Na_to_K": 13.1}', 0, "Drug"),
        ('{"Age": 47, "Sex": "M", "BP": "odd", "Cholesterol": "HIGH", "Na_to_K": null}', 0, "'BP'"),
        ('{"Age": 47, "sex": "M", "BP": "LOW"}', 2, "'Sex'"),
        ('{"Age": "x", "Sex": "M", "BP": "LOW", "Cholesterol": "HIGH", "Na_to_K": 1}', 2, "'x'"),
        ('{"Age": Infinity, "Sex": "M", "BP": "L", "Cholesterol": "H", "Na_to_K": 1}', 2, "'Age'"),
        ("[1]", 2, "JSON object"),
        ("{oops", 2, "JSON object"),
    ],
)
def test_one_row_is_predicted_or_refused_with_a_sentence(
    row: str, code: int, said: str, finished: dict[str, str]
) -> None:
    result = invoke("predict", finished["bundle"], "--row", row)
    assert result.exit_code == code, result.output
    assert said in result.output


def test_verify_finds_a_changed_byte(finished: dict[str, str], tmp_path: Path) -> None:
    assert "agree exactly" in invoke("verify", finished["bundle"]).output
    copy = tmp_path / "bundle"
    shutil.copytree(finished["bundle"], copy)
    weights = next(copy.rglob("model.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    result = invoke("verify", copy)
    assert result.exit_code == 1
    assert "model.safetensors" in result.output
    missing = invoke("verify", tmp_path / "nothing")
    assert missing.exit_code == 1
    assert "manifest.json" in missing.output


def test_a_rejected_model_is_reported_but_not_exported(folder: Path, tmp_path: Path) -> None:
    arguments = [*QUICK, "--set", f"storage={tmp_path}", "--set"]
    result = invoke(
        "run", folder / "people.yaml", *arguments, "evaluation.require.log_loss='< 1e-9'"
    )
    assert result.exit_code == 1
    assert "not exported" in result.output
    assert list(tmp_path.rglob("report.html"))
    assert not list(tmp_path.rglob("bundles"))


LONG = """\
version: 1
name: long
data: {source: 'sample:digits', target: target}
model: {kind: mlp, dropout: 0.2}
training: {epochs: 30}
tracking: {tensorboard: false}
"""
TRAINED = ("best.safetensors", "last.safetensors", "history.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the long run ends with when nobody interrupts it."""
    path = tmp_path_factory.mktemp("undisturbed")
    (path / "long.yaml").write_text(LONG)
    assert invoke("train", path / "long.yaml").exit_code == 0
    return {name: next(path.rglob(name)).read_bytes() for name in TRAINED}


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_r20_a_signal_publishes_a_checkpoint_and_the_same_command_goes_on(
    number: signal.Signals, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    spec = tmp_path / "long.yaml"
    spec.write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, "-m", "batchtrain", "train", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Epoch [6/30]" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again" in errors
    assert list(tmp_path.rglob("checkpoints/*/manifest.json"))

    resumed = invoke("train", spec)
    assert "train     resumed" in resumed.stdout
    assert {name: next(tmp_path.rglob(name)).read_bytes() for name in TRAINED} == undisturbed


def test_an_interruption_before_training_leaves_nothing_half_written(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("version: 1\nname: s\ndata: {source: 'sample:digits', target: target}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "batchtrain", "run", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    for found in (tmp_path / "runs").rglob("files"):
        assert (found.parent / "manifest.json").exists()


def test_version_and_schema() -> None:
    assert invoke("--version").stdout.startswith("batchtrain ")
    assert json.loads(invoke("schema").stdout)["title"] == "batchtrain spec"
