"""Numbers that only a slip can produce are refused at once instead of filling the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from learngene.methods import method
from learngene.recipe.loading import build_recipe
from learngene.system.errors import GeneFileError, LearngeneError, RecipeError, ShapeError
from learngene.training.run_folder import RunFolder
from learngene.vits.shape import MAX_DEPTH, ViTShape
from pico import pico_gene


@pytest.mark.parametrize(
    "fields", [{"depth": 2_000_000_000}, {"img_size": 160_000}, {"embed_dim": 10**12 + 1, "num_heads": 7}]
)
def test_a_shape_that_no_memory_holds_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="typing error"):
        ViTShape(**fields)
    assert ViTShape(depth=MAX_DEPTH).depth == MAX_DEPTH


def test_the_seed_of_a_random_assignment_must_be_an_integer() -> None:
    with pytest.raises(ShapeError, match="assign_seed must be an integer, not 'x'"):
        method("sws", {"stages": (1, 1)}).refuse(ViTShape(depth=2), ViTShape(depth=3), assign="random", assign_seed="x")


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_recipe_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(RecipeError, match=r"train\.seed"):
        build_recipe({"kind": "finetune", "model": "x", "data": {"source": "digits"}, "train": {"seed": seed}})


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("train", {"lr": float("inf")}),
        ("train", {"betas": [2, 3]}),
        ("train", {"augment": {"scale": [0, 0]}}),
        ("train", {"augment": {"scale": [0.9, 0.1]}}),
        ("train", {"augment": {"ratio": [-1, 1]}}),
        ("data", {"source": "digits", "std": [0, 0, 0]}),
        ("data", {"source": "digits", "std": [float("nan"), 1, 1]}),
        ("data", {"source": "digits", "interpolation": "foo"}),
    ],
)
def test_values_that_train_to_nonsense_are_refused_when_the_recipe_is_read(
    section: str, value: dict[str, object]
) -> None:
    fields = {"kind": "finetune", "model": "x", "data": {"source": "digits"}, section: value}
    with pytest.raises(RecipeError):
        build_recipe(fields)


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


@pytest.mark.parametrize(
    ("key", "value"),
    [("ancestry", "x"), ("ancestry", {"sha256": 5}), ("accuracy", {"top1": "a"}), ("data", {"source": [1]})],
)
def test_metadata_of_the_wrong_type_is_refused(tmp_path: Path, key: str, value: object) -> None:
    gene = pico_gene()
    gene.metadata[key] = value
    with pytest.raises(GeneFileError, match=key):
        gene.save(tmp_path / "gene.safetensors")
    assert not (tmp_path / "gene.safetensors").exists()
