"""From the arguments of a Python call to the recipe that a command would read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.one_line_faults import SectionType, validated
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError
from learngene.vits.timm_models import TimmModel

Data = str | list[str] | Mapping[str, Any]
"""Where images are, or the fields of a whole data section."""


def recipe_of(kind: type[SectionType], **fields: Any) -> SectionType:
    """A recipe whose entries are the arguments that are not None.

    Raises:
        RecipeError: One line, as for a recipe in a file.
    """
    return validated(kind, {name: value for name, value in fields.items() if value is not None}, "recipe")


def data_fields(data: Data) -> Any:
    """The fields of a data section from a bare source or from its fields."""
    return data if isinstance(data, Mapping) else {"source": data}


def data_section(data: Data | DataSpec) -> DataSpec:
    """A data section, with the one-line errors of a recipe."""
    if isinstance(data, DataSpec):
        return data
    return recipe_of(FinetuneRecipe, model="in memory", data=data_fields(data)).data


def ancestry_fields(ancestry: Ancestry | str | Path | None) -> dict[str, str] | None:
    """The ancestry section for a model that is loaded, or named."""
    if ancestry is None:
        return None
    return {"source": str(ancestry.identity["source"] if isinstance(ancestry, Ancestry) else ancestry)}


def loaded(ancestry: Ancestry | str | Path | None) -> Ancestry | None:
    """The ancestry, if it is in memory already."""
    return ancestry if isinstance(ancestry, Ancestry) else None


def model_of(call: str, model: object) -> TimmModel:
    """A model in memory, or the one that a folder, a checkpoint file of known architecture or timm's name stands for.

    Raises:
        LearngeneError: If it is none of these.
    """
    if isinstance(model, (str, Path)):
        return Ancestry(model).model
    return refuse_other(call, model.model if isinstance(model, Ancestry) else model)


def refuse_other(call: str, model: object) -> TimmModel:
    """The model, unless it is a gene or no model at all, which raises ``LearngeneError``."""
    if isinstance(model, Learngene):
        raise LearngeneError(f"{call}: a gene is no model yet; expand it first: gene.expand(depth)")
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise LearngeneError(f"{call}: needs a timm model, not {kind}; load_descendant(path) loads one from its folder")
    return model


def require_mapping(call: str, **arguments: Any) -> None:
    """Raises ``LearngeneError`` for an argument that is not a mapping from names of data sets."""
    for name, value in arguments.items():
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise LearngeneError(f"{call}: {name} must be a mapping from names of data sets, not {kind}")
