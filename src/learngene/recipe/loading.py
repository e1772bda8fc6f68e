"""Recipes: everything a run needs to know, as pydantic models that YAML, flags and Python all build.

A recipe is read with ``load_recipe``; its parts are described in ``sections.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from learngene.recipe.compare import CompareRecipe
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.genes import GenesRecipe, genes_recipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.search import SearchRecipe, TaskSearch
from learngene.recipe.sections import Section, merge
from learngene.recipe.ship import ShipRecipe
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import RecipeError, nearest

DATA_FOLDER = "$DATA"
"""What stands in recipes for a folder of image sets that the command line gives."""
Recipe = CondenseRecipe | GenesRecipe | FinetuneRecipe | CompareRecipe | SearchRecipe | TuneRecipe | ShipRecipe
TrainingRecipe = CondenseRecipe | FinetuneRecipe | TaskSearch | TuneRecipe
"""One that trains one thing in one run folder."""
KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(Recipe) if kind is not GenesRecipe}


def load_recipe(path: str | Path, overrides: Sequence[str] = (), data: Path | None = None) -> Recipe:
    """Reads a YAML recipe, applies ``key.sub=value`` overrides and validates it.

    Args:
        path: The recipe. Its ``extends: other.yaml`` entry, if any, names a recipe beside it to build on.
        overrides: Assignments whose values are YAML: ``train.epochs=5``, ``settings.stages=[2,2]``.
        data: The folder that the recipe calls ``$DATA``, if it does.

    Raises:
        RecipeError: If the file, a key or a value is wrong; the message names the place and the nearest right key.
    """
    return build_recipe(with_data(read_fields(path, overrides), data), where=str(path))


def read_fields(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a YAML recipe with what it extends and ``key.sub=value`` overrides, not yet validated."""
    return apply_overrides(_read_yaml(Path(path), seen=()), overrides)


def with_data(fields: Any, data: Path | None) -> Any:
    """Fields with every ``$DATA`` replaced by a folder, so that recipes do not say where images lie."""
    if isinstance(fields, Mapping):
        return {key: with_data(value, data) for key, value in fields.items()}
    if isinstance(fields, list):
        return [with_data(value, data) for value in fields]
    if isinstance(fields, str) and DATA_FOLDER in fields:
        if data is None:
            raise RecipeError(f"the recipe reads '{fields}'; say where that folder is with --data FOLDER")
        return fields.replace(DATA_FOLDER, str(data))
    return fields


def apply_overrides(fields: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Fields with ``key.sub=value`` assignments applied; values are YAML."""
    out = merge(fields, {})
    for assignment in overrides:
        key, sign, value = assignment.partition("=")
        if not sign or not key:
            raise RecipeError(f"override '{assignment}' is not of the form key.sub=value")
        nested = _parse_value(value, assignment)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def build_recipe(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values, as YAML gives them; ``kind`` says which, and ``where`` is what errors call it."""
    kind = fields.get("kind", "condense" if {"method", "genes"} & fields.keys() else "finetune")
    if kind not in list(KINDS):  # a list, as what is given need not be hashable
        raise RecipeError(f"{where}: unknown kind '{kind}'{nearest(str(kind), KINDS)}")
    if kind == "condense" and "genes" in fields:
        return genes_recipe(fields, where)
    built: Recipe = validated(KINDS[kind], fields, where)
    return built


def dump_recipe(recipe: Section) -> str:
    """The whole resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself keeps the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, known = key.start_mark.line + 1, (key.tag, key.value)
            if known in seen:
                where = f"line {line}" if seen[known] == line else f"lines {seen[known]} and {line}"
                raise RecipeError(f"key '{key.value}' is given twice, in {where}; leave one out")
            seen[known] = line
        return node


def load_yaml(text: str) -> Any:
    """Plain values from YAML; a key that is given twice is refused by a ``RecipeError`` without a file's name."""
    return yaml.load(text, Loader=_Loader)


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RecipeError(f"{path}: extends itself")
    try:
        fields = load_yaml(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    base = fields.pop("extends", None)
    if not isinstance(base, str | None):
        raise RecipeError(f"{path}: extends must name one recipe, not {base!r}")
    return merge(_read_yaml(path.parent / base, (*seen, path)), fields) if base else fields


def _parse_value(text: str, assignment: str) -> Any:
    try:
        value = load_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"override '{assignment}': {error}") from None
    except yaml.YAMLError:
        raise RecipeError(f"override '{assignment}': the value is not valid YAML") from None
    try:  # YAML 1.1 reads 1e-3 as text; people who type a learning rate mean the number.
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
