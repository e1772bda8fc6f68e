"""A run that was stopped, killed or repeated is the run that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learngene import Ancestry, finetune, scratch
from learngene.system.errors import InterruptedRun, LearngeneError
from pico import FAST, MIXED, pico_shape
from runs import HARD, condensed, same, state, tuned

# -- stopping and going on ---------------------------------------------------------------------------------


@pytest.fixture
def stop_after() -> Iterator[Callable[[nn.Module, int, int], None]]:
    """Sends a signal to this process at the given training step of a model."""
    handles = []

    def arrange(model: nn.Module, step: int, number: int = signal.SIGINT) -> None:
        seen = []

        def count(module: nn.Module, *_: object) -> None:
            if torch.is_grad_enabled() or isinstance(module, Ancestry):
                seen.append(1)
                if len(seen) == step:
                    os.kill(os.getpid(), number)

        handles.append(model.register_forward_hook(count))

    yield arrange
    for handle in handles:
        handle.remove()


def history(path: Path) -> list[dict[str, Any]]:
    """What a run has logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.mark.parametrize(
    ("step", "number", "where"),
    [
        (1, signal.SIGINT, "epoch 1, step 1"),
        (2, signal.SIGTERM, "epoch 1, step 2"),
        (3, signal.SIGTERM, "epoch 1, step 3"),
        (5, signal.SIGINT, "epoch 2, step 2"),
        (6, signal.SIGINT, "epoch 2, step 3"),
    ],
)
@pytest.mark.parametrize("train", [HARD, {**HARD, "micro_batch": 4, "precision": "bf16"}], ids=["fp32", "parts"])
def test_a_stopped_and_continued_run_is_bit_for_bit_the_run_that_was_not(
    step: int, number: int, where: str, train: dict[str, Any], images: Path, tmp_path: Path, stop_after: Any
) -> None:
    data = {"source": str(images), "workers": 0}

    def fresh() -> nn.Module:
        return scratch(pico_shape(depth=2), seed=1)

    whole = fresh()
    expected = finetune(whole, data=data, out=tmp_path / "whole", show=False, **train)
    stopped = fresh()
    # A step runs forward once per accumulated part.
    stop_after(stopped, step * (2 if "micro_batch" in train else 1), number)
    with pytest.raises(InterruptedRun) as stop:
        finetune(stopped, data=data, out=tmp_path / "stopped", show=False, **train)
    assert (stop.value.where, stop.value.signal_number) == (where, number)
    assert not (tmp_path / "stopped" / "descendant").exists()
    continued = fresh()
    found = finetune(continued, data=data, out=tmp_path / "stopped", show=False, **train)
    assert same(state(continued), state(whole))
    assert expected.averaged is not None
    assert found.averaged is not None
    assert same(state(found.averaged), state(expected.averaged))
    assert found.final == expected.final
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert (found.updates, found.images) == (expected.updates, expected.images)


@pytest.mark.parametrize("step", [2, 4])
def test_a_stopped_and_continued_gene_is_the_same_gene(
    step: int, images: Path, ancestry_folder: Path, tmp_path: Path, stop_after: Any
) -> None:
    whole = condensed(tmp_path / "whole", images, Ancestry(ancestry_folder), train=HARD)
    interrupted = Ancestry(ancestry_folder)
    stop_after(interrupted, 1 + step)  # the first call checks the image size
    with pytest.raises(InterruptedRun):
        condensed(tmp_path / "stopped", images, interrupted, train=HARD)
    assert not (tmp_path / "stopped.safetensors").exists()
    assert (tmp_path / "stopped" / "last.pt").exists()
    continued = condensed(tmp_path / "stopped", images, Ancestry(ancestry_folder), train=HARD)
    assert same(state(continued), state(whole))
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert continued.metadata["accuracy"] == whole.metadata["accuracy"]


def test_a_scaled_run_goes_on_with_its_scale(images: Path, tmp_path: Path, stop_after: Any) -> None:
    train = {**FAST, "precision": "fp16"}
    whole, _ = tuned(images, **train)
    stopped = scratch(pico_shape(depth=2), seed=1)
    stop_after(stopped, 4)
    data = {"source": str(images), "workers": 0}
    with pytest.raises(InterruptedRun):
        finetune(stopped, data=data, out=tmp_path / "run", show=False, **train)
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["scaler"]["scale"] == 65536.0
    assert saved["scaler"]["_growth_tracker"] == 4
    continued = scratch(pico_shape(depth=2), seed=1)
    finetune(continued, data=data, out=tmp_path / "run", show=False, **train)
    assert same(state(continued), state(whole))


def test_a_second_ctrl_c_stops_at_once(images: Path) -> None:
    model = scratch(pico_shape(depth=2))
    calls: list[int] = []

    def twice(*_: object) -> None:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    model.register_forward_hook(twice)
    with pytest.raises(KeyboardInterrupt) as stop:
        finetune(model, data={"source": str(images), "workers": 0}, show=False, **FAST)
    assert not isinstance(stop.value, InterruptedRun)
    assert len(calls) == 1


