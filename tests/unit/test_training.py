"""The training loop: every option does what it says, and a run that was stopped is the run that was not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

import learngene
from learngene import Ancestry, finetune, scratch
from learngene.ancestry import weights_sha256
from learngene.condensing import run as run_condense
from learngene.errors import LearngeneError, TrainingDivergedError
from learngene.gene import Learngene
from learngene.measure import accuracy
from learngene.recipe import CondenseRecipe, build_recipe
from learngene.train.loop import InterruptedRun, TrainResult, set_drop_path
from pico import FAST, MIXED, batch, condense_fields, pico_shape

# Plain momentum: Adam turns gradients that are zero up to rounding (of the keys' biases) into steps of full size.
SGD: dict[str, Any] = {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.0}
HARD: dict[str, Any] = {**MIXED, "drop_path": 0.2, "ema_decay": 0.7, "clip_grad": 1.0, "epochs": 2}
"""Everything that draws random numbers or keeps a state."""


def tuned(images: Path, **train: Any) -> tuple[nn.Module, TrainResult]:
    model = scratch(pico_shape(depth=2), seed=1)
    result = finetune(model, data={"source": str(images), "workers": 0}, show=False, **{**FAST, **train})
    return model, result


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def losses(result: TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history]


# -- what a run is -----------------------------------------------------------------------------------------


def test_a_run_learns_and_says_what_it_did(images: Path) -> None:
    model, result = tuned(images, epochs=6)
    assert result.final.top1 > 90
    assert result.best_top1 >= result.final.top1
    assert losses(result) == sorted(losses(result), reverse=True)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4, 5, 6]
    assert (result.updates, result.images, result.final.images) == (18, 144, 12)
    assert set(result.history[0]) >= {"epochs", "loss", "lr", "images_per_second", "top1", "top5", "val_loss"}
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("train", [FAST, HARD], ids=["plain", "everything"])
def test_the_same_seed_is_the_same_run(train: dict[str, Any], images: Path) -> None:
    torch.manual_seed(11)
    one, first = tuned(images, **train)
    torch.manual_seed(22)
    other, second = tuned(images, **train)
    assert same(state(one), state(other))
    assert losses(first) == losses(second)
    assert not same(state(one), state(tuned(images, **{**train, "seed": 1})[0]))


def test_a_run_leaves_the_callers_randomness_alone(images: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tuned(images, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_may_be_rare_but_the_last_epoch_is_always_judged(images: Path) -> None:
    _, result = tuned(images, epochs=5, eval_every=2)
    assert ["top1" in entry for entry in result.history] == [False, True, False, True, True]


def test_accuracy_counts_images_not_batches() -> None:
    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, logits: Tensor) -> Tensor:
            return logits

    model = Shows().train()
    logits = torch.eye(7)[[0, 1, 2, 3]] * 5
    score = accuracy(model, [(logits[:3], torch.tensor([0, 1, 6])), (logits[3:], torch.tensor([3]))])
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 6, 3])).item()
    assert (score.top1, score.images) == (75.0, 4)
    assert score.loss == pytest.approx(expected)
    assert model.training
    assert accuracy(model, [(logits[:, :2], torch.tensor([0, 1, 0, 0]))]).top5 == 100.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_accuracy_can_be_measured_in_half_precision(precision: str, images: Path) -> None:
    model, _ = tuned(images)
    full, half = (learngene.evaluate(model, str(images), precision=p) for p in ("fp32", precision))
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert full.images == half.images == 12


# -- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("train", [FAST, MIXED], ids=["plain", "mixed"])
def test_accumulated_gradients_are_the_whole_batchs(micro: int, train: dict[str, Any], images: Path) -> None:
    whole, expected = tuned(images, **{**train, **SGD})
    parts, found = tuned(images, **{**train, **SGD, "micro_batch": micro})
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    for key, value in state(parts).items():
        torch.testing.assert_close(value, state(whole)[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("clip", "step"), [(0.01, 0.01), (1e6, None)])
def test_clipping_limits_the_length_of_a_step(clip: float, step: float | None, images: Path) -> None:
    before = state(scratch(pico_shape(depth=2), seed=1))
    model, _ = tuned(images, **{**SGD, "lr": 1.0, "epochs": 1, "batch_size": 24, "clip_grad": clip})
    length = torch.cat([(value - before[key]).flatten() for key, value in state(model).items()]).norm().item()
    if step is None:
        assert length > 0.1
    else:
        assert length == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_full_precision_weights(precision: str, images: Path) -> None:
    _, full = tuned(images)
    model, half = tuned(images, precision=precision)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)


@pytest.mark.parametrize("use", [False, True])
def test_the_average_is_kept_if_asked_for(use: bool, images: Path) -> None:
    model, result = tuned(images, ema_decay=0.7, use_ema=use)
    assert result.averaged is not None
    assert same(state(model), state(result.averaged)) == use
    plain, _ = tuned(images)
    assert same(state(model), state(plain)) != use


def test_layers_can_learn_at_their_own_rates(images: Path) -> None:
    def moved(**train: Any) -> list[float]:
        before = state(scratch(pico_shape(depth=2), seed=1))
        model, _ = tuned(images, **{**FAST, "epochs": 1, "batch_size": 24, "weight_decay": 0.0, **train})
        keys = ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "head.weight")
        return [(state(model)[key] - before[key]).abs().median().item() for key in keys]

    even, graded = moved(), moved(layer_decay=0.5)
    assert even == pytest.approx([FAST["lr"]] * 3, rel=0.05)
    assert graded == pytest.approx([FAST["lr"] * rate for rate in (0.25, 0.5, 1)], rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "lion", "adafactor"])
def test_any_optimizer_of_timm_trains(optimizer: str, images: Path) -> None:
    before = state(scratch(pico_shape(depth=2), seed=1))
    model, result = tuned(images, epochs=1, optimizer=optimizer)
    assert not same(state(model), before)
    assert all(value.isfinite().all() for value in state(model).values())
    assert result.updates == 3


def test_an_unknown_optimizer_is_refused(images: Path) -> None:
    with pytest.raises(LearngeneError, match="unknown optimizer 'adamx'; did you mean 'adam"):
        tuned(images, optimizer="adamx")


def test_dropped_paths_rise_linearly_and_are_gone_afterwards(images: Path) -> None:
    model = scratch(pico_shape(depth=5))
    set_drop_path(model, 0.2)
    assert isinstance(model.blocks[0].drop_path1, nn.Identity)
    found = [block.drop_path2.drop_prob for block in model.blocks[1:]]
    assert found == pytest.approx([0.05, 0.1, 0.15, 0.2])
    set_drop_path(model, 0.0)
    assert not any(isinstance(module, DropPath) for module in model.modules())
    trained, result = tuned(images, drop_path=0.5)
    assert not any(isinstance(module, DropPath) for module in trained.modules())
    assert losses(result) != losses(tuned(images)[1])


def test_paths_of_other_models_cannot_be_dropped() -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    with pytest.raises(LearngeneError, match=r"train.drop_path 0.1: ResNet is not a timm ViT"):
        set_drop_path(model, 0.1)
    assert set_drop_path(model, 0.0) is None


# -- condensing --------------------------------------------------------------------------------------------


def condensed(out: Path | None, images: Path, ancestry: Any, **changes: Any) -> Learngene:
    fields = condense_fields("in memory", images, out or Path("unused"), **changes)
    recipe = build_recipe(fields)
    assert isinstance(recipe, CondenseRecipe)
    return run_condense(recipe, ancestry=ancestry, keep=out is not None, show=False).gene


@pytest.mark.parametrize("settings", [{}, {"first_layer": 2}], ids=str)
def test_the_linear_constraint_holds_after_training(
    settings: dict[str, Any], images: Path, ancestry_folder: Path
) -> None:
    gene = condensed(None, images, Ancestry(ancestry_folder), settings=settings, train=HARD)
    start = Learngene(gene.method, gene.shape)
    assert all((gene.tensors()[key] - value).abs().max() > 1e-4 for key, value in start.tensors().items())
    weights = gene.weights()
    first = settings.get("first_layer", 1) - 1
    for name in gene.shape.layer_params():
        layers = torch.stack([weights[f"blocks.{i}.{name}"] for i in range(first, 4)])
        torch.testing.assert_close(layers.diff(dim=0, n=2), torch.zeros_like(layers[2:]), atol=1e-6, rtol=0)


def test_repeats_of_a_stage_stay_one_layer_after_training(images: Path, ancestry_folder: Path) -> None:
    gene = condensed(None, images, Ancestry(ancestry_folder), method="sws", settings={"stages": [1, 3]}, train=HARD)
    state_ = gene.expand().state_dict()
    for name in gene.shape.layer_params():
        assert torch.equal(state_[f"blocks.1.{name}"], state_[f"blocks.3.{name}"])
    assert not torch.equal(state_["blocks.0.mlp.fc1.weight"], state_["blocks.1.mlp.fc1.weight"])


def test_the_auxiliary_model_is_the_descendant_after_training(images: Path, ancestry_folder: Path) -> None:
    gene = condensed(None, images, Ancestry(ancestry_folder), train=HARD)
    x = batch(gene.shape, 5)
    assert torch.equal(gene.eval()(x), gene.expand()(x))


def test_the_teacher_sees_the_very_images_of_the_student(
    images: Path, ancestry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed, erased and normalised alike, as in the authors' code."""
    ancestry, seen = Ancestry(ancestry_folder), {"teacher": [], "student": []}
    ancestry.register_forward_hook(lambda _module, inputs, _out: seen["teacher"].append(inputs[0].clone()))
    forward = Learngene.forward

    def student(self: Learngene, x: Tensor) -> Tensor:
        if self.training:
            seen["student"].append(x.clone())
        return forward(self, x)

    monkeypatch.setattr(Learngene, "forward", student)
    condensed(None, images, ancestry, train=MIXED)
    assert len(seen["student"]) == 6
    pairs = zip(seen["student"], seen["teacher"][1:], strict=True)  # the teacher's first call checks the image size
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("distill", ["tleg-paper", {"preset": "tleg-paper", "alpha": 0.9}])
def test_condensing_from_python_takes_a_preset_or_a_section(distill: Any, images: Path, ancestry_folder: Path) -> None:
    arguments: dict[str, Any] = {"shape": pico_shape(), "data": {"source": str(images), "workers": 0}, "show": False}
    gene = learngene.condense(ancestry_folder, method="tleg", distill=distill, **arguments, **FAST)
    found = gene.metadata["training"]["recipe"]["distill"]
    assert (found["preset"], found["alpha"]) == ("tleg-paper", 0.5 if isinstance(distill, str) else 0.9)
    with pytest.raises(LearngeneError, match="distill: unknown preset 'tleg-papr'; did you mean 'tleg-paper'"):
        learngene.condense(ancestry_folder, method="tleg", distill="tleg-papr", **arguments, **FAST)


