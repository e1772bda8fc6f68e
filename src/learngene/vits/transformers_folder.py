"""Vision Transformers as the transformers library saves them (ViT, DeiT, DINOv2, masked autoencoders), as timm's.

The two libraries compute the same of the same weights, under other names. Shapes are read off the tensors, since
``config.json`` leaves out whatever is its library's default. The norms keep timm's epsilon of 1e-6, where transformers
has 1e-12 for ViT: logits of small models differ by 1e-5 at most.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learngene.system.errors import LearngeneError
from learngene.vits.timm_models import filled

MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae")
PROJECTION = "embeddings.patch_embeddings.projection.weight"
LARGEST_EPS = 1e-6
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, by which transformers calls interpolations."""

ACTIVATIONS = {
    "gelu": None,
    "gelu_python": None,
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What timm calls the activations of transformers; None is timm's own."""

RENAMED = {
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"(?:encoder\.layer|layers)\.(\d+)\.": r"blocks.\1.",
    r"(blocks\.\d+\.)layernorm_before\.": r"\1norm1.",
    r"(blocks\.\d+\.)layernorm_after\.": r"\1norm2.",
    r"(blocks\.\d+\.)attention\.(?:output\.dense|o_proj)\.": r"\1attn.proj.",
    r"(blocks\.\d+\.)attention\.(?:attention\.query|q_proj)\.": r"\1attn.query.",
    r"(blocks\.\d+\.)attention\.(?:attention\.key|k_proj)\.": r"\1attn.key.",
    r"(blocks\.\d+\.)attention\.(?:attention\.value|v_proj)\.": r"\1attn.value.",
    r"(blocks\.\d+\.)intermediate\.dense\.": r"\1mlp.fc1.",
    r"(blocks\.\d+\.)output\.dense\.": r"\1mlp.fc2.",
    r"(blocks\.\d+\.)layer_scale([12])\.lambda1": r"\1ls\2.gamma",
    r"layernorm\.": "norm.",
    r"(cls_)?classifier\.": "head.",
    r"distillation_classifier\.": "head_dist.",
}
"""Patterns at the start of a name, one after the other, and timm's names; ``layers`` and ``q_proj`` are what models of
transformers 5 say in memory, and the others what every version writes."""

NOT_OF_THE_MODEL = ("pooler.", "decoder", "mask_token")
"""What is only there for pretraining, or behind the features of a model without head."""


def has_transformers_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of a Vision Transformer of the transformers library."""
    return any(name.endswith(PROJECTION) for name in tensors)


def with_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a transformers model under timm's names, queries, keys and values joined."""
    prefix = next(name for name in tensors if name.endswith(PROJECTION)).removesuffix(PROJECTION)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        for pattern, replacement in RENAMED.items():
            name = re.sub(f"^{pattern}", replacement, name)
        out[name] = tensor
    for name in [name for name in out if ".attn.query." in name]:
        parts = [out.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        out[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    if "reg_token" in out:  # which have no positions, so that in timm the class token keeps its own in itself
        out["cls_token"], out["pos_embed"] = out["cls_token"] + out["pos_embed"][:, :1], out["pos_embed"][:, 1:]
    elif "dist_token" in out and "head_dist.weight" not in out:  # a distilled DeiT of which one head is used
        out["reg_token"] = out.pop("dist_token")
    return {name: tensor for name, tensor in out.items() if not name.startswith(NOT_OF_THE_MODEL)}


def load_transformers(path: Path, config: Mapping[str, Any], weights: Path, changes: Mapping[str, Any]) -> Any:
    """A timm model with the weights, preprocessing and class names of a folder of the transformers library.

    Args:
        path: The folder.
        config: Its ``config.json``.
        weights: Its file with weights, which is read with weights-only loading.
        changes: Arguments for ``timm.create_model`` that differ, for example ``num_classes``.

    Raises:
        LearngeneError: If the model is none that timm computes in the same way.
    """
    from timm.models import load_state_dict

    kind = config["model_type"]
    if kind not in MODEL_TYPES:
        raise LearngeneError(
            f"{path}: a model of the transformers library of model_type {kind}, of which only {', '.join(MODEL_TYPES)} "
            "can be converted; give timm's model of that name, see timm.list_pretrained()"
        )
    tensors = load_state_dict(str(weights), weights_only=True)
    if not has_transformers_names(tensors):
        raise LearngeneError(f"{path}: {weights.name} has no {PROJECTION}, so no {kind} of the transformers library")
    tensors = with_timm_names(tensors)
    arguments = _arguments(path, config, tensors)
    distilled = "dist_token" in tensors
    cfg: dict[str, Any] = {"num_classes": arguments["num_classes"], **_preprocessing(path, kind, arguments["in_chans"])}
    size = arguments["img_size"]
    cfg["input_size"] = (arguments["in_chans"], *(size if isinstance(size, tuple) else (size, size)))
    names = config.get("id2label") or {}
    if len(names) == arguments["num_classes"] and not all(str(name).startswith("LABEL_") for name in names.values()):
        cfg["label_names"] = [str(names[key]) for key in sorted(names, key=int)]
    architecture = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
    return filled(architecture, tensors, {**arguments, **changes}, cfg)


def _arguments(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Timm's arguments for the shape of the tensors."""
    act, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", LARGEST_EPS)
    if act not in ACTIVATIONS:
        raise LearngeneError(f"{path}: has hidden_act {act}, and timm computes {', '.join(ACTIVATIONS)}")
    if eps > LARGEST_EPS:
        raise LearngeneError(f"{path}: has layer_norm_eps {eps:g}, and timm's ViT computes {LARGEST_EPS:g}")
    if any(".mlp.weights_in." in name or ".mlp.gate_proj." in name for name in tensors):
        raise LearngeneError(f"{path}: has gated MLPs (use_swiglu_ffn); give timm's vit_giant_patch14_dinov2 by name")
    (width, chans, *patch), positions = tensors["patch_embed.proj.weight"].shape, tensors["pos_embed"].shape[1]
    head, registers = tensors.get("head.weight"), tensors.get("reg_token")
    if head is not None and head.shape[1] != width:
        raise LearngeneError(
            f"{path}: its classifier reads {head.shape[1]} numbers, the class token beside the mean of the patches, "
            "which no ViT of timm does; load it as Dinov2Model, or Dinov2WithRegistersModel, and save that"
        )
    in_positions = 2 if "dist_token" in tensors or (registers is not None and config["model_type"] == "deit") else 1
    apart = registers is not None and config["model_type"] != "deit"  # registers without positions
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width
    arguments: dict[str, Any] = {
        "img_size": _image_size(path, config, patch, positions - (0 if apart else in_positions)),
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "in_chans": chans,
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "num_classes": 0 if head is None else len(head),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
    if ACTIVATIONS[act]:
        arguments["act_layer"] = ACTIVATIONS[act]
    if "blocks.0.ls1.gamma" in tensors:
        arguments["init_values"] = 1.0
    if registers is not None:
        arguments |= {"reg_tokens": registers.shape[1], "no_embed_class": apart}
    return arguments


def _image_size(path: Path, config: Mapping[str, Any], patch: Sequence[int], patches: int) -> int | tuple[int, int]:
    """Side in pixels, or height and width: what the configuration says if it has as many patches, else a square."""
    given = config.get("image_size", 224)
    height, width = given if isinstance(given, list) else (given, given)
    if (height // patch[0]) * (width // patch[1]) != patches:
        side = math.isqrt(patches)
        if side * side != patches:
            raise LearngeneError(
                f"{path}: its positions are of {patches} patches, which image_size {given} in config.json does not have"
            )
        height, width = side * patch[0], side * patch[1]
    return height if height == width else (height, width)


def _preprocessing(path: Path, kind: str, chans: int) -> dict[str, Any]:
    """What timm calls the entries of ``preprocessor_config.json``; without it, what most models of the kind have."""
    from timm.data import constants

    file, given = path / "preprocessor_config.json", {}
    usual = constants.IMAGENET_INCEPTION_MEAN if kind == "vit" else constants.IMAGENET_DEFAULT_MEAN
    spread = constants.IMAGENET_INCEPTION_STD if kind == "vit" else constants.IMAGENET_DEFAULT_STD
    if file.is_file():
        given = json.loads(file.read_text(encoding="utf-8"))
    else:
        warnings.warn(
            f"{path}: has no {file.name}, which says how images are prepared; mean {usual} and std {spread} are taken, "
            f"as usual for {kind}",
            stacklevel=2,
        )
    out: dict[str, Any] = {"crop_pct": 1.0, "interpolation": RESAMPLE.get(given.get("resample", 2), "bilinear")}
    # Of values from 0 to 1, as we normalise them; the model may have got others.
    unit = 255 * given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 255
    for key, default, none in (("mean", usual, 0.0), ("std", spread, 1.0)):
        values = (given.get(f"image_{key}") or default) if given.get("do_normalize", True) else (none,) * chans
        out[key] = tuple(round(value / unit, 12) for value in values)
    size, crop = given.get("size"), given.get("crop_size")
    edge = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    side = crop.get("height") if isinstance(crop, Mapping) else crop
    if given.get("do_center_crop") and edge and side:
        out["crop_pct"] = min(1.0, side / edge)
    return out
