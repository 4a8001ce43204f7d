"""What a machine chooses is chosen once; what it cannot repeat is said, never silent."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from batchtrain import points
from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import InterruptedRunError, TrainingError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.testing.faults import PointFaults
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import OneRank
from batchtrain.training.stage import run_layout, train
from batchtrain.training.state import TrainState
from tests.support.builders import (
    MemoryStorage,
    mixed_table,
    prepared_for,
    quantity_table,
    spec_for,
)

EXACT = ("best.safetensors", "last.safetensors", "history.jsonl", "parameters.json")
HERE = replace(choose_machine(ResourcesSpec(device="cpu")), rows="resident")
CHOSEN = {"threads": 2, "fused": False, "gather_rows": 64}
"""What any machine can do as another did, with another value; the device has tests of its own."""

OF_THE_RUN = {"micro_rows": 4, "compile": True}
"""What the first start chooses for the run, with another value; nothing chooses it again."""

GIVEN = {
    "capability": "DEFAULT",
    "torch": "1.0",
    "python": "2.7",
    "batchtrain": "0.0.1",
    "workers": 2,
}
"""What a machine is, or how it was started, with another value."""


class Notes(Progress):
    """Remembers what a person should know."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self.texts.append(text)


@dataclass
class TwoRanksInName:
    """Says that it starts two ranks, and trains with one."""

    size: int = 2
    restarts: bool = False
    tasks: list[TrainTask] = field(default_factory=list)

    def choose_machine(self, resources: ResourcesSpec) -> MachineChoices:
        return choose_machine(resources, workers=self.size)

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> TrainState:
        self.tasks.append(task)
        return train_rank(task, OneRank(), progress, stop_requested, save_last=False)


