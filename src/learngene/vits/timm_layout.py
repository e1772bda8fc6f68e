"""Architectures of timm that are no plain ViT: their parts, read off timm's own model, and the model itself."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learngene.system.errors import ShapeError
from learngene.vits.layout import SIZES, Layout, Sizes
from learngene.vits.multiply_adds import multiply_adds
from learngene.vits.skeleton import SkipInit
from learngene.vits.timm_models import TimmModel, refuse_unknown_architecture

FAULTS = (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError, ArithmeticError)
"""In which timm's models can end, given arguments or images that they are not made for."""


def read_layout(arch: str, arguments: Mapping[str, Any]) -> Layout:
    """The layout of an architecture with the given arguments, but for depth and number of classes.

    Two models without memory, of one layer and of four, say everything: what the second has more are layers.

    Raises:
        ShapeError: If timm has no such architecture or does not take the arguments, if its layers differ among
            themselves, or if it keeps statistics besides parameters.
    """
    one, four = (_meta_model(arch, {**arguments, "depth": depth, "num_classes": 1}) for depth in (1, 4))
    params, more = _params(one), _params(four)
    layer = _layer(params, 0)
    if not layer:
        raise ShapeError(f"shape: {arch} is no sequence of layers named blocks, so no layer can be taken or repeated")
    if any(layer != _layer(more, i) for i in range(4)):
        raise ShapeError(f"shape: the layers of {arch} differ among themselves, so that they cannot be repeated")
    rest = {name: size for name, size in params.items() if not name.startswith("blocks.")}
    if other := [name for name, size in rest.items() if more.get(name) != size]:
        raise ShapeError(f"shape: '{other[0]}' of {arch} depends on the number of layers, which no gene can express")
    if kept := [name for name in one.state_dict() if name not in params]:
        raise ShapeError(f"shape: {arch} keeps '{kept[0]}', which is no parameter and so not in a gene")
    names = list(params)
    last = max(i for i, name in enumerate(names) if name.startswith("blocks."))
    head = {name: size for name, size in rest.items() if name.startswith("head") and size[0] == 1}
    tail = {name: size for name, size in rest.items() if names.index(name) > last and name not in head}
    stem = {name: size for name, size in rest.items() if name not in head and name not in tail}
    if {"norm.weight", "fc_norm.weight"} <= tail.keys():
        raise ShapeError(f"shape: {arch} has two final norms, which a gene does not tell apart")
    size = (arguments["in_chans"], arguments["img_size"])
    try:
        macs, more_macs = (multiply_adds(model.eval(), *size) for model in (one, four))
    except FAULTS as error:
        raise ShapeError(f"shape: {arch} does not take images of {size[1]} px ({_reason(error)})") from None
    layer_macs = (more_macs - macs) // 3
    patches = getattr(embedding(one), "num_patches", None) or (size[1] // arguments["patch_size"]) ** 2
    exempt = one.no_weight_decay() if hasattr(one, "no_weight_decay") else set()
    inner = {name.removeprefix("blocks.0.") for name in exempt}
    per_class = sum(math.prod(size) for size in head.values() if len(size) > 1)
    return Layout(
        stem=stem,
        layer=layer,
        tail=tail,
        head=head,
        patches=patches,
        tokens=patches + getattr(one, "num_prefix_tokens", 0),
        macs=macs - layer_macs - per_class,
        layer_macs=layer_macs,
        undecayed=tuple(name for name in (*stem, *layer) if name in inner),
    )


def arch_model(arch: str, arguments: Mapping[str, Any]) -> TimmModel:
    """A timm model whose parameters are without memory; what it computes with besides them is there.

    Raises:
        ShapeError: If timm has no such architecture or does not take the arguments.
    """
    with SkipInit():
        model = _created(arch, arguments)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(parameter.to("meta"))
    return model


def start_values(arch: str, arguments: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The parameters that timm itself starts such a model with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in _created(arch, arguments).named_parameters()}


def own_sizes(arch: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that an architecture has by itself, as fields of a shape."""
    return sizes_of(_meta_model(arch, arguments))


def sizes_of(model: TimmModel) -> dict[str, Any]:
    """The sizes of a timm ViT, as fields of a shape.

    Raises:
        ShapeError: If it says nothing of layers, heads or patches, or images or patches are not square.
    """
    from timm.models import get_model_input_config

    blocks, embed = list(getattr(model, "blocks", [])), embedding(model)
    heads = next((m.num_heads for m in blocks[0].modules() if hasattr(m, "num_heads")), None) if blocks else None
    patch, width = getattr(embed, "patch_size", None), getattr(model, "embed_dim", None)
    if heads is None or patch is None or width is None:
        raise ShapeError(f"a {type(model).__name__} is no sequence of layers with attention on patches")
    patch = patch if isinstance(patch, tuple | list) else (patch,)
    chans, *pixels = get_model_input_config(model)["input_size"]
    if len(set(patch)) > 1 or len(set(pixels)) > 1:
        raise ShapeError("its images or patches are not square")
    values = (width, len(blocks), heads, patch[0], pixels[0], chans, getattr(model, "num_classes", 0))
    return {name: int(value) for name, value in zip(SIZES, values, strict=True)}


def _meta_model(arch: str, arguments: Mapping[str, Any]) -> TimmModel:
    with SkipInit(), torch.device("meta"):
        return _created(arch, arguments)


def _created(arch: str, arguments: Mapping[str, Any]) -> TimmModel:
    import timm

    refuse_unknown_architecture(arch)
    try:
        return timm.create_model(arch, **arguments)
    except FAULTS as error:
        if unknown := [name for name in SIZES if f"unexpected keyword argument '{name}'" in str(error)]:
            raise ShapeError(
                f"shape: {arch} has no {unknown[0]}, so it is no sequence of like layers on patches, which can be "
                "taken or repeated; use another arch"
            ) from None
        if re.search(r"'(int|float)'( object)? (has no len|is not (iterable|subscriptable))", str(error)):
            raise ShapeError(
                f"shape: {arch} has stages, each of sizes of its own, so it is no sequence of like layers on patches, "
                "which can be taken or repeated; use another arch"
            ) from None
        raise ShapeError(f"shape: timm cannot make {arch} with these arguments ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The first line of what an error says; of an assertion without words the line of code."""
    told = str(error).splitlines() or [traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__]
    return told[0][:160]


def _params(model: TimmModel) -> Sizes:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def _layer(params: Sizes, index: int) -> Sizes:
    start = f"blocks.{index}."
    return {name.removeprefix(start): size for name, size in params.items() if name.startswith(start)}


def embedding(model: TimmModel) -> Any:
    """The module that makes tokens of patches; None if there is none."""
    return getattr(model, "patch_embed", getattr(model, "embeds", None))
