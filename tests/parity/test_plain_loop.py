"""The training loop against forty lines of plain PyTorch: the same images, rates and steps give the same weights."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

import learngene
from learngene import Ancestry, finetune, scratch
from learngene.genes.gene import Learngene
from learngene.methods import method
from pico import FAST, pico_shape

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
EPOCHS, STEPS, LR, MIN_LR, WARMUP_LR, DECAY = 4, 3, 3e-3, 1e-5, 1e-6, 0.05
TRAIN: dict[str, Any] = {**FAST, "epochs": EPOCHS, "weight_decay": DECAY}


def everything(folder: Path) -> tuple[Tensor, Tensor]:
    """All training images, normalised, with their labels, in sorted order."""
    paths = sorted((folder / "train").glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in paths])
    return (pixels - MEAN) / STD, torch.tensor([classes.index(path.parent.name) for path in paths])


def cosine(t: float, total: float, warmup: float) -> float:
    if t < warmup:
        return WARMUP_LR + t * (LR - WARMUP_LR) / warmup
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * t / total)) / 2


def rate(stepping: str, warmup: int, epoch: int, step: int) -> float:
    if stepping == "step":
        return cosine(epoch * STEPS + step, EPOCHS * STEPS, warmup * STEPS)
    return cosine(max(0, epoch - 1) if stepping == "official" else epoch, EPOCHS, warmup)


def plain_loop(
    parameters: dict[str, Tensor],
    loss_of: Any,
    folder: Path,
    *,
    stepping: str = "step",
    warmup: int = 0,
    clip: float | None = None,
    ema: float | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Trains ``parameters`` in place; returns their exponential average if asked for."""
    decayed = [p for name, p in parameters.items() if p.ndim > 1 and name != "pos_embed"]
    others = [p for name, p in parameters.items() if p.ndim <= 1 or name == "pos_embed"]
    optimizer = torch.optim.AdamW([{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}])
    average = [p.detach().clone() for p in parameters.values()]
    images, labels = everything(folder)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([1, seed, epoch]).permutation(len(images))
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = rate(stepping, warmup, epoch, step)
            chosen = order[8 * step : 8 * (step + 1)]
            optimizer.zero_grad()
            loss_of(images[chosen], labels[chosen]).backward()
            if clip:
                nn.utils.clip_grad_norm_(parameters.values(), clip)
            optimizer.step()
            if ema:
                keep = ema if epoch + step else 0.0  # timm's average starts as a copy of the first step
                average = [
                    keep * a + (1 - keep) * p.detach() for a, p in zip(average, parameters.values(), strict=True)
                ]
    return average


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"schedule": {"warmup_epochs": 2}}, {"warmup": 2}),
        ({"schedule": {"warmup_epochs": 2, "stepping": "epoch"}}, {"warmup": 2, "stepping": "epoch"}),
        ({"schedule": {"warmup_epochs": 2, "stepping": "official"}}, {"warmup": 2, "stepping": "official"}),
        ({"clip_grad": 0.05}, {"clip": 0.05}),
        ({"ema_decay": 0.8}, {"ema": 0.8}),
        ({"seed": 5}, {"seed": 5}),
    ],
    ids=str,
)
def test_finetuning_is_the_plain_loop(ours: dict[str, Any], theirs: dict[str, Any], images: Path) -> None:
    model = scratch(pico_shape(), seed=2)
    plain = VisionTransformer(**pico_shape().timm_kwargs())
    plain.load_state_dict(model.state_dict())
    start = copy.deepcopy(model.state_dict())
    result = finetune(model, data={"source": str(images), "workers": 0}, show=False, **{**TRAIN, **ours})
    average = plain_loop(
        dict(plain.named_parameters()), lambda x, y: nn.functional.cross_entropy(plain(x), y), images, **theirs
    )
    close(model.state_dict(), plain.state_dict())
    assert (model.state_dict()["blocks.0.mlp.fc1.weight"] - start["blocks.0.mlp.fc1.weight"]).abs().max() > 1e-4
    assert (result.updates, result.images) == (EPOCHS * STEPS, 8 * EPOCHS * STEPS)
    if "ema" in theirs:
        assert result.averaged is not None
        names = dict(plain.named_parameters())
        close(dict(result.averaged.named_parameters()), dict(zip(names, average, strict=True)))


