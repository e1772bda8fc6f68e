"""The papers' recipes at their real shapes: two steps on four small pictures, with a random LeViT-384 as teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import learngene
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import load_recipe
from pico import CLI, make_images

pytestmark = pytest.mark.slow

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
TWO_STEPS = ["train.epochs=1", "train.batch_size=2", "train.schedule.warmup_epochs=0", "data.workers=0"]
TWO_CLASSES = ["shape.num_classes=2", "ancestry.model_args={num_classes: 2}", "ancestry.pretrained=false"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("pictures"), train=2, val=1, size=40, classes=("blue", "red"))


def test_an_auxiliary_recipe_takes_two_steps(cli: CLI, pictures: Path, tmp_path: Path) -> None:
    recipe = PAPER / "tleg" / "aux-ti.yaml"
    given = [f"data.source={pictures}", f"out={tmp_path / 'gene'}", *TWO_STEPS, *TWO_CLASSES]
    result = cli("condense", recipe, *given)
    assert result.code == 0, result.err
    gene = learngene.load(tmp_path / "gene.safetensors")
    loaded = load_recipe(recipe, given)
    assert isinstance(loaded, CondenseRecipe)
    assert gene.shape == loaded.shape
    assert gene.metadata["training"]["updates"] == 2
    assert gene.metadata["ancestry"]["name"] == "levit_384"
    assert sum(parameter.numel() for parameter in gene.parameters()) == 1_075_778
    start = Learngene(gene.method, gene.shape, seed=0).tensors()
    moved = [name for name, value in gene.tensors().items() if not torch.equal(value, start[name])]
    assert {"patch_embed.proj.weight", "head.weight", next(n for n in start if n.endswith("mlp.fc1.weight"))} <= set(
        moved
    )


def test_a_descendant_recipe_takes_two_steps(cli: CLI, pictures: Path, tmp_path: Path) -> None:
    gene = Learngene(method("sws"), learngene.ViTShape.named("deit_small_patch16_224", depth=16))
    gene.save(tmp_path / "gene.safetensors", dtype="float16")
    given: list[Any] = [f"model={tmp_path / 'gene.safetensors'}", f"data.source={pictures}", f"out={tmp_path / 'run'}"]
    result = cli("finetune", PAPER / "sws" / "des-s-06.yaml", *given, *TWO_STEPS)
    assert result.code == 0, result.err
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'descendant'}", pretrained=True)
    assert len(model.blocks) == 6
    small = gene.shape.replace(depth=6, num_classes=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == small.params()
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["cost"]["updates"] == 2
    assert record["recipe"]["train"]["drop_path"] == 0.1
