"""What the machine refuses is one line; what is wrong in the program is not."""

import errno
import gc
import json
import multiprocessing.context
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import learngene
from learngene.data.batches import eval_loader
from learngene.data.open_split import open_split
from learngene.making.steps import Step, run_steps
from learngene.recipe.sections import DataSpec, Train
from learngene.system.errors import DataError, LearngeneError
from learngene.system.machine_faults import MachineError, machine_fault, machine_faults
from learngene.training.log import TrainLog
from learngene.training.optimizer import make_optimizer, refuse_optimizer
from learngene.training.student import Student
from pico import CLI, FAST, finetune_fields, pico_shape
from runs import metrics

OWN = Path(learngene.__file__).parent / "missing.json"


def system(number: int, *paths: object) -> OSError:
    return OSError(number, os.strerror(number), *paths)


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


class AcceleratorError(RuntimeError):
    """As torch's is called."""


class BackendCompilerFailed(RuntimeError):  # noqa: N818 - torch's name
    """What torch.compile raises."""

    __module__ = "torch._dynamo.exc"


FAULTS: dict[str, tuple[BaseException, str | None]] = {
    "files": (system(errno.EMFILE), "too many open files (this process may have "),
    "files of the system": (system(errno.ENFILE, "x"), "raise the limit (ulimit -n), or lower data.workers"),
    "files, as torch says it": (RuntimeError("unable to open shared memory: Too many open files"),
                                "too many open files"),
    "files, passed on": (RuntimeError("received 0 items of ancdata"), "too many open files"),
    "disk": (system(errno.ENOSPC, "run/last.pt"), "no space left on the device at run/last.pt; free some space"),
    "quota": (system(errno.EDQUOT, "run/last.pt"), "no space left on the device"),
    "disk, as torch says it": (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64"),
                               "no space"),
    "memory": (MemoryError(), "out of memory (MemoryError); lower train.micro_batch, data.img_size or data.workers"),
    "memory of a system call": (system(errno.ENOMEM), "out of memory (Cannot allocate memory)"),
    "memory of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    "memory of a device": (OutOfMemoryError("CUDA has none"), "out of memory (CUDA has none)"),
    "shared memory": (system(errno.ENOENT, "/torch_12_34"), "enlarge /dev/shm, or set data.workers=0"),
    "a full shared memory": (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "/dev/shm"),
    "threads": (RuntimeError("can't start new thread"), "starts no further process or thread; lower data.workers"),
    "processes": (system(errno.EAGAIN), "starts no further process or thread"),
    "a loader that was ended": (
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
        "the system ended a loader process (DataLoader worker (pid 12) is killed by signal: Killed.), most often",
    ),
    "precision": (RuntimeError("\"addmm\" not implemented for 'Half'"), "set train.precision=fp32"),
    "device": (RuntimeError("CUDA error: no kernel image is available for execution"),
               "the accelerator reports an err"),
    "compiler": (BackendCompilerFailed("no gcc"),
                 "torch.compile cannot compile here (no gcc); set train.compile=false"),
    "processes apart": (RuntimeError("NCCL error in: ProcessGroup"), "cannot reach each other"),
    "a lost process": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "cannot reach each other"),
    "no permission": (system(errno.EACCES, "data/a.png"), "data/a.png: Permission denied"),
    "a lost network drive": (system(errno.EIO, "data/a.png"), "data/a.png: Input/output error"),
    "a lost file": (system(errno.ENOENT, "lost.png"), "lost.png: No such file or directory"),
    "a lost folder": (system(errno.ENOENT, "gone/a.png"), "the folder gone is gone, so a.png can be neither read nor"),
    "a path of the program": (system(errno.ENOENT, str(OWN)), None),
    "a path of a library": (system(errno.ENOENT, os.path.join(os.path.dirname(torch.__file__), "x")), None),
    "a closed file": (system(errno.EBADF), None),
    "a reader that has enough": (BrokenPipeError(errno.EPIPE, "Broken pipe"), None),
    "a shape": (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), None),
    "a label beyond": (AcceleratorError("CUDA error: device-side assert triggered"), None),
    "a damaged archive": (RuntimeError("PytorchStreamReader failed: inline_container.cc:145"), None),
    "processes never set up": (ValueError("Default process group has not been initialized"), None),
    "an attribute": (AttributeError("out of memory"), None),
}  # fmt: skip


@pytest.mark.parametrize(("error", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_machine_is_one_line(error: BaseException, line: str | None) -> None:
    told = machine_fault(error)
    if line is None:
        assert told is None
    else:
        assert told is not None
        assert line in told
        assert "\n" not in told


def test_errors_of_loader_processes_lose_their_tracebacks() -> None:
    text = 'Caught DataError in DataLoader worker process 0.\nOriginal:\n  File "x"\na.b.DataError: image a is bad'
    with pytest.raises(DataError, match=r"^image a is bad$"), machine_faults():
        raise DataError(text)
    with pytest.raises(LearngeneError, match=r"^left\nas it is$"), machine_faults():
        raise LearngeneError("left\nas it is")
    with pytest.raises(MachineError, match="out of memory"), machine_faults():
        raise MemoryError
    with pytest.raises(ZeroDivisionError), machine_faults():
        raise ZeroDivisionError


# -- in a run -------------------------------------------------------------------------------------------


def recipe(images: Path, tmp_path: Path, **train: Any) -> Path:
    fields = finetune_fields("scratch", images, tmp_path / "run", shape=pico_shape(depth=1).to_dict())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**fields, "train": {**FAST, **train}}))
    return tmp_path / "recipe.yaml"


