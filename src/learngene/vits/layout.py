"""What a Vision Transformer consists of: the names and sizes of its parameters, and its multiply-adds.

A layout holds a stem, one layer that is repeated, a tail and a head for one class, so that every depth and every
number of classes follows by counting. A plain ViT's has a closed form; any other architecture's is read off timm's own
model by ``timm_layout``, or comes from a gene file, which keeps it so that planning needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from learngene.system.errors import ShapeError

Sizes = dict[str, tuple[int, ...]]
"""Shapes of parameters by name, in timm's order."""

Modules = Literal["msa", "mlp", "ln"]

SIZES = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "in_chans", "num_classes")
"""What every architecture has, under timm's names; the rest of a timm model's arguments is its own."""

Arguments = tuple[tuple[str, Any], ...]
"""Arguments of a timm model that can be hashed: names and values, sorted by name."""


@dataclass(frozen=True)
class Layout:
    """The parts of a ViT of any depth and any number of classes.

    Attributes:
        stem: What comes before the layers.
        layer: Of one layer, without ``blocks.i.``.
        tail: What comes behind them, but for the head: norms, a pooling by attention.
        head: Of one class.
        patches: Tokens that stand for a patch of the image.
        tokens: All that pass through the layers: patches, class token, registers.
        macs: Multiply-adds of one image besides layers and head.
        layer_macs: Multiply-adds of one layer.
        undecayed: Parameters of several dimensions that timm exempts from weight decay, as in ``stem`` and ``layer``.
    """

    stem: Sizes
    layer: Sizes
    tail: Sizes
    head: Sizes
    patches: int
    tokens: int
    macs: int
    layer_macs: int
    undecayed: tuple[str, ...] = ("pos_embed", "cls_token")

    def modules(self) -> dict[str, tuple[str, ...]]:
        """The parameters of one layer by the papers' module names (TLEG, equations 2, 3 and 4).

        The first part of a name decides: norms and the scales of LayerScale belong to the norms, and what is neither
        one of them nor of the MLP, to the attention.
        """
        out: dict[str, list[str]] = {"msa": [], "mlp": [], "ln": []}
        for name in self.layer:
            out[_module(name.partition(".")[0])].append(name)
        return {module: tuple(names) for module, names in out.items()}

    def packed(self, name: str) -> list[int]:
        """The sizes of the tensors that a parameter packs along its first dimension: of qkv three, of most others one.

        Args:
            name: As in ``layer``, ``stem`` or ``tail``.
        """
        size = (self.layer | self.stem | self.tail | self.head)[name]
        rows, (parent, _, module) = size[0], name.rpartition(".")[0].rpartition(".")
        inner = self.layer.get(f"{parent}.fc2.weight", (0, 0))[1] if module == "fc1" else 0
        if module == "in_proj":  # of a block that computes attention and MLP side by side: the MLP, q, k and v
            width = self.layer["in_norm.weight"][0]
            return [rows - 3 * width, width, width, width]
        if module == "qkv":  # of which k and v may have fewer heads
            queries = self.layer[f"{parent}.proj.weight"][1] if f"{parent}.proj.weight" in self.layer else rows // 3
            return [queries, *[(rows - queries) // 2] * 2]
        count = 2 if module == "kv" or rows == 2 * inner else 1
        return [rows // count] * count

    def same_parameters(self, other: Layout) -> bool:
        """Whether models of both have the same parameters, whatever is counted of them."""
        return all(getattr(self, part) == getattr(other, part) for part in ("stem", "layer", "tail", "head"))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Layout:
        """Reads what ``to_dict`` wrote.

        Raises:
            ValueError: If a value is not of the right type.
        """
        values: dict[str, Any] = {part: _sizes(fields[part]) for part in ("stem", "layer", "tail", "head")}
        counts = {name: fields[name] for name in ("patches", "tokens", "macs", "layer_macs")}
        if not all(type(count) is int and count > 0 for count in counts.values()) or not values["layer"]:
            raise ValueError("wrong types")
        return cls(**values, **counts, undecayed=tuple(fields["undecayed"]))


def _module(first: str) -> Modules:
    if "norm" in first or first.startswith(("ls", "gamma")):
        return "ln"
    return "mlp" if first.startswith(("mlp", "ffn", "local_mp")) else "msa"


def _sizes(fields: Mapping[str, Any]) -> Sizes:
    sizes = {name: tuple(size) for name, size in fields.items()}
    if not all(type(n) is int and n >= 0 for size in sizes.values() for n in size):
        raise ValueError("wrong types")
    return sizes


@lru_cache(maxsize=1024)
def plain_layout(
    *, width: int, hidden: int, patch_size: int, grid: int, in_chans: int, class_token: bool, norm: str
) -> Layout:
    """The closed form of timm's plain ``VisionTransformer``; ``norm`` is the name of the final one."""
    tokens = grid**2 + int(class_token)
    stem: Sizes = {"cls_token": (1, 1, width)} if class_token else {}
    stem["pos_embed"] = (1, tokens, width)
    stem["patch_embed.proj.weight"] = (width, in_chans, patch_size, patch_size)
    stem["patch_embed.proj.bias"] = (width,)
    layer: Sizes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": (width,),
    }
    return Layout(
        stem=stem,
        layer=layer,
        tail={f"{norm}.weight": (width,), f"{norm}.bias": (width,)},
        head={"head.weight": (1, width), "head.bias": (1,)},
        patches=grid**2,
        tokens=tokens,
        macs=grid**2 * math.prod(stem["patch_embed.proj.weight"]),
        layer_macs=tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width,
    )


def hashable(value: Any) -> Any:
    """A JSON value as one that can be hashed: lists as tuples.

    Raises:
        ShapeError: If it is a mapping or no JSON value.
    """
    if isinstance(value, list | tuple):
        return tuple(hashable(each) for each in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ShapeError(f"shape: arch_args may hold numbers, words and lists, not {value!r}")
    return value