@pytest.mark.parametrize("name", ["tleg", "sws"])
def test_condensing_is_the_plain_loop(name: str, images: Path, ancestry_folder: Path) -> None:
    settings = {"stages": (1, 3)} if name == "sws" else {}
    gene = learngene.condense(
        Ancestry(ancestry_folder),
        method=name,
        settings=settings,
        shape=pico_shape(),
        data={"source": str(images), "workers": 0},
        show=False,
        **TRAIN,
        seed=7,
    )
    start = Learngene(method(name, settings), pico_shape(), seed=7)
    own = {key: value.detach().clone().requires_grad_() for key, value in start.tensors().items()}
    teacher = timm.create_model(f"local-dir:{ancestry_folder}", pretrained=True).eval()
    student = VisionTransformer(**pico_shape().timm_kwargs())
    stage_of = [0, 1, 1, 1]

    def layer(i: int, key: str) -> Tensor:
        if name == "sws":
            return own[f"stage{stage_of[i]}.{key}"]
        return own[f"B.{key}"] + i / 4 * own[f"A.{key}"]

    def loss_of(x: Tensor, _labels: Tensor) -> Tensor:
        weights = {
            key: layer(int(key.split(".")[1]), key.split(".", 2)[2]) if key.startswith("blocks.") else own[key]
            for key in student.state_dict()
        }
        log_s = functional_call(student, weights, (x,)).log_softmax(-1)
        with torch.no_grad():
            log_t = teacher(x).log_softmax(-1)
        return (log_t.exp() * (log_t - log_s)).sum() / log_s.numel()

    plain_loop(own, loss_of, images, seed=7)
    close(gene.tensors(), own)
    assert not torch.equal(gene.tensors()["head.weight"], start.tensors()["head.weight"])


def rates(images: Path, **train: Any) -> list[float]:
    model = scratch(pico_shape(depth=1))
    result = finetune(model, data={"source": str(images), "workers": 0}, show=False, **{**FAST, "lr": 5e-4, **train})
    return [entry["lr"] for entry in result.history]


def test_the_official_schedule_lags_one_epoch(images: Path) -> None:
    """Epochs 0 and 1 both run at the warm-up's first rate, as in the authors' loop; the last never reaches the end."""
    found = rates(images, epochs=8, schedule={"warmup_epochs": 5, "stepping": "official"})
    warm = [1e-6, 1e-6, 1.008e-4, 2.006e-4, 3.004e-4, 4.002e-4]
    tail = [1e-5 + (5e-4 - 1e-5) * (1 + math.cos(math.pi * t / 8)) / 2 for t in (5, 6)]
    assert found == pytest.approx(warm + tail, rel=1e-6)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.5])
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("stepping", ["step", "epoch"])
def test_a_polynomial_schedule(stepping: str, warmup: int, power: float, images: Path) -> None:
    """lr (1 - t/T)^power, seen at the last of the three steps of every epoch; a warm-up takes its first part."""
    epochs, lr = 5, 5e-4
    schedule = {"kind": "poly", "power": power, "warmup_epochs": warmup, "min_lr": 0, "stepping": stepping}
    found = rates(images, epochs=epochs, batch_size=8, schedule=schedule)
    expected = []
    for epoch in range(epochs):
        t = epoch + 2 / 3 if stepping == "step" else epoch
        expected.append(1e-6 + (lr - 1e-6) * t / warmup if t < warmup else lr * (1 - t / epochs) ** power)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_polynomial_schedule_ends_at_its_lowest_rate(images: Path) -> None:
    """And its power is 0.9 unless told otherwise."""
    schedule = {"kind": "poly", "warmup_epochs": 0, "min_lr": 1e-5, "stepping": "epoch"}
    found = rates(images, epochs=4, schedule=schedule)
    assert found == pytest.approx([1e-5 + 4.9e-4 * (1 - t / 4) ** 0.9 for t in range(4)], rel=1e-6)


def test_the_official_schedule_without_warm_up_runs_at_full_rate_twice(images: Path) -> None:
    found = rates(images, epochs=3, schedule={"warmup_epochs": 0, "stepping": "official"})
    assert found == pytest.approx([5e-4, 5e-4, 1e-5 + 4.9e-4 * (1 + math.cos(math.pi / 3)) / 2], rel=1e-6)


def test_the_rate_is_scaled_with_the_batch_and_the_ends_are_not(images: Path) -> None:
    found = rates(images, epochs=3, lr_batch=4, schedule={"warmup_epochs": 1, "stepping": "epoch"})
    assert found[0] == pytest.approx(1e-6)
    assert found[1] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi / 3)) / 2)
