"""Which shape a trained timm model has, and the proof that it has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from learngene.system.errors import ShapeError
from learngene.vits.layout import SIZES
from learngene.vits.shape import ViTShape
from learngene.vits.timm_layout import sizes_of
from learngene.vits.timm_models import TimmModel

PROOF_IMAGES = 2
TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate")


def shape_of(model: TimmModel) -> ViTShape:
    """The shape of a plain timm ViT, or else of whatever architecture timm made the model of.

    The latter is proved: a model that is built of the shape alone, with the weights of this one, computes the same.

    Raises:
        ShapeError: If layers cannot be taken from such a model; the message says why.
    """
    try:
        return plain_shape_of(model)
    except ShapeError as error:
        cfg = getattr(model, "pretrained_cfg", {})
        if not cfg.get("architecture") or not hasattr(model, "blocks"):
            raise
        plain = error
    sizes, given = sizes_of(model), _arguments(model)
    fault: ShapeError = plain
    # Timm always records how is pooled; as an argument it is only needed where the architecture pools otherwise.
    for more in ({}, {"global_pool": getattr(model, "global_pool", None)}):
        try:
            shape = ViTShape(**sizes, arch=str(cfg["architecture"]), arch_args={**given, **more})  # type: ignore[arg-type]
            _prove(model, shape)
        except ShapeError as error:
            fault = error
        else:
            return shape
    raise fault


def _arguments(model: TimmModel) -> Mapping[str, Any]:
    """What timm was given when it made the model, besides the sizes and what only counts while training."""
    given = getattr(model, "_model_args", {})
    return {k: v for k, v in given.items() if k not in (*SIZES, "global_pool") and not k.endswith(TRAINING)}


def _prove(model: TimmModel, shape: ViTShape) -> None:
    """Raises ``ShapeError`` unless a model of the shape, with the same weights, gives the same for the same images."""
    state = model.state_dict()
    _compare(shape, state)
    built = shape.skeleton()
    built.load_state_dict(state, strict=True, assign=True)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PROOF_IMAGES, shape.in_chans, shape.img_size, shape.img_size, generator=generator).to(device)
    training = model.training
    try:
        with torch.no_grad():
            same = torch.allclose(built.to(device).eval()(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    except (RuntimeError, AssertionError) as error:
        raise ShapeError(f"it takes no images of {shape.img_size} px ({str(error).partition(chr(10))[0]})") from None
    finally:
        model.train(training)
    if not same:
        raise ShapeError(f"timm's {shape.arch} with the recorded arguments computes otherwise than this model")


def _compare(shape: ViTShape, state: Mapping[str, torch.Tensor]) -> None:
    expected = shape.all_params()
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            kind = shape.arch or "a plain one"
            raise ShapeError(
                f"tensor '{name}' is {found.get(name, 'missing')}, where {kind} has {expected.get(name, 'none')}"
            )


def plain_shape_of(model: TimmModel) -> ViTShape:
    """The shape of a plain timm Vision Transformer.

    Raises:
        ShapeError: If it is anything else; the message names the part that a plain ViT does not have.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise ShapeError(f"it is a {type(model).__name__}")
    try:
        shape = _plain(model)
    except AttributeError as error:
        raise ShapeError(str(error)) from None
    _compare(shape, model.state_dict())
    if other := _computes_otherwise(model, shape):
        raise ShapeError(other)
    return shape


def _computes_otherwise(model: TimmModel, shape: ViTShape) -> str:
    """What a model with the tensors of a plain ViT does differently from one; empty if nothing."""
    from timm.models.vision_transformer import Block

    if model.global_pool not in ("token", "avg"):
        return f"global_pool is '{model.global_pool}', where a plain one has 'token' or 'avg'"
    for i, block in enumerate(model.blocks):
        act = block.mlp.act
        if type(block) is not Block:
            return f"layer {i} is a {type(block).__name__}"
        if not isinstance(act, nn.GELU) or act.approximate != "none":
            return f"layer {i} computes with {act}, where a plain one has GELU(approximate='none')"
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm) and norm.eps != shape.norm_eps:
            return f"{name} has eps {norm.eps}, where the first layer's norm has {shape.norm_eps}"
    return ""


def _plain(model: TimmModel) -> ViTShape:
    first, patches = model.blocks[0], model.patch_embed
    if len(set(patches.patch_size)) > 1 or len(set(patches.img_size)) > 1:
        raise ShapeError("its images or patches are not square")
    return ViTShape(
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=first.attn.num_heads,
        mlp_ratio=_ratio(first.mlp.fc1.out_features, model.embed_dim),
        patch_size=patches.patch_size[0],
        img_size=patches.img_size[0],
        in_chans=patches.proj.in_channels,
        num_classes=model.num_classes,
        class_token=model.global_pool == "token",
        ending="aligned" if isinstance(model.fc_norm, nn.Identity) else "official",
        norm_eps=first.norm1.eps,
    )


def _ratio(hidden: int, width: int) -> float:
    """The ratio that timm's truncation turns into this hidden width: a division may end a hair below."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
