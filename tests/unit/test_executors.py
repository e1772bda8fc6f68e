"""Executors: a comparison by workers of each, one of which is killed, and what is said of one that cannot be had."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from comparisons import compare_fields, recipe_of, results, written
from learngene.comparing.results import Results
from learngene.comparing.run import compare
from learngene.system.errors import InterruptedRun
from pico import CLI

if importlib.util.find_spec("submitit"):  # before any test: its import closes the stream of absl's handler, pytest's
    importlib.import_module("submitit")

CLOCK = {"seconds", "epochs", "commit", "digest", "environment"}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


DASK = pytest.param("dask", marks=needs("distributed"))
OTHERS = [pytest.param("slurm:cluster=local", marks=needs("submitit")), pytest.param("ray", marks=needs("ray"))]
FEW: dict[str, Any] = {"run": {"shapes": ["d2"], "contenders": ["scratch"]}}


def compared(root: Path, images: Path, executor: str, said: list[str], **changes: Any) -> Results:
    fields = compare_fields(root, images, **changes)
    processes = 1 if executor == "here" else 2
    chosen = "local" if executor == "here" else executor
    return compare(recipe_of(fields), processes=processes, executor=chosen, say=said.append)


def without_clock(root: Path) -> dict[str, dict[str, Any]]:
    found = results(root / "out")
    for cell in found.values():
        if cell["gene"]:
            del cell["gene"]["seconds"], cell["gene"]["digest"]  # of its seconds, too
    return {name: {k: v for k, v in cell.items() if k not in CLOCK} for name, cell in found.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, dict[str, Any]]:
    """The cells of a comparison that this process made alone."""
    root = tmp_path_factory.mktemp("here")
    compared(root, images, "here", [])
    return without_clock(root)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", DASK])
def test_workers_make_what_one_process_makes(
    executor: str, here: dict[str, dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    found = compared(tmp_path, images, executor, said)
    assert (found.failed, found.missing) == ({}, [])
    assert len(said) == len(set(said)) == 1 + 1 + 8, said
    assert without_clock(tmp_path) == here
    assert not list((tmp_path / "store").rglob("*.note"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", OTHERS)
def test_workers_that_begin_anew_for_every_step_make_the_same(
    executor: str, here: dict[str, dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    found = compared(tmp_path, images, executor, [], **FEW)
    assert (found.failed, found.missing) == ({}, [])
    made = without_clock(tmp_path)
    assert len(made) == 2
    assert made.items() <= here.items()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", DASK])
def test_what_fails_takes_nothing_else_down(executor: str, images: Path, tmp_path: Path) -> None:
    wild = {"tleg": {"train": {"lr": 1e30}}}
    found = compared(tmp_path, images, executor, [], contenders=wild)
    assert list(found.failed) == ["gene tleg d4 seed 0"]
    assert "lower train.lr" in found.failed["gene tleg d4 seed 0"]
    assert {cell["method"] for cell in results(tmp_path / "out").values()} == {"scratch"}


def killing(notes: Path, sign: int = signal.SIGKILL, whom: int | None = None, at: str = "epoch") -> threading.Thread:
    """Kills the worker that first notes that it trains, or signals ``whom`` then; ``at`` is part of its note."""

    def kill() -> None:
        while True:
            for note in notes.glob("*.note"):
                worker, _, training = note.read_text().partition(" ") if note.exists() else ("", "", "")
                if at in training:
                    os.kill(whom or int(worker.rpartition(":")[2]), sign)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


LONG: dict[str, Any] = {"condense": {"epochs": 60, "eval_every": 60, "save_every": 10}}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", DASK])
def test_a_worker_that_is_killed_is_replaced(executor: str, images: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    compared(whole, images, "here", [], **LONG)
    killer = killing(tmp_path / "store" / "locks")
    found = compared(tmp_path, images, executor, [], **LONG)
    killer.join(0)
    assert not killer.is_alive()
    assert (found.failed, found.missing) == ({}, [])
    assert without_clock(tmp_path) == without_clock(whole)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", DASK])
def test_ctrl_c_stops_workers_and_keeps_what_is_done(executor: str, images: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
    killing(tmp_path / "store" / "locks", signal.SIGINT, os.getpid(), "epoch 1/1000")
    long = {"condense": {"epochs": 1000, "eval_every": 1000, "save_every": 1000}}
    try:
        with pytest.raises(InterruptedRun):
            compared(tmp_path, images, executor, [], **long)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "store").glob("*/last.pt")), "the state of what was trained"
    assert not list((tmp_path / "store").rglob("*.note"))


# -- what cannot be had ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executor", "line"),
    [
        ("condor", "--executor condor: no such executor; known: dask, local, ray, slurm"),
        ("dsk", "--executor dsk: no such executor; did you mean 'dask'?"),
        ("local:8", "--executor local:8: no such executor; did you mean 'local'?"),
    ],
)
def test_an_executor_that_there_is_not_is_refused(
    executor: str, line: str, cli: CLI, images: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images))
    done = cli("compare", path, "--executor", executor)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"learngene: {line}")


@pytest.mark.parametrize(("executor", "package"), [("dask", "distributed"), ("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(
    executor: str, package: str, cli: CLI, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    done = cli("compare", written(tmp_path / "r.yaml", compare_fields(tmp_path, images)), "--executor", executor)
    line = f"--executor {executor}: package '{package}' is missing; pip install 'learngene[{executor}]'"
    assert (done.code, done.err) == (2, f"learngene: {line}\n")


@needs("distributed")
def test_a_scheduler_that_does_not_answer_is_named(
    cli: CLI, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learngene.system.executors.ANSWER_SECONDS", 1)
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images))
    done = cli("compare", path, "--executor", "dask:tcp://127.0.0.1:9")
    assert (done.code, done.err.count("\n")) == (2, 1)
    line = "--executor dask:tcp://127.0.0.1:9: no scheduler answers within 1 s ("
    assert done.err.startswith(f"learngene: {line}")
    assert not list((tmp_path / "out" / "cells").iterdir())


@needs("submitit")
@pytest.mark.parametrize("setting", ["cluster=moon", "cluster=local,colour=red"])
def test_a_setting_that_submitit_does_not_know_is_refused(setting: str, cli: CLI, images: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images))
    done = cli("compare", path, "--executor", f"slurm:{setting}")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"learngene: --executor slurm:{setting}: ")
