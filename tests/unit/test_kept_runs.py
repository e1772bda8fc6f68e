"""Runs are listed with their state, score and size; what can be made again is deleted, and nothing else."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from learngene import finetune, scratch
from learngene.system.files import take_lock
from learngene.training.kept_runs import KeptRun, kept_runs
from pico import CLI, FAST, pico_shape


def busy(lock: Path) -> ExitStack:
    held = take_lock(lock)
    assert held is not None
    return held


METRICS = [{"epoch": 1, "epochs": 4, "loss": 1.0, "top1": 25.0}, {"epoch": 2, "epochs": 4, "loss": 0.5}]


def run(path: Path, *files: str, **recipe: object) -> Path:
    """A run folder with files of one byte each, and two epochs of four."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(json.dumps({"kind": "condense", "method": "tleg", "out": "x"} | recipe))
    (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in METRICS))
    for name in files:
        (path / name).write_text("{}" if name == "result.json" else "x")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run(tmp_path / "done", "last.pt", "best.pt", "result.json")
    (tmp_path / "done.safetensors").write_text("gene")
    run(tmp_path / "rows" / "row", "last.pt", "result.json")  # whose state is all there is of it
    run(tmp_path / "stopped", "last.pt", "best.pt", distill={"replay": {"folder": str(tmp_path / "busy")}})
    run(tmp_path / "broken", "last.pt", "result.json").joinpath("result.json").write_text('{"error": "inf"}')
    run(tmp_path / "new")
    for name in ("free", "busy", "written"):
        run(tmp_path / name / "targets-1", "key.json", "a.safetensors").joinpath("recipe.yaml").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("soup: [salt]")
    return tmp_path


def test_runs_are_listed_with_state_epoch_score_and_size(folder: Path, cli: CLI) -> None:
    with busy(folder / "new" / ".lock"):
        lines = cli("runs", folder).out.splitlines()
    told = {Path(line.split()[0]).name: line for line in lines}
    assert {name: line.split()[1] for name, line in told.items()} == {
        "broken": "diverged", "done": "finished", "new": "running", "row": "finished", "stopped": "stopped"
    }  # fmt: skip
    assert "epoch 2/4      top-1 25.00 %" in told["done"]
    assert told["done"].endswith("condense tleg")
    (new,) = (each for each in kept_runs(folder) if each.path.name == "new")
    assert (new.state, new.size) == ("not begun", sum(f.stat().st_size for f in (folder / "new").iterdir()))
    (first, *_) = json.loads(cli("runs", folder, "--json").out)
    assert (first["state"], first["epoch"]) == ("diverged", [2, 4])


def test_what_can_be_made_again_is_deleted_and_nothing_else(folder: Path, cli: CLI) -> None:
    before = {path for path in folder.rglob("*") if path.is_file()}
    gone = {folder / "done" / "last.pt", folder / "done" / "best.pt"}
    gone |= set((folder / "free" / "targets-1").iterdir())
    (folder / "written" / "locks").mkdir()
    with busy(folder / "written" / "locks" / "a.lock"):
        shown = cli("clean", folder, "--dry-run").out
        assert ("would be deleted" in shown, str(folder / "free" / "targets-1") in shown) == (True, True)
        asked = cli("clean", folder)
        assert (asked.code, "--yes does it without asking" in asked.err) == (2, True)
        left = {path for path in folder.rglob("*") if path.is_file()}
        assert before <= left
        assert cli("clean", folder, "--yes").out.endswith(" deleted\n")
    assert before - {path for path in folder.rglob("*") if path.is_file()} == gone
    assert cli("clean", folder / "done", "--yes").out == f"{folder / 'done'}: nothing that can be made again\n"


def test_a_real_run_is_finished_and_keeps_its_model(images: Path, tmp_path: Path, cli: CLI) -> None:
    data = {"source": str(images), "workers": 0}
    finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST)
    (found,) = kept_runs(tmp_path)
    assert (found.state, found.epoch, found.model) == ("finished", (2, 2), tmp_path / "run" / "descendant")
    assert found.score.startswith("top-1 ")
    with busy(tmp_path / "run" / ".lock"):
        assert [each.state for each in kept_runs(tmp_path)] == ["running"]
        assert "nothing that can be made again" in cli("clean", tmp_path, "--yes").out
    assert cli("clean", tmp_path, "--yes").code == 0
    assert not list(tmp_path.rglob("*.pt"))
    assert isinstance(next(kept_runs(tmp_path)), KeptRun)


def test_a_folder_that_is_none_is_refused(cli: CLI, tmp_path: Path) -> None:
    for command in ("runs", "clean"):
        done = cli(command, tmp_path / "none")
        assert (done.code, done.err) == (2, f"learngene: {tmp_path / 'none'}: no such folder\n")
    assert cli("runs", tmp_path).out == f"{tmp_path}: no runs\n"
