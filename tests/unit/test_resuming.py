"""A run that was stopped, killed or repeated is the run that was not."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comparisons import contents
from learngene import Ancestry, finetune, save_descendant, scratch
from learngene.recipe.loading import build_recipe
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.training.run_folder import RunFolder
from learngene.training.stage import TrainResult
from pico import FAST, MIXED, pico_shape
from runs import HARD, condensed, metrics, same, state, tuned

# -- stopping and going on ---------------------------------------------------------------------------------


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, int], None]:
    """Makes a training step of a model end as nothing that is expected does."""

    def arrange(model: nn.Module, step: int) -> None:
        steps: list[bool] = []

        def kill(*_: object) -> None:
            steps.append(torch.is_grad_enabled())
            if sum(steps) == step:
                raise KilledError

        model.register_forward_hook(kill)

    return arrange


class KilledError(Exception):
    pass


def fresh() -> nn.Module:
    return scratch(pico_shape(depth=2), seed=1)


def run(model: nn.Module, images: Path, out: Path, train: dict[str, Any]) -> TrainResult:
    return finetune(model, data={"source": str(images), "workers": 0}, out=out, show=False, **train)


TRAINS = {"fp32": HARD, "parts": {**HARD, "micro_batch": 4, "precision": "bf16"}, "long": {**HARD, "epochs": 4}}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, tuple[nn.Module, TrainResult, Path]]:
    """Runs that nothing stopped: model, result and folder; read only."""
    out, folder = {}, tmp_path_factory.mktemp("wholes")
    for name, train in TRAINS.items():
        model = fresh()
        out[name] = model, run(model, images, folder / name, train), folder / name
    return out


@pytest.mark.parametrize(
    ("train", "step", "number", "where"),
    [
        ("fp32", 1, signal.SIGINT, "epoch 1, step 1"),
        ("fp32", 3, signal.SIGTERM, "epoch 1, step 3"),
        ("fp32", 6, signal.SIGINT, "epoch 2, step 3"),
        ("parts", 2, signal.SIGTERM, "epoch 1, step 2"),
        ("parts", 5, signal.SIGINT, "epoch 2, step 2"),
    ],
)
def test_a_stopped_and_continued_run_is_bit_for_bit_the_run_that_was_not(
    train: str, step: int, number: int, where: str, wholes: Any, images: Path, tmp_path: Path, stop_after: Any
) -> None:
    whole, expected, folder = wholes[train]
    stopped, continued = fresh(), fresh()
    # A step runs forward once per accumulated part.
    stop_after(stopped, step * (2 if train == "parts" else 1), number)
    with pytest.raises(InterruptedRun) as stop:
        run(stopped, images, tmp_path / "stopped", TRAINS[train])
    assert (stop.value.where, stop.value.signal_number) == (where, number)
    assert not (tmp_path / "stopped" / "descendant").exists()
    found = run(continued, images, tmp_path / "stopped", TRAINS[train])
    assert same(state(continued), state(whole))
    assert expected.averaged is not None
    assert found.averaged is not None
    assert same(state(found.averaged), state(expected.averaged))
    assert found.final == expected.final
    assert metrics(tmp_path / "stopped") == metrics(folder)
    assert (found.updates, found.images) == (expected.updates, expected.images)


def test_a_run_whose_folder_is_removed_makes_it_again_and_goes_on(
    wholes: Any, images: Path, tmp_path: Path, stop_after: Any
) -> None:
    """Removed in the first step of the second epoch, stopped in the second one."""
    whole, expected, _ = wholes["fp32"]
    out, stopped = tmp_path / "run", fresh()
    seen: list[bool] = []

    def remove(*_: object) -> None:
        seen.append(torch.is_grad_enabled())
        if sum(seen) == 4 and seen[-1]:
            shutil.rmtree(out)

    stopped.register_forward_hook(remove)
    stop_after(stopped, 5)
    with pytest.raises(InterruptedRun):
        run(stopped, images, out, TRAINS["fp32"])
    assert [entry["epoch"] for entry in metrics(out)] == [1]
    continued = fresh()
    result = run(continued, images, out, TRAINS["fp32"])
    assert same(state(continued), state(whole))
    assert result.final == expected.final
    assert [entry["epoch"] for entry in metrics(out)] == [1, 2]


def test_a_scaled_run_goes_on_with_its_scale(images: Path, tmp_path: Path, stop_after: Any) -> None:
    train = {**FAST, "precision": "fp16"}
    whole, _ = tuned(images, **train)
    stopped, continued = fresh(), fresh()
    stop_after(stopped, 4)
    with pytest.raises(InterruptedRun):
        run(stopped, images, tmp_path / "run", train)
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["scaler"]["scale"] == 65536.0
    assert saved["scaler"]["_growth_tracker"] == 4
    run(continued, images, tmp_path / "run", train)
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


@pytest.mark.parametrize(("save_every", "step"), [(1, 8), (2, 11)])
def test_a_killed_run_goes_on_from_its_last_saved_epoch_and_logs_every_epoch_once(
    save_every: int, step: int, wholes: Any, images: Path, tmp_path: Path, kill_after: Any
) -> None:
    train = {**TRAINS["long"], "save_every": save_every}
    whole, killed, continued = wholes["long"][0], fresh(), fresh()
    kill_after(killed, step)
    with pytest.raises(KilledError):
        run(killed, images, tmp_path / "run", train)
    run(continued, images, tmp_path / "run", train)
    assert same(state(continued), state(whole))
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path, ancestry_folder: Path) -> Path:
    """The folder around a finished run; read only."""
    folder = tmp_path_factory.mktemp("finished")
    condensed(folder / "run", images, Ancestry(ancestry_folder))
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoiled."""
    return shutil.copytree(finished, tmp_path / "place")


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
    changes: dict[str, Any], message: str, images: Path, ancestry_folder: Path, place: Path
) -> None:
    before = contents(place)
    with pytest.raises(LearngeneError, match=message):
        condensed(place / "run", images, Ancestry(ancestry_folder), **changes)
    assert contents(place) == before