def test_the_ancestry_is_not_touched(images: Path, ancestry_folder: Path) -> None:
    ancestry = Ancestry(ancestry_folder)
    before = weights_sha256(ancestry.model)
    condensed(None, images, ancestry, train=HARD)
    assert weights_sha256(ancestry.model) == before
    assert not ancestry.model.training


def test_the_published_alpha_never_sees_labels_and_alpha_zero_never_asks_the_teacher(
    images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    ancestry = Ancestry(ancestry_folder)
    calls: list[int] = []
    ancestry.register_forward_hook(lambda *_: calls.append(1))
    condensed(None, images, ancestry, distill={"preset": "none"})
    assert len(calls) == 1  # the check of the image size
    condensed(None, images, ancestry)
    assert len(calls) == 2 + 6


def test_a_gene_says_where_it_comes_from(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    ancestry = Ancestry(ancestry_folder)
    condensed(tmp_path / "run", images, ancestry, train={**FAST, "seed": 3})
    meta = learngene.load(tmp_path / "run.safetensors").metadata
    assert meta["ancestry"] == ancestry.identity
    assert meta["classes"] == ["blue", "green", "red"]
    assert meta["preprocessing"]["mean"] == ancestry.preprocessing["mean"]
    assert meta["preprocessing"]["crop_pct"] == 1.0
    assert (meta["data"]["train_images"], meta["data"]["val_images"]) == (24, 12)
    training = meta["training"]
    assert (training["epochs"], training["seed"], training["updates"], training["images"]) == (2, 3, 6, 48)
    assert training["recipe"]["distill"]["preset"] == "tleg-official"
    assert 0 <= meta["accuracy"]["top1"] <= 100
    assert {"learngene", "torch", "timm"} <= set(meta["versions"])


def test_the_averaged_gene_is_kept_if_asked_for(images: Path, ancestry_folder: Path) -> None:
    train = {**FAST, "ema_decay": 0.7}
    raw, averaged = (
        condensed(None, images, Ancestry(ancestry_folder), train={**train, "use_ema": use}) for use in (False, True)
    )
    assert not same(state(raw), state(averaged))
    assert same(state(raw), state(condensed(None, images, Ancestry(ancestry_folder))))


def test_layer_decay_is_refused_where_there_are_no_layers(images: Path, ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match="layer_decay is for fine-tuning"):
        condensed(None, images, Ancestry(ancestry_folder), train={**FAST, "layer_decay": 0.5})


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
        ({"method": "sws", "settings": {"stages": [4]}}, "but this one has"),
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
    assert progress["best"] == result.best_top1
    assert progress["history"][-1]["top1"] == result.best_top1
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


# -- diverging ---------------------------------------------------------------------------------------------


def poisoned(model: nn.Module, step: int) -> nn.Module:
    """A model whose logits are not finite from a training step on."""
    seen: list[int] = []

    def poison(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return logits * float("nan") if sum(seen) >= step and torch.is_grad_enabled() else logits

    model.register_forward_hook(poison)
    return model


@pytest.mark.parametrize(("step", "where"), [(1, "epoch 1, step 1"), (5, "epoch 2, step 2"), (6, "epoch 2, step 3")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(
    step: int, where: str, images: Path, tmp_path: Path
) -> None:
    data, train = {"source": str(images), "workers": 0}, {**HARD, "epochs": 3}
    whole, _ = tuned(images, **train)
    model = poisoned(scratch(pico_shape(depth=2), seed=1), step)
    with pytest.raises(TrainingDivergedError, match=f"the loss became nan in {where}") as error:
        finetune(model, data=data, out=tmp_path / "run", show=False, **train)
    assert len(str(error.value).splitlines()) == 1
    assert ("last good state is in" in str(error.value)) == (step > 3)
    assert all(value.isfinite().all() for value in state(model).values())
    assert not (tmp_path / "run" / "descendant").exists()
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["error"] == str(error.value)
    mended = scratch(pico_shape(depth=2), seed=1)
    finetune(mended, data=data, out=tmp_path / "run", show=False, **train)
    assert same(state(mended), state(whole))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["error"] is None


def test_a_rate_that_is_far_too_high_is_named(images: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"the loss became \S+ in epoch \d+, step \d+; lower train.lr"):
        tuned(images, lr=1e30)


def test_losses_of_an_epoch_are_averaged_over_its_steps(images: Path) -> None:
    _, coarse = tuned(images, **{**SGD, "lr": 1e-12, "schedule": {"warmup_epochs": 0, "min_lr": 0}})
    for one, other in pairwise(losses(coarse)):
        assert one == pytest.approx(other, rel=1e-4)
