"""What becomes of a gene at a shape, before it is a model: which of its tensors are used, what starts fresh, and why.

It is the same whether the tensors are torch's or numpy's, so nothing here imports either.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learngene.genes.shape_scores import ReadGene, outside
from learngene.methods import default_settings
from learngene.methods.base import is_count
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.system.errors import ShapeError, nearest
from learngene.vits.class_names import carry_head, some
from learngene.vits.descendant_folder import vit_cfg
from learngene.vits.shape import MODULE_PARAMS
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Expansion:
    """A descendant on paper.

    Attributes:
        shape: Its shape.
        weights: What the gene gives it, under timm's names.
        fresh: The parameters that start fresh, in the order of the model: all others are among the weights.
        cfg: What timm keeps as ``pretrained_cfg``.
        record: Where it comes from: what ``learngene.json`` says in its folder.
    """

    shape: Shape
    weights: dict[str, Any]
    fresh: list[str]
    cfg: dict[str, Any]
    record: dict[str, Any]


def expansion(
    gene: ReadGene,
    weights: dict[str, Any],
    shape: Shape,
    *,
    class_names: list[str] | None = None,
    layers: Collection[int] | None = None,
    modules: Collection[str] | None = None,
    seed: int = 0,
    task: Any = None,
    about: TaskEmbedding | None = None,
    bridge: bool = False,
    **options: Any,
) -> Expansion:
    """What becomes of a gene's weights at a shape; warns of what is not as one would expect.

    Args:
        gene: The gene.
        weights: What the gene says about the shape; taken over.
        shape: The shape.
        class_names: As in ``Learngene.expand``, and so the following.
        layers: Which layers to fill.
        modules: Which modules to fill.
        seed: Of whatever starts fresh.
        task: For which task, as it was given.
        about: What is known of the task.
        bridge: Whether the weights' head is the gene's bridge, which has no classes.
        **options: The method's choices.

    Raises:
        ShapeError: If a layer or module does not exist, or there are more or fewer names than classes.
    """
    method = gene.method
    if about and shape.num_classes not in (0, len(about.classes)):
        text = f"task {about.name} has {len(about.classes)} classes, but {shape.num_classes} are predicted"
        warnings.warn(f"{method.name}: {text}", stacklevel=3)
    cautions = method.cautions(gene.shape, shape, task=task, **options)
    if not cautions and (where := outside(gene, shape)):
        cautions = [f"a model of {shape.depth} layers x {shape.embed_dim} is {where}"]
        if not gene.metadata.get("shapes"):
            cautions[0] += "; fine-tune it, or condense the gene with shapes"
    for caution in cautions:
        warnings.warn(f"{method.name}: {caution}", stacklevel=3)
    if class_names and len(class_names) != shape.num_classes:
        raise ShapeError(f"class_names has {len(class_names)} names, but the shape has {shape.num_classes} classes")
    names = None if bridge else _class_names(gene, shape, about)
    other = carry_head(weights, shape, names, class_names, predicted=method.making == "hyper")
    if other and names and class_names:
        text = f"the gene's classes ({some(names)}) are not the wanted ones ({some(class_names)})"
        warnings.warn(f"{method.name}: {text}, so the head starts afresh", stacklevel=3)
    keep = kept_parameters(shape, layers, modules)
    fresh = [name for name in shape.all_params() if name not in weights or name not in keep]
    return Expansion(
        shape=shape,
        weights=weights,
        fresh=fresh,
        cfg=vit_cfg(shape, f"learngene_{method.name}", _preprocessing(gene, about)),
        record={
            "gene": gene.metadata.get("digest"),
            "method": method.name,
            "settings": default_settings(method),
            "options": options if task is None else {**options, "task": _task_name(task)},
            "ancestry": gene.metadata.get("ancestry"),
            "shape": shape.to_dict(),
            "layers": method.describe(gene.shape, shape, **options),
            "fresh": fresh,
            "seed": seed,
            "class_names": class_names or names,
            **({"bridge": gene.metadata["bridge"]} if bridge else {}),
        },
    )


def with_heads(gene: ReadGene, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a shape that differ from a gene's: a width alone brings as many heads as keep theirs.

    Raises:
        ShapeError: If the gene can change its width, but not to one that its heads do not divide.
    """
    wide, head = changes.get("embed_dim"), gene.shape.head_dim
    if wide is None or not is_count(wide) or "num_heads" in changes:
        return dict(changes)
    heads = max(1, wide // head)
    if wide != heads * head and "embed_dim" not in gene.method.kept_fields:
        fitting = f"{heads * head} or {(heads + 1) * head}" if wide > head else str(head)
        raise ShapeError(
            f"embed_dim {wide}: this gene's heads are {head} wide, and {wide} is no multiple of that; give {fitting}, "
            "or say how many heads there are (num_heads)"
        )
    return {**changes, "num_heads": heads}


def _class_names(gene: ReadGene, shape: Shape, about: TaskEmbedding | None) -> list[str] | None:
    names = list(about.classes) if about else gene.metadata.get("classes")
    return names if names and len(names) == shape.num_classes else None


def _preprocessing(gene: ReadGene, about: TaskEmbedding | None) -> dict[str, Any]:
    """How images are prepared: of a task that the gene was tuned on as that task's were."""
    own: dict[str, Any] = {}
    for entry in gene.metadata.get("tasks", []):
        if about and entry.get("embedding", {}).get("fingerprint") == about.fingerprint:
            own = entry
    keys = ("mean", "std", "interpolation", "crop_pct")
    return {**gene.metadata.get("preprocessing", {}), **{key: own[key] for key in keys if key in own}}


def _task_name(task: str | TaskEmbedding | Tensor) -> str:
    if isinstance(task, TaskEmbedding):
        return task.name
    return task if isinstance(task, str) else "an embedding"


def kept_parameters(shape: Shape, layers: Collection[int] | None, modules: Collection[str] | None) -> set[str]:
    """The parameters to fill: all outside the layers, and those layers and modules that were asked for."""
    layers = range(1, shape.depth + 1) if layers is None else layers
    modules = tuple(MODULE_PARAMS) if modules is None else modules
    for layer in layers:
        if not 1 <= layer <= shape.depth:
            raise ShapeError(f"expand: layer {layer} does not exist; layers count from 1 to {shape.depth}")
    for module in modules:
        if module not in MODULE_PARAMS:
            raise ShapeError(f"expand: unknown module '{module}'{nearest(module, MODULE_PARAMS)}")
    names = shape.parts[0].module_params()
    inside = {f"blocks.{layer - 1}.{name}" for layer in layers for module in modules for name in names[module]}
    inside |= {f"blocks.{layer - 1}.stitch.{kind}" for layer in layers for kind in ("weight", "bias")}
    return {name for name in shape.all_params() if name in inside or not name.startswith("blocks.")}
