"""Frozen features judged by ``eval --knn`` and ``--linear``: of descendants, genes and timm models, headless too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from learngene import evaluate, finetune, probe, save_descendant, scratch, segment
from learngene.system.errors import LearngeneError
from pico import CLI, make_images, pico_gene, pico_shape
from runs import same, state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descendant without a head; read only."""
    path = tmp_path_factory.mktemp("headless") / "model"
    save_descendant(scratch(pico_shape(num_classes=0, depth=2), seed=1), path)
    return path


def test_knn_is_the_vote_of_the_nearest_training_images(images: Path) -> None:
    model = scratch(pico_shape(depth=2), seed=1)
    before = state(model)
    found = probe(model, str(images), linear=True, seeds=2)
    # The colours are far apart, even for random weights; 8 images of each class vote.
    assert found.knn == 100.0
    assert found.linear is not None
    assert found.linear.top1 > 90
    assert len(found.linear.seeds) == 2
    assert (found.train_images, found.images) == (24, 12)
    assert same(before, state(model))
    model.reset_classifier(0)
    assert probe(model, str(images)).knn == found.knn  # the head does not count


def test_every_kind_of_model_can_be_probed(cli: CLI, folder: Path, images: Path, tmp_path: Path) -> None:
    gene = tmp_path / "gene.safetensors"
    pico_gene(num_classes=0).save(gene)
    assert probe(timm.create_model("test_vit", num_classes=0), {"source": str(images), "img_size": 32}).images == 12
    for model, flags in ((folder, []), (gene, ["--depth", 3])):
        done = cli("eval", model, "--data", images, "--knn", "--json", *flags)
        assert done.code == 0, done.err
        assert json.loads(done.out)["knn"] > 30
    told = cli("eval", folder, "--data", images, "--knn", "--linear").out
    assert "kNN " in told
    assert "linear " in told
    assert "12 images by 24 training images" in told


def test_a_model_agrees_with_itself_on_who_resembles_whom(cli: CLI, folder: Path, images: Path, tmp_path: Path) -> None:
    done = cli("eval", folder, "--data", images, "--teacher", folder, "--json")
    assert json.loads(done.out)["neighbours"] == 100.0
    assert json.loads(done.out)["knn"] is None
    save_descendant(scratch(pico_shape(num_classes=0, depth=2, patch_size=2), seed=7), tmp_path / "other")
    told = cli("eval", folder, "--data", images, "--knn", "--teacher", tmp_path / "other")
    assert f"neighbours in common with {tmp_path / 'other'}" in told.out
    assert "other: sees images of 8 x 8 px" in told.err
    pico_gene().save(tmp_path / "gene.safetensors")
    told = cli("eval", folder, "--data", images, "--teacher", tmp_path / "gene.safetensors")
    assert told.err.startswith(f"learngene: --teacher: {tmp_path / 'gene.safetensors'}: a gene file, not a model")


def test_the_training_split_can_be_judged_too(folder: Path, images: Path) -> None:
    assert probe(scratch(pico_shape(depth=2)), str(images), split="train").images == 24


def test_what_cannot_be_probed_is_refused(
    refused: Callable[..., str], folder: Path, images: Path, tmp_path: Path
) -> None:
    few = make_images(tmp_path / "few", train=1)
    line = refused("eval", folder, "--data", few, "--knn")
    assert "class blue has 1 training image; kNN and linear probes need two or more" in line
    model: Any = scratch(pico_shape(depth=2))
    with pytest.raises(LearngeneError, match="unknown split"):
        probe(model, str(images), split="test")
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(LearngeneError, match="not finite"):
        probe(model, str(images))
    with pytest.raises(LearngeneError, match="segmentation head"):
        probe(segment(scratch(pico_shape(depth=2)), 2), str(images))
    with pytest.raises(LearngeneError, match="no head for classes; judge its features with eval --knn, --linear"):
        evaluate(scratch(pico_shape(depth=2, num_classes=0)), str(images))


def test_neighbours_need_no_classes(cli: CLI, folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for name, count in (("train", 3), ("val", 9), ("few/train", 3), ("few/val", 4)):
        (flat / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (25 * number, 250 - 25 * number, 90)).save(flat / name / f"{number}.png")
    done = cli("eval", folder, "--data", flat, "--teacher", folder)
    assert f"neighbours in common with {folder} 100.00 % (of 2 nearest), 9 images\n" in done.out, done.err
    with pytest.raises(LearngeneError, match="4 val images; neighbours in common need 5 or more"):
        probe(folder, str(flat / "few"), knn=False, teacher=folder)
    found = probe(folder, str(flat), knn=False, teacher=str(folder))
    assert (found.neighbours, found.nearest, found.train_images) == (100.0, 2, 3)


def test_models_may_be_paths_in_python_too(images: Path, folder: Path, tmp_path: Path) -> None:
    save_descendant(scratch(pico_shape(num_classes=3, depth=1), seed=1), tmp_path / "model")
    assert evaluate(tmp_path / "model", str(images)).images == 12
    for call, model, message in (
        (evaluate, pico_gene(), "expand it first"),
        (probe, 3, "needs a timm model, not int"),
        (lambda model, data: finetune(model, data=data), str(folder), "load_descendant"),
    ):
        with pytest.raises(LearngeneError, match=message):
            call(model, str(images))
