"""Extracting: a gene read off a trained ViT, without training it: Vanilla-LG, weight selection, LSAMD, ..."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.preprocessing import PREPROCESSING, fill_preprocessing
from learngene.data.splits import refuse_unfit
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.arguments import Data, data_section
from learngene.methods import METHODS, Method
from learngene.methods import method as find_method
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.shape_of import plain_shape_of, shape_of
from learngene.vits.timm_models import TimmModel

ACTIVITY_IMAGES = 512
"""Most images on which neurons are ranked: with 196 tokens each, every mean is over 100,000 values."""


def extract(
    ancestry: Ancestry | str | Path,
    *,
    method: str,
    settings: Mapping[str, Any] | None = None,
    data: Data | None = None,
) -> Learngene:
    """Makes a gene of a trained ViT as it is.

    Args:
        ancestry: Any timm Vision Transformer whose layers are alike, or a timm name, folder or checkpoint file for it.
        method: A method whose gene needs no training, such as ``vanilla-lg`` or ``weight-selection``.
        settings: The method's settings.
        data: For a method that ranks neurons on data (``weight-subcloning``): where the images are.

    Raises:
        LearngeneError: If the method needs training, the ancestry is no such ViT, or the data is missing.
    """
    kind = refuse_method(method, settings, with_data=data is not None)
    teacher = ancestry if isinstance(ancestry, Ancestry) else Ancestry(ancestry)
    shape = vit_shape(teacher)
    kind.refuse_auxiliary(shape)
    images = _few(data) if data is not None else None
    activity = _activity(teacher, shape, data, images) if data is not None and images is not None else None
    state = {name: value.detach() for name, value in teacher.model.state_dict().items()}
    tensors = {name: value.clone() for name, value in kind.extract(state, shape, activity).items()}
    metadata: dict[str, Any] = {
        "ancestry": teacher.identity,
        "preprocessing": {key: teacher.preprocessing[key] for key in PREPROCESSING},
        "versions": environment()["versions"],
    }
    if images is not None and data is not None:
        names = data_section(data).names
        metadata["data"] = {"source": names, "train_images": len(images), "fingerprint": images.fingerprint()}
    if teacher.class_names:
        metadata["classes"] = teacher.class_names
    return Learngene(kind, shape, tensors, metadata=metadata)


def refuse_method(name: str, settings: Mapping[str, Any] | None, *, with_data: bool) -> Method:
    """The method of that name, refused if its gene cannot be extracted, or needs data, or does not."""
    kind = find_method(name, settings)
    if "extract" not in kind.origins:
        known = ", ".join(other for other, each in METHODS.items() if "extract" in each.origins)
        raise LearngeneError(f"method {name} cannot be extracted: {kind.made_by}; methods that can: {known}")
    if kind.needs_data != with_data:
        needs = "ranks neurons on data; give some (--data)" if kind.needs_data else "looks at no data; leave it out"
        raise LearngeneError(f"method {name} {needs}")
    return kind


def vit_shape(ancestry: Ancestry) -> ViTShape:
    """The shape of an ancestry that is a timm Vision Transformer whose layers are alike.

    Raises:
        LearngeneError: If it is anything else.
    """
    label = ancestry.identity["source"]
    try:
        return shape_of(ancestry.model)
    except ShapeError as error:
        raise LearngeneError(
            f"ancestry {label}: layers can only be taken from a timm Vision Transformer whose layers are alike: "
            f"{str(error).removeprefix('shape: ')}"
        ) from None


def plain_shape(ancestry: Ancestry) -> ViTShape:
    """The shape of an ancestry that is a plain timm Vision Transformer.

    Raises:
        LearngeneError: If it is anything else; the message names the part that a plain ViT does not have.
    """
    label = ancestry.identity["source"]
    try:
        return plain_shape_of(ancestry.model)
    except ShapeError as error:
        raise LearngeneError(f"ancestry {label}: not a plain Vision Transformer: {error}") from None


def _few(data: Data) -> ImageSet:
    """Every n-th training image, so that all classes of an ordered set are seen."""
    images = open_split(data_section(data), "train")
    refuse_unfit(images, labels_for="ranking neurons")
    return images.picked(range(0, len(images), math.ceil(len(images) / ACTIVITY_IMAGES)))


def _activity(ancestry: Ancestry, shape: ViTShape, data: Data, images: ImageSet) -> dict[str, Tensor]:
    spec = fill_preprocessing(data_section(data), ancestry.preprocessing)
    loader = eval_loader(images, spec, img_size=shape.img_size, in_chans=shape.in_chans)
    return mean_activity(ancestry.model, (batch for batch, _ in loader))


@torch.no_grad()
def mean_activity(
    model: TimmModel, batches: Iterable[Float[Tensor, "batch channels height width"]]
) -> dict[str, Tensor]:
    """Mean magnitude of every neuron of a timm ViT over images and tokens.

    Args:
        model: A plain timm Vision Transformer.
        batches: Normalised images.

    Returns:
        ``residual``: per entry of the width, over what enters every norm of its layers; ``blocks.i.heads``: per head of
        layer i, over what enters the attention's projection; ``blocks.i.hidden``: per hidden neuron of its MLP.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(module: nn.Module, name: str) -> None:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = inputs[0].abs().flatten(0, -2)
            sums[name] = sums.get(name, 0) + size.sum(0).double()
            counts[name] = counts.get(name, 0) + len(size)

        hooks.enter_context(module.register_forward_pre_hook(add))

    device = next(model.parameters()).device
    with contextlib.ExitStack() as hooks:
        for i, block in enumerate(model.blocks):
            watch(block.norm1, "residual")
            watch(block.norm2, "residual")
            watch(block.attn.proj, f"blocks.{i}.heads")
            watch(block.mlp.fc2, f"blocks.{i}.hidden")
        for images in batches:
            model(images.to(device))
    means = {name: (total / counts[name]).float() for name, total in sums.items()}
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}.heads"
        means[name] = means[name].unflatten(0, (block.attn.num_heads, -1)).mean(1)
    return means
