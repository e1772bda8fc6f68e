"""The training loop: every option does what it says, and a run that was stopped is the run that was not."""

import json
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
from learngene.genes.ancestry import weights_sha256
from learngene.genes.gene import Learngene
from learngene.system.errors import LearngeneError, TrainingDivergedError
from learngene.training.scores import accuracy
from learngene.training.stage import TrainResult, set_drop_path
from pico import FAST, MIXED, batch, pico_shape
from runs import HARD, SGD, condensed, losses, metrics, same, state, tuned


@pytest.fixture(scope="module")
def plain(images: Path) -> tuple[nn.Module, TrainResult]:
    """A run without any option; read only."""
    return tuned(images)


@pytest.fixture(scope="module")
def hard(images: Path, ancestry_folder: Path) -> tuple[Learngene, str, Ancestry]:
    """A gene that was condensed with every option, its ancestry, and the hash of the ancestry's weights before."""
    ancestry = Ancestry(ancestry_folder)
    before = weights_sha256(ancestry.model)
    return condensed(None, images, ancestry, train=HARD), before, ancestry


# -- what a run is -----------------------------------------------------------------------------------------


def test_a_run_learns_and_says_what_it_did(images: Path) -> None:
    model, result = tuned(images, epochs=6)
    assert result.final.top1 > 90
    assert result.best >= result.final.top1
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
def test_accuracy_can_be_measured_in_half_precision(precision: str, plain: Any, images: Path) -> None:
    model, _ = plain
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
def test_half_precision_keeps_full_precision_weights(precision: str, plain: Any, images: Path) -> None:
    _, full = plain
    model, half = tuned(images, precision=precision)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)


@pytest.mark.parametrize("use", [False, True])
def test_the_average_is_kept_if_asked_for(use: bool, plain: Any, images: Path) -> None:
    model, result = tuned(images, ema_decay=0.7, use_ema=use)
    assert result.averaged is not None
    assert same(state(model), state(result.averaged)) == use
    assert same(state(model), state(plain[0])) != use


def test_layers_can_learn_at_their_own_rates(images: Path) -> None:
    before = state(scratch(pico_shape(depth=2), seed=1))

    def moved(**train: Any) -> list[float]:
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


def test_dropped_paths_rise_linearly_and_are_gone_afterwards(plain: Any, images: Path) -> None:
    model = scratch(pico_shape(depth=5))
    set_drop_path(model, 0.2)
    assert isinstance(model.blocks[0].drop_path1, nn.Identity)
    found = [block.drop_path2.drop_prob for block in model.blocks[1:]]
    assert found == pytest.approx([0.05, 0.1, 0.15, 0.2])
    set_drop_path(model, 0.0)
    assert not any(isinstance(module, DropPath) for module in model.modules())
    trained, result = tuned(images, drop_path=0.5)
    assert not any(isinstance(module, DropPath) for module in trained.modules())
    assert losses(result) != losses(plain[1])


def test_paths_of_other_models_cannot_be_dropped() -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    with pytest.raises(LearngeneError, match=r"train.drop_path 0.1: ResNet is not a timm ViT"):
        set_drop_path(model, 0.1)
    assert set_drop_path(model, 0.0) is None


# -- condensing --------------------------------------------------------------------------------------------


def layers_are_linear(gene: Learngene, first: int) -> None:
    start, weights = Learngene(gene.method, gene.shape), gene.weights()
    assert all((gene.tensors()[key] - value).abs().max() > 1e-4 for key, value in start.tensors().items())
    for name in gene.shape.layer_params():
        layers = torch.stack([weights[f"blocks.{i}.{name}"] for i in range(first, 4)])
        torch.testing.assert_close(layers.diff(dim=0, n=2), torch.zeros_like(layers[2:]), atol=1e-6, rtol=0)


def test_training_keeps_the_linear_constraint_the_descendant_and_the_ancestry(hard: Any) -> None:
    gene, before, ancestry = hard
    layers_are_linear(gene, 0)
    x = batch(gene.shape, 5)
    assert torch.equal(gene.eval()(x), gene.expand()(x))
    assert weights_sha256(ancestry.model) == before
    assert not ancestry.model.training


def test_the_linear_constraint_may_begin_later(images: Path, ancestry_folder: Path) -> None:
    gene = condensed(None, images, Ancestry(ancestry_folder), settings={"first_layer": 2}, train=HARD)
    layers_are_linear(gene, 1)
    weights = gene.weights()
    first, second, third = (weights[f"blocks.{i}.mlp.fc1.weight"] for i in range(3))
    assert (third - 2 * second + first).abs().max() > 1e-4  # the first layer is on no line with them