def failing_in_epoch_two(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    log = TrainLog.epoch

    def fail(self: TrainLog, entry: Any, parts: Any) -> None:
        if entry["epoch"] == 2:
            raise error
        log(self, entry, parts)

    monkeypatch.setattr(TrainLog, "epoch", fail)


def test_a_run_that_the_machine_ends_says_why_and_goes_on_later(
    images: Path, tmp_path: Path, cli: CLI, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(images, tmp_path)
    with monkeypatch.context() as patch:
        failing_in_epoch_two(patch, system(errno.ENOSPC, "events"))
        result = cli("finetune", path)
        assert (result.code, result.err.splitlines()[-1]) == (
            2,
            "learngene: no space left on the device at events; free some space, or choose another out",
        )
        failing_in_epoch_two(patch, system(errno.ENOENT, str(OWN)))
        result = cli("finetune", path)
        assert (result.code, result.err.count("(a bug; --debug shows where)")) == (1, 1)
    assert cli("finetune", path).code == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("tracked", [True, False])
def test_a_run_whose_folder_vanishes_ends_with_a_whole_one(
    tracked: bool, images: Path, tmp_path: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tracked:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(TrainLog, "step", lambda *_: shutil.rmtree(tmp_path / "run", ignore_errors=True))
    result = cli("finetune", recipe(images, tmp_path))
    assert result.code == 0, result.err
    monkeypatch.undo()
    assert [entry["epoch"] for entry in metrics(tmp_path / "run")] == [1, 2]
    assert "is finished" in cli("check", recipe(images, tmp_path)).out


@pytest.mark.parametrize(
    "vanishes", [(Student, "end"), (Student, "save")], ids=["behind the last state", "before a state"]
)
def test_a_run_whose_folder_vanished_can_be_run_again(
    vanishes: tuple[Any, str], images: Path, tmp_path: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name = vanishes
    before = getattr(kind, name)

    def vanishing(self: Any, *given: Any) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        before(self, *given)

    monkeypatch.setattr(kind, name, vanishing)
    assert cli("finetune", recipe(images, tmp_path)).code == 0
    monkeypatch.undo()
    again = cli("finetune", recipe(images, tmp_path))
    assert again.code == 0, again.err


def test_loader_processes_that_cannot_start_end_in_silence(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = multiprocessing.context.ForkProcess.start

    def limited(self: Any) -> None:
        if started:
            raise system(errno.EMFILE)
        started.append(self)
        with warnings.catch_warnings(action="ignore"):  # of forking beside threads
            start(self)

    complaints: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda complaint: complaints.append(str(complaint.object)))
    # CPython itself may close a pipe twice when a queue's thread ends while the queue is dropped.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", limited)
    data = DataSpec(source=str(images), workers=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    loader = eval_loader(open_split(data, "val"), data, img_size=8)
    with pytest.raises(MachineError, match="too many open files"), machine_faults():
        next(iter(loader))
    gc.collect()
    assert not [complaint for complaint in complaints if "DataLoader" in complaint]
    (process,) = started
    assert not process.is_alive()


def test_a_step_that_the_machine_fails_does_not_take_down_the_others(tmp_path: Path) -> None:
    def fail(error: BaseException) -> Any:
        def make() -> None:
            raise error

        return make

    steps = [Step("one", tmp_path / "one", fail(system(errno.EMFILE))), Step("two", tmp_path / "two", lambda: "made")]
    failed: dict[str, str] = {}
    assert [outcome for _, outcome in run_steps(steps, failed=failed)] == ["made"]
    assert failed["one"].startswith("too many open files")
    with pytest.raises(FileNotFoundError):
        list(run_steps([Step("bug", tmp_path / "bug", fail(system(errno.ENOENT, str(OWN))))], failed={}))


# -- optimizers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fusedadam", "fusedsgd", "bnbadamw8bit", "adahessian"])
def test_optimizers_that_cannot_work_here_are_refused_before_the_first_step(
    name: str, images: Path, tmp_path: Path, cli: CLI
) -> None:
    path = recipe(images, tmp_path, optimizer=name)
    for command in ("check", "finetune"):
        result = cli(command, path)
        assert (result.code, result.err.splitlines()[-1].partition(" (")[0]) == (
            2,
            f"learngene: train.optimizer: '{name}' cannot be used here on cpu",
        )
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "muon"])
def test_trying_an_optimizer_changes_nothing(name: str) -> None:
    spec = Train(**{**FAST, "optimizer": name})
    module = torch.nn.Linear(2, 2)
    before, weight = torch.get_rng_state(), module.weight.clone()
    make_optimizer(module, spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(module.weight, weight)
    refuse_optimizer(spec)
    with pytest.raises(LearngeneError, match=r"unknown optimizer 'adamx'; did you mean"):
        refuse_optimizer(Train(**{**FAST, "optimizer": "adamx"}))
