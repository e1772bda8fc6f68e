"""Vision Transformers as the transformers library saves them (ViT, DeiT, DINOv2, masked autoencoders), as timm's.

The two libraries compute the same of the same weights, under other names. Shapes are read off the tensors, since
``config.json`` leaves out whatever is its library's default. The norms keep timm's epsilon of 1e-6, where transformers
has 1e-12 for ViT: logits differ by about 1e-6.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
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

RENAMED = {
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"(blocks\.\d+\.)layernorm_before\.": r"\1norm1.",
    r"(blocks\.\d+\.)layernorm_after\.": r"\1norm2.",
    r"(blocks\.\d+\.)attention\.output\.dense\.": r"\1attn.proj.",
    r"(blocks\.\d+\.)intermediate\.dense\.": r"\1mlp.fc1.",
    r"(blocks\.\d+\.)output\.dense\.": r"\1mlp.fc2.",
    r"(blocks\.\d+\.)layer_scale([12])\.lambda1": r"\1ls\2.gamma",
    r"layernorm\.": "norm.",
    r"(cls_)?classifier\.": "head.",
    r"distillation_classifier\.": "head_dist.",
}
"""Patterns at the start of a name, one after the other, and timm's names."""

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
    for name in [name for name in out if ".attention.attention.query." in name]:
        parts = [out.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        out[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
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
    cfg: dict[str, Any] = {"num_classes": arguments["num_classes"], **_preprocessing(path)}
    cfg["input_size"] = (arguments["in_chans"], arguments["img_size"], arguments["img_size"])
    names = config.get("id2label") or {}
    if len(names) == arguments["num_classes"] and not all(str(name).startswith("LABEL_") for name in names.values()):
        cfg["label_names"] = [str(names[key]) for key in sorted(names, key=int)]
    architecture = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
    return filled(architecture, tensors, {**arguments, **changes}, cfg)


def _arguments(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Timm's arguments for the shape of the tensors."""
    act, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", LARGEST_EPS)
    if act != "gelu" or eps > LARGEST_EPS:
        raise LearngeneError(
            f"{path}: has hidden_act {act} and layer_norm_eps {eps:g}, and timm's ViT computes gelu and 1e-6"
        )
    if any(".mlp.weights_in." in name for name in tensors):
        raise LearngeneError(f"{path}: has gated MLPs (use_swiglu_ffn); give timm's vit_giant_patch14_dinov2 by name")
    (width, chans, patch, _), positions = tensors["patch_embed.proj.weight"].shape, tensors["pos_embed"].shape[1]
    head, registers = tensors.get("head.weight"), tensors.get("reg_token")
    if head is not None and head.shape[1] != width:
        raise LearngeneError(
            f"{path}: its classifier reads {head.shape[1]} numbers, the class token beside the mean of the patches, "
            "which no ViT of timm does; give a folder without it (Dinov2Model), or fine-tune one"
        )
    in_positions = 2 if "dist_token" in tensors or (registers is not None and config["model_type"] == "deit") else 1
    apart = registers is not None and config["model_type"] != "deit"  # registers without positions
    side = math.isqrt(positions - (0 if apart else in_positions))
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width
    arguments: dict[str, Any] = {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": chans,
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "num_classes": 0 if head is None else len(head),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
    if "blocks.0.ls1.gamma" in tensors:
        arguments["init_values"] = 1.0
    if registers is not None:
        arguments |= {"reg_tokens": registers.shape[1], "no_embed_class": apart}
    return arguments


def _preprocessing(path: Path) -> dict[str, Any]:
    """What timm calls the entries of ``preprocessor_config.json``, as far as it is there."""
    file = path / "preprocessor_config.json"
    given = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    normalised = given.get("do_normalize", True)
    out: dict[str, Any] = {"crop_pct": 1.0, "interpolation": RESAMPLE.get(given.get("resample", 2), "bilinear")}
    for key, entry, without in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        values = given.get(entry)
        if values is not None:
            out[key] = tuple(values) if normalised else (without,) * len(values)
    size, crop = given.get("size"), given.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    side = crop.get("height") if isinstance(crop, Mapping) else crop
    if given.get("do_center_crop") and edge and side:
        out["crop_pct"] = side / edge
    return out
