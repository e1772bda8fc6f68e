"""Fixtures of the whole suite. Everything is tiny: 8 px images of three colours, ViTs of width 16."""

from __future__ import annotations

import atexit
import io
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Set before torch is imported, and inherited by the commands that tests start: one thread (pico models gain nothing
# from a second), no accelerator (what is compared bit by bit is the CPU), no network, no cache but the suite's own.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "LEARNGENE_CACHE": tempfile.mkdtemp(prefix="learngene-test-cache-"),
}

import hypothesis
import pytest
from jaxtyping import install_import_hook

atexit.register(shutil.rmtree, os.environ["LEARNGENE_CACHE"], ignore_errors=True)

# How long an example takes says something about the machine only.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# Under test, the modules that handle tensors check their shape annotations at every call.
install_import_hook(
    ["learngene.genes.ancestry", "learngene.genes.gene", "learngene.data.batches", "learngene.training.losses"],
    "beartype.beartype",
)

if TYPE_CHECKING:  # and inside fixtures: the process that hands tests out to others needs no torch
    import torch

    from learngene.training.log import TrainLog
    from pico import CLI
    from processes import Start


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/ of three colours, 8 and 4 images each; read only."""
    from pico import make_images

    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def ancestry_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descendant folder with a small random ViT for the three colours; read only."""
    from pico import make_ancestry

    return make_ancestry(tmp_path_factory.mktemp("ancestry") / "pico-vit")


@pytest.fixture(scope="session")
def ancestry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descendant folder with a random ViT of four layers, to be searched; read only."""
    from pico import make_ancestry

    return make_ancestry(tmp_path_factory.mktemp("searched") / "pico-vit", depth=4)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data sets of a search by name, one with masks; read only."""
    from searches import make_sets

    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, Path]:
    """Two tasks of three classes and two; read only."""
    from pico import make_images

    return {"colours": images, "pair": make_images(tmp_path_factory.mktemp("pair"), classes=("blue", "red"))}


@pytest.fixture(scope="session")
def stage1(tmp_path_factory: pytest.TempPathFactory, images: Path, ancestry_folder: Path) -> Path:
    """The gene file of a stage 1 of TAL; read only."""
    from hyper import SHORT, home

    out = tmp_path_factory.mktemp("stage1") / "home"
    home(ancestry_folder, images, out, train=SHORT)
    return out.with_name("home.safetensors")


@pytest.fixture(scope="session")
def cli() -> CLI:
    """Runs the command line in this process: ``cli("plan", gene)`` gives its exit code and what it printed."""
    from learngene.cli import main
    from pico import Outcome

    def run(*arguments: object) -> Outcome:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["learngene", *map(str, arguments)])
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


BEGUN = (
    r": (training|validation) \d+ images|: \d+ validation images tell a score|: run folder |"
    r"^(eval|export|ship): reading |^\d+ px, |an epoch, .* to go"
)
"""Lines of a command that has begun: what it reads and how long it takes."""


@pytest.fixture
def refused(cli: CLI) -> Callable[..., str]:
    """Runs a command that must fail as bad input does: exit code 2, one line, no traceback. Returns the line.

    A command that fails after it has begun has said what it does, and what it counted.
    """

    def run(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.code == 2, result
        assert result.out == ""
        (line,) = (line for line in result.err.splitlines() if not re.search(BEGUN, line))
        assert line.startswith("learngene: ")
        assert "Traceback" not in line
        return line

    return run


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts commands in processes of their own, without the seconds that a new interpreter takes to import torch."""
    from processes import Command

    started: list[Command] = []

    def run(*arguments: object, **environment: str) -> Command:
        started.append(Command(folder, *arguments, **environment))
        return started[-1]

    folder = tmp_path_factory.mktemp("commands")
    yield run
    for command in started:
        command.process.kill()
        command.process.join()


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``stop_at(number, epoch=1)``: this process gets the signal as soon as a run has logged an epoch like that."""
    from learngene.training.log import TrainLog

    log = TrainLog.epoch

    def arrange(number: int, **like: int) -> None:
        def epoch(self: TrainLog, entry: Mapping[str, Any], parts: Mapping[str, float]) -> None:
            log(self, entry, parts)
            if like.items() <= entry.items():
                monkeypatch.setattr(TrainLog, "epoch", log)  # once
                os.kill(os.getpid(), number)

        monkeypatch.setattr(TrainLog, "epoch", epoch)

    return arrange


@pytest.fixture
def stop_after() -> Iterator[Callable[..., None]]:
    """``stop_after(model, 3)``: Ctrl-C at the third batch that a model learns from, or that a teacher sees."""
    import torch

    from learngene import Ancestry

    handles = []

    def arrange(model: torch.nn.Module, step: int, number: int = signal.SIGINT) -> None:
        seen: list[int] = []

        def count(module: torch.nn.Module, *_: object) -> None:
            if torch.is_grad_enabled() or isinstance(module, Ancestry):
                seen.append(1)
                if len(seen) == step:
                    os.kill(os.getpid(), number)

        handles.append(model.register_forward_hook(count))

    yield arrange
    for handle in handles:
        handle.remove()
