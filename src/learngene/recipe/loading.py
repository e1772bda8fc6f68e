"""Recipes: everything a run needs to know, as pydantic models that YAML, flags and Python all build.

A recipe is read with ``load_recipe``; its parts are described in ``sections.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import yaml
from pydantic import Field, model_validator

from learngene.methods import method
from learngene.methods.stitching import Rows
from learngene.methods.tal import Hypernetwork
from learngene.recipe.hyper import HomeHyper, home_hyper
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import (
    AncestrySpec,
    AuxiliaryShape,
    DataSpec,
    Distill,
    PoolSpec,
    Section,
    ShapeChanges,
    Train,
    merge,
)
from learngene.system.errors import RecipeError, nearest

if TYPE_CHECKING:
    from learngene.recipe.compare import CompareRecipe
    from learngene.recipe.search import SearchRecipe, TaskSearch
    from learngene.recipe.tune import TuneRecipe

DATA_FOLDER = "$DATA"
"""What stands in recipes for a folder of image sets that the command line gives."""


ROW_FIELDS = ("points", "terms", "transform_bias", "learn_equal_width", "rows", "kept")
"""Entries of a pool section that concern the training of rows."""


class CondenseRecipe(Section):
    """Ancestry and data to a gene file."""

    kind: Literal["condense"] = "condense"
    method: str = Field(description="a method whose gene is trained, see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings, see `learngene methods`")
    ancestry: AncestrySpec | None = Field(None, description="the teacher; not needed when distill.alpha is 0")
    shape: AuxiliaryShape = Field(description="the auxiliary shape: a name, or a mapping of ViTShape's fields")
    data: DataSpec
    train: Train = Train()
    distill: Distill = Distill()
    pool: PoolSpec | None = Field(None, description="methods pool and sn-net only: how rows and paths are trained")
    hyper: HomeHyper | None = Field(None, description="tal, logah and ghn3 only: how the hypernetwork is trained")
    anchors: list[AncestrySpec] | None = Field(None, description="sn-net only: the pretrained ViTs that become rows")
    out: Path = Field(Path("runs/gene"), description="run folder; the gene is written beside it as OUT.safetensors")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="storage type of the gene file")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            return given
        kind, given = method(given["method"]), dict(given)
        given.setdefault("distill", {"preset": kind.distillation})
        if isinstance(kind, Rows) and given.get("pool") is None:
            given["pool"] = {}
        if isinstance(kind, Hypernetwork):
            given["hyper"] = home_hyper(given.get("hyper"), task_aware=kind.task_aware)
        return given

    @model_validator(mode="after")
    def _method_fits(self) -> CondenseRecipe:
        kind = method(self.method, self.settings)
        if "condense" not in kind.origins:
            raise RecipeError(f"method {self.method} is not trained: {kind.made_by}")
        kind.refuse_auxiliary(self.shape)
        if self.hyper is not None and not isinstance(kind, Hypernetwork):
            raise RecipeError(f"hyper: method {self.method} is no hypernetwork; leave it out")
        if isinstance(kind, Rows):
            self._pool_fits(kind)
        elif isinstance(kind, Hypernetwork):
            kind.refuse_trained(self.shape)
            self._hyper_fits()
        elif self.pool is not None or self.anchors:
            raise RecipeError(f"{'pool' if self.pool else 'anchors'}: method {self.method} has no rows; leave it out")
        elif self.ancestry is None and self.distill.alpha > 0:
            raise RecipeError(f"ancestry is missing: distill.alpha {self.distill.alpha:g} needs a teacher")
        if self.train.layer_decay is not None:
            raise RecipeError("train: layer_decay is for fine-tuning; what is condensed has no layers of its own")
        return self

    def _pool_fits(self, kind: Rows) -> None:
        """Refuses a pool section that says too much or too little for the rows."""
        pool, rows = self.pool or PoolSpec(), len(kind.rows)
        self.row_train()
        self.path_train()
        if pool.guide != "none" and self.ancestry is None:
            raise RecipeError(f"ancestry is missing: pool.guide {pool.guide} needs a teacher")
        if kind.name == "sn-net":
            if len(self.anchors or ()) != rows:
                raise RecipeError(f"anchors: settings.rows has {rows} rows, so give {rows} pretrained ViTs as anchors")
            if unused := [name for name in ROW_FIELDS if getattr(pool, name) != getattr(PoolSpec(), name)]:
                raise RecipeError(
                    f"pool.{unused[0]}: means nothing for sn-net, whose rows are not trained; leave it out"
                )
            if pool.stitches == "tm":
                raise RecipeError(
                    "pool.stitches: tm needs rows that were distilled here, which anchors are not; use ls"
                )
            return
        if self.anchors:
            raise RecipeError("anchors: the rows of a pool are distilled from its ancestry; leave anchors out")
        if pool.points is not None and len(pool.points) != rows:
            raise RecipeError(f"pool.points: one number per row is needed, {rows} in all, not {len(pool.points)}")
        if self.ancestry is None and (pool.points is None or any(pool.points)):
            raise RecipeError("ancestry is missing: rows are distilled from it, unless pool.points are all 0")

    def _hyper_fits(self) -> None:
        """Refuses what stage 1 of a hypernetwork does not use, and a guide that is missing."""
        for name, given in (("pool", self.pool), ("anchors", self.anchors), ("distill", self.distill.alpha)):
            if given:
                raise RecipeError(f"{name}: means nothing for {self.method}, which hyper describes; leave it out")
        guided = self.hyper is not None and self.hyper.guidance.alpha > 0
        if guided and self.ancestry is None:
            raise RecipeError("ancestry is missing: it guides, unless hyper.guidance.preset is none")
        if not guided and self.ancestry is not None:
            raise RecipeError("ancestry: guides nothing with hyper.guidance.preset none; leave it out")

    def row_train(self) -> Train:
        """How the rows of a pool are trained."""
        return self._trained(self.pool.rows if self.pool else {}, "pool.rows")

    def path_train(self) -> Train | None:
        """How the paths of a pool are tuned; None leaves them untuned."""
        changes = self.pool.tune if self.pool else {}
        return None if changes is None else self._trained(changes, "pool.tune")

    def _trained(self, changes: Mapping[str, Any], where: str) -> Train:
        return validated(Train, merge(self.train.model_dump(exclude_unset=True), changes), where)


class FinetuneRecipe(Section):
    """A gene, a descendant folder or a timm architecture to a fine-tuned descendant folder."""

    kind: Literal["finetune"] = "finetune"
    model: str = Field(
        description="gene file, descendant folder, timm model name, or scratch for random weights of `shape`"
    )
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model, for example img_size")
    pretrained: bool = Field(True, description="false: a timm model starts from random weights, by train.seed")
    shape: ShapeChanges | None = Field(
        None,
        description="of a gene's descendant: the fields that differ from the auxiliary shape, often just depth",
    )
    options: dict[str, Any] = Field({}, description="the method's choices at expansion, and layers and modules")
    data: DataSpec
    train: Train = Train()
    out: Path = Field(Path("runs/descendant"), description="run folder; the descendant is written to OUT/descendant")


Recipe = Union[CondenseRecipe, FinetuneRecipe, "CompareRecipe", "SearchRecipe", "TuneRecipe"]
TrainingRecipe = Union[CondenseRecipe, FinetuneRecipe, "TaskSearch", "TuneRecipe"]
"""One that trains one thing in one run folder."""


def _kinds() -> dict[str, Any]:
    from learngene.recipe.compare import CompareRecipe  # which are made of the sections above
    from learngene.recipe.search import SearchRecipe
    from learngene.recipe.tune import TuneRecipe

    kinds = (CondenseRecipe, FinetuneRecipe, CompareRecipe, SearchRecipe, TuneRecipe)
    return {kind.model_fields["kind"].default: kind for kind in kinds}


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
    """Fields with every ``$DATA`` replaced by a folder, so that recipes do not say where images lie.

    Raises:
        RecipeError: If a recipe needs the folder and there is none.
    """
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
    """Fields with ``key.sub=value`` assignments applied; values are YAML.

    Raises:
        RecipeError: If an assignment is not of that form.
    """
    out = merge(fields, {})
    for assignment in overrides:
        key, sign, value = assignment.partition("=")
        if not sign or not key:
            raise RecipeError(f"override '{assignment}' is not of the form key.sub=value")
        nested: Any = _parse_value(value, assignment)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def build_recipe(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validates the fields of a recipe.

    Args:
        fields: Plain values, as YAML gives them; ``kind`` says which recipe it is.
        where: What error messages call the recipe.

    Raises:
        RecipeError: One line that names the place, what is wrong, and what would be right.
    """
    kind, kinds = fields.get("kind", "condense" if "method" in fields else "finetune"), _kinds()
    if kind not in kinds:
        raise RecipeError(f"{where}: unknown kind '{kind}'{nearest(str(kind), kinds)}")
    built: Recipe = validated(kinds[kind], fields, where)
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
    """Plain values from YAML.

    Raises:
        RecipeError: If a mapping has a key twice; the message has no file's name in it.
        yaml.YAMLError: If it is not YAML.
    """
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
        line = str(error).splitlines()[0]
        raise RecipeError(f"{path}: not valid YAML: {line}") from None
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
    if isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text; people who type a learning rate mean the number.
        try:
            return float(value)
        except ValueError:
            return value
    return value