@dataclass
class Runner:
    """Trains one spec, each time on a machine of its own."""

    loaded: LoadedSpec
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> RunLayout:
        return run_layout(self.loaded, prepared_for(self.loaded), self.storage)

    def train(
        self,
        machine: MachineChoices | None = None,
        *,
        stop_after: int | None = None,
        launcher: Any = None,
    ) -> TrainedModel:
        """One attempt, on a machine that makes these choices."""
        taken = 0

        def requested() -> bool:
            nonlocal taken
            taken += 1
            return taken == stop_after

        heard = Notes()
        self.notes = heard.texts
        with (
            patch(
                "batchtrain.training.train.choose_machine",
                lambda spec: machine or choose_machine(spec),
            ),
            patch("batchtrain.training.stage.stop_on_signals", lambda: nullcontext(requested)),
        ):
            prepared = prepared_for(self.loaded)
            return train(self.loaded, prepared, self.layout, heard, launcher=launcher)[0]

    def stop(self, machine: MachineChoices | None = None, *, steps: int = 1) -> None:
        with pytest.raises(InterruptedRunError):
            self.train(machine, stop_after=steps)

    def crash(self, machine: MachineChoices | None = None) -> None:
        """An attempt that ends in its first step, before there is anything to save."""
        points.listen(PointFaults.parse("step.rows:1:raise"))
        try:
            with pytest.raises(RuntimeError, match="on purpose"):
                self.train(machine)
        finally:
            points.listen(None)

    def edited(self, *overrides: str) -> Runner:
        """The same run with other words in its spec."""
        return Runner(load_spec(self.loaded.path, overrides), self.storage)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(spec_for(tmp_path, mixed_table(60)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("undisturbed")
    return Runner(spec_for(folder, mixed_table(60))).train()


def hashes(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    return {name: files[name].sha256 for name in EXACT}


def elsewhere(name: str, value: Any) -> MachineChoices:
    changed: dict[str, Any] = {name: value}
    return replace(HERE, **changed)


def test_each_choice_can_be_repeated_or_counts_as_a_difference() -> None:
    names = {each.name for each in fields(MachineChoices)}
    assert set(HERE.chosen()) == {"device", "rows", *CHOSEN, *OF_THE_RUN}
    assert names == {"device", "rows", *CHOSEN, *OF_THE_RUN, *GIVEN}
    for name, value in {**CHOSEN, **OF_THE_RUN, **GIVEN}.items():
        assert HERE.differences(elsewhere(name, value)) == {name: (asdict(HERE)[name], value)}
    assert HERE.differences(HERE) == {}
    # Whether rows are in memory or streaming shows in no bit.
    assert HERE.differences(elsewhere("rows", "streaming")) == {}


@pytest.mark.parametrize("name", GIVEN)
def test_r10_r11_what_cannot_be_repeated_is_recorded_and_noted(
    runner: Runner, undisturbed: TrainedModel, name: str
) -> None:
    there = elsewhere(name, GIVEN[name])
    runner.stop(there, steps=4)
    trained = runner.train()
    assert trained.inexact() == [
        {"step": 4, "what": name, "then": GIVEN[name], "now": asdict(HERE)[name]}
    ]
    assert len(runner.notes) == 1
    for word in (name, repr(GIVEN[name]), repr(asdict(HERE)[name])):
        assert word in runner.notes[0]
    # Nothing but the record differs, since it is one machine after all.
    assert hashes(trained) == hashes(undisturbed)
    assert trained.content == undisturbed.content
    assert trained.machine() == HERE.to_json()


@pytest.mark.parametrize("name", CHOSEN)
def test_r11_what_can_be_chosen_stays_as_it_was(runner: Runner, name: str) -> None:
    there = elsewhere(name, CHOSEN[name])
    runner.stop(there, steps=4)
    trained = runner.train()
    assert trained.machine() == there.to_json()
    assert trained.inexact() == []
    assert len(runner.notes) == 1
    assert name in runner.notes[0]


def test_r11_edited_threads_do_not_change_a_run_that_has_begun(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    runner.stop(steps=2)
    edited = runner.edited("resources.cpus_per_worker=2")
    assert edited.layout.root == runner.layout.root
    trained = edited.train()
    assert trained.machine()["threads"] == 1
    assert trained.inexact() == []
    assert hashes(trained) == hashes(undisturbed)
    assert [("threads is 2" in note) for note in edited.notes] == [True]


def test_an_unbroken_run_and_one_that_was_resumed_in_place_are_exact_and_say_nothing(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    assert undisturbed.inexact() == []
    for _ in range(3):
        runner.stop(steps=2)
        assert runner.notes == []
    trained = runner.train()
    assert runner.notes == []
    assert trained.inexact() == []
    assert trained.content == undisturbed.content


def test_r11_each_move_between_machines_is_recorded_once(runner: Runner) -> None:
    there = elsewhere("capability", "DEFAULT")
    runner.stop(steps=1)
    # Nothing was trained there, so nothing of it is in the result.
    runner.crash(elsewhere("capability", "AVX1024"))
    runner.stop(there, steps=2)
    runner.stop(there, steps=1)
    assert runner.notes == []
    runner.crash()
    trained = runner.train()
    moves = [(each["step"], each["then"], each["now"]) for each in trained.inexact()]
    assert moves == [(1, HERE.capability, "DEFAULT"), (4, "DEFAULT", HERE.capability)]


def test_r11_before_the_first_step_there_is_nothing_that_could_differ(runner: Runner) -> None:
    runner.crash(elsewhere("capability", "DEFAULT"))
    trained = runner.train()
    assert trained.inexact() == []
    assert trained.machine() == HERE.to_json()


def test_a_choice_of_the_first_start_stays_though_nothing_was_saved(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    runner.crash()
    trained = runner.edited("resources.cpus_per_worker=2").train()
    assert trained.machine()["threads"] == 1
    assert hashes(trained) == hashes(undisturbed)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"device": "cpu"}'])
def test_a_torn_record_of_the_first_start_is_begun_anew_with_a_note(
    runner: Runner, undisturbed: TrainedModel, record: bytes
) -> None:
    runner.storage.write(runner.layout.run_record, record)
    trained = runner.train()
    assert hashes(trained) == hashes(undisturbed)
    assert len(runner.notes) == 1
    assert "run.json" in runner.notes[0]
    assert runner.storage.read(runner.layout.run_record) == canonical_json(HERE.to_json())


def test_the_record_of_a_version_without_micro_batches_is_read(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    runner.stop(steps=4)
    keys = [key for key in runner.storage.files if key.endswith("run.json")]
    record = {key: json.loads(runner.storage.read(key)) for key in keys}
    old = {name: value for name, value in HERE.to_json().items() if name not in OF_THE_RUN}
    assert MachineChoices.from_bytes(canonical_json(old), where="there") == HERE
    assert all(set(OF_THE_RUN) <= set(each) for each in record.values())
    trained = runner.train()
    assert trained.inexact() == []
    assert hashes(trained) == hashes(undisturbed)


@pytest.mark.parametrize("micro_batch", [3, 16])
def test_r11_a_micro_batch_that_is_asked_for_is_recorded(
    tmp_path: Path, undisturbed: TrainedModel, micro_batch: int
) -> None:
    training = {"epochs": 3, "batch_size": 16, "micro_batch": micro_batch}
    runner = Runner(spec_for(tmp_path, mixed_table(60), training=training))
    runner.stop(steps=4)
    trained = runner.train()
    assert runner.notes == []
    assert trained.machine()["micro_rows"] == micro_batch
    # A batch that is not cut is the same batch; one that is draws its dropout otherwise.
    assert (hashes(trained) == hashes(undisturbed)) is (micro_batch == 16)


def test_kernels_that_cannot_be_compiled_are_refused_with_a_sentence(tmp_path: Path) -> None:
    training = {"epochs": 1, "batch_size": 16, "compile": True}
    runner = Runner(spec_for(tmp_path, mixed_table(60), training=training))
    with (
        patch("batchtrain.training.choosing.shutil.which", lambda _name: None),
        pytest.raises(
            TrainingError, match=r"training\.compile: expected a compiler.*Install g\+\+"
        ),
    ):
        runner.train()


def test_r10_another_number_of_ranks_is_allowed_and_recorded(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    runner.stop(steps=3)
    launcher = TwoRanksInName()
    trained = runner.train(launcher=launcher)
    assert [task.machine.workers for task in launcher.tasks] == [2]
    assert trained.inexact() == [{"step": 3, "what": "workers", "then": 1, "now": 2}]
    assert len(runner.notes) == 1
    assert "workers is 2 here, and the attempt before had 1" in runner.notes[0]
    assert trained.machine()["workers"] == 2
    assert hashes(trained) == hashes(undisturbed)


def test_r09_in_canonical_mode_another_number_of_ranks_is_nothing_to_speak_of(
    tmp_path: Path,
) -> None:
    runner = Runner(spec_for(tmp_path, mixed_table(60), determinism="canonical"))
    runner.stop(steps=3)
    trained = runner.train(launcher=TwoRanksInName())
    assert runner.notes == []
    assert trained.inexact() == []
    # Anything else still is.
    other = Runner(runner.loaded)
    other.stop(elsewhere("capability", "DEFAULT"), steps=3)
    moved = other.train(launcher=TwoRanksInName())
    assert [each["what"] for each in moved.inexact()] == ["capability"]


@contextmanager
def products_in_16_bits() -> Iterator[None]:
    """What a notebook may have set for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_r11_what_a_caller_has_set_for_the_process_does_not_show_in_the_result(
    tmp_path: Path,
) -> None:
    # Wide enough that a CPU which can multiply in 16 bits would do so.
    training = {"epochs": 1, "batch_size": 128}
    sections: dict[str, Any] = {
        "target": "y",
        "model": {"kind": "mlp", "hidden": [128, 64]},
        "training": training,
    }
    loaded = spec_for(tmp_path, quantity_table(400, features=32), **sections)
    whole = Runner(loaded).train()
    broken = Runner(loaded)
    with products_in_16_bits():
        broken.stop(steps=1)
    trained = broken.train()
    assert hashes(trained) == hashes(whole)
    assert trained.content == whole.content


def page_of(loaded: LoadedSpec, storage: MemoryStorage) -> str:
    result = run_spec(loaded, storage=storage, last="evaluate")
    assert result.report is not None
    return html.unescape(result.report.page().decode())


def test_r11_the_report_warns_of_a_resume_that_was_not_exact(runner: Runner) -> None:
    runner.stop(elsewhere("capability", "DEFAULT"), steps=4)
    page = page_of(runner.loaded, runner.storage)
    assert (
        "the training was resumed after step 4 where capability was "
        f"{HERE.capability!r} and had been 'DEFAULT'"
    ) in page


def test_r11_the_report_of_an_exact_resume_does_not_warn(runner: Runner) -> None:
    runner.stop(steps=4)
    assert "resumed after" not in page_of(runner.loaded, runner.storage)


# ----------------------------------------------------------------------------------------------
# The device


def test_a_run_that_began_on_a_gpu_is_not_resumed_without_one(runner: Runner) -> None:
    record = canonical_json(replace(HERE, device="cuda", capability="some GPU").to_json())
    runner.storage.write(runner.layout.run_record, record)
    with (
        patch.object(torch.cuda, "is_available", lambda: False),
        pytest.raises(TrainingError, match=r"a CUDA device.*found none on this machine"),
    ):
        runner.train()


def test_r11_a_run_that_began_on_a_cpu_stays_there_and_names_the_cpu(
    runner: Runner, undisturbed: TrainedModel
) -> None:
    runner.stop(steps=2)
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "get_device_name", lambda: "some GPU"),
        patch.object(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 31)),
    ):
        trained = runner.train()
    assert trained.inexact() == []
    assert trained.machine() == HERE.to_json()
    assert hashes(trained) == hashes(undisturbed)
    assert any("device is 'cuda' here, and the attempt before had 'cpu'" in x for x in runner.notes)


def test_r11_another_cpu_is_recorded_although_there_is_a_gpu(runner: Runner) -> None:
    runner.stop(elsewhere("capability", "DEFAULT"), steps=2)
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "get_device_name", lambda: "some GPU"),
        patch.object(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 31)),
    ):
        trained = runner.train()
    assert [(each["then"], each["now"]) for each in trained.inexact()] == [
        ("DEFAULT", HERE.capability)
    ]