def test_a_finished_run_of_fewer_epochs_is_told_how_to_go_on(images: Path, tmp_path: Path) -> None:
    model = fresh()
    run(model, images, tmp_path, FAST)
    done = tmp_path / "descendant"
    save_descendant(model, done)
    with pytest.raises(
        LearngeneError, match=r"train.epochs=2, but .*=3; choose .*; to train .* from it: --model "
    ) as told:
        run(fresh(), images, tmp_path, {**FAST, "epochs": 3})
    assert str(told.value).endswith(f"--model {done}")


def test_a_run_is_not_continued_on_other_images(images: Path, tmp_path: Path, stop_after: Any) -> None:
    train, stopped = {**FAST, "batch_size": 4}, fresh()
    mine = shutil.copytree(images, tmp_path / "images")
    stop_after(stopped, 2)
    with pytest.raises(InterruptedRun):
        run(stopped, mine, tmp_path / "run", train)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    one = next((mine / "train" / "red").iterdir())
    other = one.rename(one.with_name("other.png"))
    with pytest.raises(LearngeneError, match="run holds a run on other training images; choose another out"):
        run(fresh(), mine, tmp_path / "run", train)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    other.rename(one)
    run(fresh(), mine, tmp_path / "run", train)


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
    spoil: Callable[[bytes], bytes], images: Path, ancestry_folder: Path, place: Path
) -> None:
    path = place / "run" / "last.pt"
    path.write_bytes(spoil(path.read_bytes()))
    damaged = path.read_bytes()
    message = r"last.pt: the saved state is damaged .* delete it to start this run again"
    with pytest.raises(LearngeneError, match=message):
        condensed(place / "run", images, Ancestry(ancestry_folder))
    assert path.read_bytes() == damaged


def test_a_state_of_another_model_is_refused(images: Path, ancestry_folder: Path, place: Path) -> None:
    path = place / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["module"].pop("pos_embed")
    torch.save(saved, path)
    with pytest.raises(LearngeneError, match="the saved state does not fit this run"):
        condensed(place / "run", images, Ancestry(ancestry_folder))


def test_running_a_finished_run_again_changes_nothing(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder), train=HARD)
    before = {name: was for name, (was, _) in contents(tmp_path).items() if "tfevents" not in name}
    run_files = {f"run/{name}" for name in ("recipe.yaml", "metrics.jsonl", "last.pt", "result.json")}
    assert before.keys() >= {"run.safetensors", *run_files}
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder), train=HARD)
    after = {name: was for name, (was, _) in contents(tmp_path).items()}
    assert before.items() <= after.items()


def test_the_run_folder_holds_the_best_state(images: Path, tmp_path: Path) -> None:
    result = run(fresh(), images, tmp_path / "run", {**FAST, "epochs": 4})
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    progress = json.loads(best["progress"])
    assert progress["best"] == result.best
    assert progress["history"][-1]["top1"] == result.best
    tops = [entry["top1"] for entry in result.history]
    assert progress["epoch"] == 1 + tops.index(max(tops))


def test_the_result_is_recorded_once(finished: Path) -> None:
    record = json.loads((finished / "run" / "result.json").read_text())
    assert record["error"] is None
    assert record["recipe"]["method"] == "tleg"
    assert (record["cost"]["updates"], record["cost"]["images"]) == (6, 48)
    assert record["metrics"]["history"][-1]["top1"] == record["metrics"]["final"]["top1"]
    assert record["data"]["train_images"] == 24


def test_a_run_folder_serves_one_run_at_a_time(tmp_path: Path) -> None:
    recipe = build_recipe({"kind": "finetune", "model": "x", "data": {"source": "digits"}})
    first, second = RunFolder(tmp_path / "run", recipe), RunFolder(tmp_path / "run", recipe)
    first.begin([])
    with pytest.raises(LearngeneError, match="in use by another run"):
        second.begin([])
    first.release()
    second.begin([])
    assert (tmp_path / "run" / "recipe.yaml").exists()
    second.release()


def test_what_a_killed_run_left_half_written_goes_when_it_goes_on(images: Path, ancestry: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    condensed(run, images, Ancestry(ancestry), train={**FAST, "epochs": 1})
    gene = tmp_path / "run.safetensors"
    gene.unlink()
    left = [run / ".last.pt.0123abcd.tmp", run / ".descendant.0123abcd.old", tmp_path / ".run.safetensors.89abcdef.tmp"]
    left[1].mkdir()
    for path in (left[0], left[1] / "config.json", left[2], tmp_path / ".other.safetensors.89abcdef.tmp"):
        path.write_text("half")
    condensed(run, images, Ancestry(ancestry), train={**FAST, "epochs": 1})
    assert gene.exists()
    assert [path for path in left if path.exists()] == []
    assert (tmp_path / ".other.safetensors.89abcdef.tmp").exists()
