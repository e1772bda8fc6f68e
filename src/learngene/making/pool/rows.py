"""What is decided about a pool's rows before anything is trained: at which blocks, and under which key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learngene.methods import method as find_method
from learngene.methods.stitching import rows_of
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.pool import PoolSpec
from learngene.system.errors import LearngeneError
from learngene.vits.shape import ViTShape

DENSE, END, LABELS = 3, 1, 0
"""Points of distillation: at thirds of the depth, at the last block, at none."""


def distilled_blocks(depth: int, points: int) -> list[int]:
    """The blocks of a model that are compared, counted from 1: the last of each level (section "Dense Distillation").

    Args:
        depth: Of the model. With 6 blocks and 3 points these are 2, 4 and 6; of an ancestry of 12, 4, 8 and 12.
        points: 3 for all three levels, 2 for the upper two, 1 for the last block, 0 for none.

    Raises:
        LearngeneError: If the model is too shallow to have levels.
    """
    if points > 1 and depth < DENSE:
        raise LearngeneError(f"pool.points: {points} points need 3 blocks or more, not {depth}; use 1 point")
    return [round(level * depth / DENSE) for level in range(DENSE + 1 - points, DENSE + 1)]


def pool_of(recipe: CondenseRecipe) -> PoolSpec:
    """The pool section, which every recipe of a method with rows has."""
    assert recipe.pool is not None
    return recipe.pool


def points_of(recipe: CondenseRecipe, ancestry_width: int) -> int:
    """At how many points a row is distilled: as its recipe says, else the paper's choice by width (Table 4)."""
    row, given = recipe.shape, pool_of(recipe).points
    if given is not None:
        return given[0]
    return END if row.embed_dim == ancestry_width or row.depth < DENSE else DENSE


def row_shapes(recipe: CondenseRecipe) -> list[ViTShape]:
    """Every row of a pool recipe as a whole model."""
    return rows_of(find_method(recipe.method, recipe.settings)).row_shapes(recipe.shape)


def path_recipe(recipe: CondenseRecipe) -> CondenseRecipe | None:
    """The part of a pool's recipe that tunes its paths, with a run folder of its own; None if they stay untuned."""
    train = recipe.path_train()
    return None if train is None else recipe.model_copy(update={"train": train, "out": recipe.out / "paths"})


def stage_recipes(recipe: CondenseRecipe) -> list[CondenseRecipe]:
    """The recipe of every stage that is trained, in order, each with its run folder."""
    paths = path_recipe(recipe)
    return row_recipes(recipe) + ([paths] if paths else [])


def row_recipes(recipe: CondenseRecipe) -> list[CondenseRecipe]:
    """The recipe of every row that is distilled; an SN-Net's rows are its anchors."""
    return [] if recipe.anchors else [row_recipe(recipe, index) for index in range(len(row_shapes(recipe)))]


def row_recipe(recipe: CondenseRecipe, index: int) -> CondenseRecipe:
    """The part of a pool's recipe that decides one of its rows.

    Its run folder is named by a hash of that part, so that pools which differ only in what comes later, or in other
    rows, share the row.
    """
    row, pool = row_shapes(recipe)[index], pool_of(recipe)
    points = None if pool.points is None else [pool.points[index]]
    reduced = PoolSpec(
        points=points,
        terms=sorted(pool.terms),
        transform_bias=pool.transform_bias,
        learn_equal_width=pool.learn_equal_width,
        tune=None,
    )
    train, ancestry = recipe.row_train(), recipe.ancestry
    # Mean and std are the ancestry's, which a recipe may say or leave open.
    data = recipe.data.model_copy(update={"mean": None, "std": None})
    parts: list[Any] = [row.to_dict(), reduced, train, data, recipe.distill]
    if ancestry is not None:
        source = "/".join(Path(ancestry.source).parts[-2:])
        parts.append([source, ancestry.architecture, ancestry.model_args, ancestry.pretrained])
    out = (pool.kept or recipe.out) / f"row-w{row.embed_dim}d{row.depth}-s{train.seed}-{short_hash(parts)}"
    changes = {
        "dtype": "float32",  # of the gene file, which is nothing to a row
        "shape": row,
        "settings": {"row": row.embed_dim},
        "pool": reduced,
        "train": train,
        "out": out,
    }
    return recipe.model_copy(update=changes)
