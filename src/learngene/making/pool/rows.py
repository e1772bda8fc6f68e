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

    3 points are all three levels, 2 the upper two, 1 is the last block, 0 none. Of 6 blocks, 3 points are 2, 4 and 6;
    of an ancestry's 12, they are 4, 8 and 12.
    """
    if points > 1 and depth < DENSE:
        raise LearngeneError(f"pool.points: {points} points need 3 blocks or more, not {depth}; use 1 point")
    return [round(level * depth / DENSE) for level in range(DENSE + 1 - points, DENSE + 1)]


def pool_of(recipe: CondenseRecipe) -> PoolSpec:
    """The pool section, which every recipe of a method with rows has."""
    assert recipe.pool is not None
    return recipe.pool


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
    reduced = PoolSpec(
        points=None if pool.points is None else [pool.points[index]],
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
        parts += [ancestry.own_weights] if ancestry.own_weights else []
    if recipe.distill.target == "features":
        parts += [recipe.feature_targets(), [[each.source, each.features] for each in recipe.teachers or ()]]
    changes = {
        "dtype": "float32",  # of the gene file, which is nothing to a row
        "shape": row,
        "settings": {"row": row.embed_dim},
        "pool": reduced,
        "train": train,
        "out": (pool.kept or recipe.out) / f"row-w{row.embed_dim}d{row.depth}-s{train.seed}-{short_hash(parts)}",
    }
    return recipe.model_copy(update=changes)
