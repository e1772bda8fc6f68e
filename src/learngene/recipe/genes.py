"""The recipe of several genes that are trained in one pass: what they share, and what each has of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from learngene.methods import method
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import Section, merge
from learngene.system.errors import RecipeError, refuse_unknown

OWN = ("method", "settings", "shape", "shapes", "depths", "distill", "features", "hyper", "train", "out", "dtype")
"""What a gene may have of its own; all else is the same for all of them."""

OUT = "runs/genes"
SHAPE = ("img_size", "in_chans")
TRAIN = ("seed", "epochs", "batch_size", "micro_batch", "precision")


class GenesRecipe(Section):
    """One ancestry and data to several gene files."""

    kind: Literal["condense"] = "condense"
    genes: dict[str, CondenseRecipe]


def genes_recipe(fields: Mapping[str, Any], where: str) -> GenesRecipe:
    """The recipe of several genes from plain values.

    Args:
        fields: A condense recipe with ``genes``, names to what is said of each beside the rest or instead of it. Its
            ``out`` is the folder of their run folders.
        where: What errors call it.

    Raises:
        RecipeError: If the recipe of one is wrong, or they cannot share a pass.
    """
    given = fields["genes"]
    if not isinstance(given, Mapping) or not any(own is not None for own in given.values()):
        raise RecipeError(f"{where}: genes: give a mapping from names to what each gene has of its own")
    shared = {key: value for key, value in fields.items() if key not in ("genes", "out")}
    folder = fields.get("out") or OUT
    if not isinstance(folder, str | Path):
        raise RecipeError(f"{where}: out: must be the path of a folder, not {folder!r}")
    out: dict[str, CondenseRecipe] = {}
    for name, own in ((str(name), own) for name, own in given.items() if own is not None):
        place = f"{where}: genes.{name}"
        if not isinstance(own, Mapping):
            raise RecipeError(f"{place}: give a mapping of what this gene has of its own, not {own!r}")
        if name in ("", ".", "..") or Path(name).name != name:
            raise RecipeError(f"{place}: its run folder is named so; use a name without / and other than ..")
        if name in out:
            raise RecipeError(f"{place}: is named twice, as a number and as text; choose another name")
        refuse_unknown(own, OWN, place)
        out[name] = validated(CondenseRecipe, merge({**shared, "out": str(Path(folder) / name)}, own), place)
        kind = out[name].method
        if method(kind).making == "pool":
            raise RecipeError(f"{place}.method: the rows of {kind} are a pass of their own; condense it alone")
        if twin := next((other for other in out if other != name and _written(out[other]) & _written(out[name])), None):
            raise RecipeError(f"{place}.out: {out[name].out} is that of genes.{twin}, or its gene file; choose another")
    try:
        refuse_apart(out)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return GenesRecipe(genes=out)


def _written(recipe: CondenseRecipe) -> set[str]:
    """Run folder and gene file."""
    out = os.path.abspath(recipe.out)
    return {out, f"{out}.safetensors"}


def refuse_apart(recipes: Mapping[str, CondenseRecipe]) -> None:
    """Raises ``RecipeError`` for the first thing in which genes differ that decides what their pass shows them."""
    (first, one), *others = recipes.items()
    for name, other in others:
        theirs = seen_views(one)
        for key, value in seen_views(other).items():
            if value != theirs[key]:
                raise RecipeError(
                    f"genes.{name}: {key} is {value}, but {theirs[key]} in genes.{first}; genes of one pass see the "
                    "same images, so condense it alone"
                )


def seen_views(recipe: CondenseRecipe) -> dict[str, Any]:
    """By setting: what decides the views of a run, and in which precision teachers are asked about them."""
    train, augment = recipe.train, recipe.train.augment.model_dump(exclude={"preset"})
    return {
        **{f"data.{name}": value for name, value in recipe.images.model_dump().items()},
        **{f"shape.{name}": getattr(recipe.shape, name) for name in SHAPE},
        **{f"train.{name}": getattr(train, name) for name in TRAIN},
        **{f"train.augment.{name}": value for name, value in augment.items()},
        "distill.replay": recipe.distill.replay,
    }