def test_signals_are_ours_only_while_training(images: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    tuned(images, epochs=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_killed_run_goes_on_from_its_last_saved_epoch(images: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    data, train = {"source": str(images), "workers": 0}, {**HARD, "epochs": 3}
    whole, _ = tuned(images, **train)
    killed = scratch(pico_shape(depth=2), seed=1)
    steps: list[int] = []

    def kill(*_: object) -> None:
        steps.append(torch.is_grad_enabled())
        if sum(steps) == 8:
            raise KilledError

    killed.register_forward_hook(kill)
    with pytest.raises(KilledError):
        finetune(killed, data=data, out=tmp_path / "run", show=False, **train)
    continued = scratch(pico_shape(depth=2), seed=1)
    finetune(continued, data=data, out=tmp_path / "run", show=False, **train)
    assert same(state(continued), state(whole))
    assert [line["epoch"] for line in history(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("save_every", [1, 2])
def test_epochs_that_are_trained_again_are_logged_once(save_every: int, images: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    data, train = {"source": str(images), "workers": 0}, {**FAST, "epochs": 4, "save_every": save_every}
    killed = scratch(pico_shape(depth=2), seed=1)
    steps: list[int] = []

    def kill(*_: object) -> None:
        steps.append(torch.is_grad_enabled())
        if sum(steps) == 11:
            raise KilledError

    killed.register_forward_hook(kill)
    with pytest.raises(KilledError):
        finetune(killed, data=data, out=tmp_path / "run", show=False, **train)
    continued = scratch(pico_shape(depth=2), seed=1)
    finetune(continued, data=data, out=tmp_path / "run", show=False, **train)
    assert [line["epoch"] for line in history(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**FAST, "lr": 0.5}}, "holds a run with train.lr=0.003, but this one has train.lr=0.5"),
        ({"train": {**FAST, "epochs": 3}}, "train.epochs=2, but this one has train.epochs=3"),
        ({"train": {**FAST, "seed": 3}}, "train.seed=0, but this one has train.seed=3"),
        ({"method": "sws", "settings": {"stages": [4]}}, "is a gene of tleg; choose another out"),
        ({"shape": pico_shape(depth=3).to_dict()}, "shape.depth=4, but this one has shape.depth=3"),
        ({"distill": {"preset": "tleg-paper"}}, "but this one has distill."),
        ({"dtype": "float16"}, "dtype=float32, but this one has dtype=float16"),
    ],
    ids=str,
)
def test_another_recipe_in_the_same_folder_is_refused(
    changes: dict[str, Any], message: str, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(LearngeneError, match=message):
        condensed(tmp_path / "run", images, Ancestry(ancestry_folder), **changes)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_a_run_is_not_continued_on_other_images(images: Path, tmp_path: Path, stop_after: Any) -> None:
    train = {**FAST, "batch_size": 4}
    mine = shutil.copytree(images, tmp_path / "images")
    data = {"source": str(mine), "workers": 0}
    stopped = scratch(pico_shape(depth=2), seed=1)
    stop_after(stopped, 2)
    with pytest.raises(InterruptedRun):
        finetune(stopped, data=data, out=tmp_path / "run", show=False, **train)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    one = next((mine / "train" / "red").iterdir())
    other = one.rename(one.with_name("other.png"))
    with pytest.raises(LearngeneError, match="run holds a run on other training images; choose another out"):
        finetune(scratch(pico_shape(depth=2), seed=1), data=data, out=tmp_path / "run", show=False, **train)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    other.rename(one)
    finetune(scratch(pico_shape(depth=2), seed=1), data=data, out=tmp_path / "run", show=False, **train)


def test_what_does_not_change_the_result_may_change(
    images: Path, ancestry_folder: Path, tmp_path: Path, stop_after: Any
) -> None:
    whole = condensed(None, images, Ancestry(ancestry_folder), train=MIXED)
    interrupted = Ancestry(ancestry_folder)
    stop_after(interrupted, 3)
    with pytest.raises(InterruptedRun):
        condensed(tmp_path / "run", images, interrupted, train=MIXED)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    data = {"source": str(images), "workers": 1}
    continued = condensed(moved, images, Ancestry(ancestry_folder), data=data, train={**MIXED, "save_every": 2})
    assert same(state(continued), state(whole))


@pytest.mark.parametrize(
    "spoil",
    [lambda content: content[:1000], lambda content: b"", lambda content: b"hello", lambda content: content[:-1]],
    ids=["cut", "empty", "text", "last byte"],
)
def test_a_damaged_state_is_refused_and_left_alone(
    spoil: Callable[[bytes], bytes], images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder))
    path = tmp_path / "run" / "last.pt"
    path.write_bytes(spoil(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(
        LearngeneError, match=r"last.pt: the saved state is damaged .* delete it to start this run again"
    ):
        condensed(tmp_path / "run", images, Ancestry(ancestry_folder))
    assert path.read_bytes() == damaged


def test_a_state_of_another_model_is_refused(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder))
    path = tmp_path / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["module"].pop("pos_embed")
    torch.save(saved, path)
    with pytest.raises(LearngeneError, match="the saved state does not fit this run"):
        condensed(tmp_path / "run", images, Ancestry(ancestry_folder))


def test_running_a_finished_run_again_changes_nothing(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder), train=HARD)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and "tfevents" not in path.name]
    before = {path: path.read_bytes() for path in files}
    assert {path.name for path in files} >= {
        "recipe.yaml",
        "metrics.jsonl",
        "last.pt",
        "run.safetensors",
        "result.json",
    }
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder), train=HARD)
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_the_run_folder_holds_the_best_state(images: Path, tmp_path: Path) -> None:
    data = {"source": str(images), "workers": 0}
    model = scratch(pico_shape(depth=2), seed=1)
    result = finetune(model, data=data, out=tmp_path / "run", show=False, **{**FAST, "epochs": 4})
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    progress = json.loads(best["progress"])
    assert progress["best"] == result.best
    assert progress["history"][-1]["top1"] == result.best
    tops = [entry["top1"] for entry in result.history]
    assert progress["epoch"] == 1 + tops.index(max(tops))


def test_the_result_is_recorded_once(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder))
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["error"] is None
    assert record["recipe"]["method"] == "tleg"
    assert (record["cost"]["updates"], record["cost"]["images"]) == (6, 48)
    assert record["metrics"]["history"][-1]["top1"] == record["metrics"]["final"]["top1"]
    assert record["data"]["train_images"] == 24