def test_repeats_of_a_stage_stay_one_layer_after_training(images: Path, ancestry_folder: Path) -> None:
    gene = condensed(None, images, Ancestry(ancestry_folder), method="sws", settings={"stages": [1, 3]}, train=HARD)
    state_ = gene.expand().state_dict()
    for name in gene.shape.layer_params():
        assert torch.equal(state_[f"blocks.1.{name}"], state_[f"blocks.3.{name}"])
    assert not torch.equal(state_["blocks.0.mlp.fc1.weight"], state_["blocks.1.mlp.fc1.weight"])


def test_the_teacher_sees_the_very_images_of_the_student(
    images: Path, ancestry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed, erased and normalised alike, as in the authors' code."""
    ancestry, seen = Ancestry(ancestry_folder), {"teacher": [], "student": []}
    ancestry.register_forward_hook(lambda _module, inputs, _out: seen["teacher"].append(inputs[0].clone()))
    forward = Learngene.forward

    def student(self: Learngene, x: Tensor, shape: Any = None) -> Tensor:
        if self.training:
            seen["student"].append(x.clone())
        return forward(self, x, shape)

    monkeypatch.setattr(Learngene, "forward", student)
    condensed(None, images, ancestry, train=MIXED)
    assert len(seen["student"]) == 6
    pairs = zip(seen["student"], seen["teacher"][1:], strict=True)  # the teacher's first call checks the image size
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("distill", "alpha"), [("tleg-paper", 0.5), ({"preset": "tleg-paper", "alpha": 0.9}, 0.9)])
def test_condensing_from_python_takes_a_preset_or_a_section(
    distill: Any, alpha: float, images: Path, ancestry_folder: Path
) -> None:
    arguments: dict[str, Any] = {"shape": pico_shape(), "data": {"source": str(images), "workers": 0}, "show": False}
    arguments |= {**FAST, "epochs": 1}
    gene = learngene.condense(ancestry_folder, method="tleg", distill=distill, **arguments)
    found = gene.metadata["training"]["recipe"]["distill"]
    assert (found["preset"], found["alpha"]) == ("tleg-paper", alpha)
    with pytest.raises(LearngeneError, match="distill: unknown preset 'tleg-papr'; did you mean 'tleg-paper'"):
        learngene.condense(ancestry_folder, method="tleg", distill="tleg-papr", **arguments)


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
    data = {"source": str(images), "workers": 0}
    model, mended = poisoned(scratch(pico_shape(depth=2), seed=1), step), scratch(pico_shape(depth=2), seed=1)
    with pytest.raises(TrainingDivergedError, match=f"the loss became nan in {where}") as error:
        finetune(model, data=data, out=tmp_path / "run", show=False, **HARD)
    assert len(str(error.value).splitlines()) == 1
    assert ("last good state is in" in str(error.value)) == (step > 3)
    assert all(value.isfinite().all() for value in state(model).values())
    assert not (tmp_path / "run" / "descendant").exists()
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["error"] == str(error.value)
    finetune(mended, data=data, out=tmp_path / "run", show=False, **HARD)
    assert same(state(mended), state(tuned(images, **HARD)[0]))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["error"] is None


def test_a_training_that_diverges_says_what_to_lower(images: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"the loss became \S+ in epoch \d+, step \d+; lower train.lr"):
        tuned(images, lr=1e30)


@pytest.mark.parametrize("kind", ["cosine", "poly"])
@pytest.mark.parametrize("stepping", ["step", "epoch", "official"])
def test_a_run_of_one_step_is_at_its_full_rate_and_needs_no_warning(
    kind: str, stepping: str, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {"kind": kind, "stepping": stepping, "warmup_epochs": 0}
    _, result = tuned(images, epochs=1, batch_size=24, schedule=schedule)
    assert (result.updates, result.history[0]["lr"]) == (1, FAST["lr"])
    assert caplog.messages == []


def test_losses_of_an_epoch_are_averaged_over_its_steps(images: Path) -> None:
    _, coarse = tuned(images, **{**SGD, "lr": 1e-12, "schedule": {"warmup_epochs": 0, "min_lr": 0}})
    for one, other in pairwise(losses(coarse)):
        assert one == pytest.approx(other, rel=1e-4)


def test_parts_of_a_loss_are_logged_and_add_up(plain: Any, images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    train: dict[str, Any] = {**FAST, "micro_batch": 4}
    condensed(tmp_path / "run", images, Ancestry(ancestry_folder), distill={"alpha": 0.25}, train=train)
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2
    for entry in lines:
        assert entry["distill"] > 0
        assert entry["loss"] == pytest.approx(0.25 * entry["distill"] + 0.75 * entry["labels"], rel=1e-6)
    assert not {"labels", "distill"} & plain[1].history[0].keys()
