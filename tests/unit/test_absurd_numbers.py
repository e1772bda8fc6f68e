"""Numbers that only a slip can produce are refused at once instead of filling the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from learngene.errors import LearngeneError, RecipeError, ShapeError
from learngene.methods import method
from learngene.recipe import build_recipe
from learngene.shape import MAX_DEPTH, ViTShape
from pico import CLI, pico_gene


@pytest.mark.parametrize("fields", [{"depth": 2_000_000_000}, {"img_size": 160_000}])
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
    "flags", [("--seed", "9" * 30), ("--layers", "1-999999999"), ("--depth", "2000000000"), ("--img-size", "160000")]
)
def test_the_command_line_refuses_them_in_one_line(cli: CLI, tmp_path: Path, flags: tuple[str, str]) -> None:
    pico_gene().save(tmp_path / "gene.safetensors")
    result = cli("expand", tmp_path / "gene.safetensors", *flags, "--out", tmp_path / "out")
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert issubclass(ShapeError, LearngeneError)
