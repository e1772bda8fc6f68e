"""Shapes: what a Vision Transformer of a given size consists of, without building it.

A ``ViTShape`` is a frozen, validated, hashable description of one timm ``VisionTransformer``: a plain one, or any other
architecture whose layers are alike. From its layout follow every parameter's name and shape, the number of parameters
and of multiply-adds. Only ``skeleton`` and the layout of an architecture that no gene file told import torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from learngene.system.errors import ShapeError, nearest, refuse_unknown
from learngene.vits.known_layouts import Key, arch_layout, refuse_other, tell_layout
from learngene.vits.layout import SIZES, Arguments, Layout, Sizes, hashable, plain_layout
from learngene.vits.segment import Segment

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Ending = Literal["aligned", "official"]

MODULE_PARAMS: dict[str, tuple[str, ...]] = {
    "msa": ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    "mlp": ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    "ln": ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
}
"""The parameters of one layer of a plain ViT by the papers' module names (TLEG, equations 2, 3 and 4)."""

NAMED: dict[str, dict[str, int]] = {
    "deit_tiny_patch16_224": {"embed_dim": 192, "num_heads": 3},
    "deit_small_patch16_224": {"embed_dim": 384, "num_heads": 6},
    "deit_base_patch16_224": {"embed_dim": 768, "num_heads": 12},
    "sws_official_aux_small": {"embed_dim": 384, "num_heads": 12, "depth": 16},
}
"""Named widths. ``sws_official_aux_small`` has the 12 heads of the released SWS code, where the paper's
DeiT-S has 6; a gene made with it only expands into shapes with 12 heads."""

NORM_EPS = 1e-6
ARCHITECTURES = {NORM_EPS: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
"""Timm's name of a plain ViT by the epsilon of its norms; one name stands for every size, through ``model_args``.
Timm's own arguments can be stored and say sizes, but no epsilon: that of the towers of CLIP is 1e-5."""

ARCH_SAYS = ("mlp_ratio", "class_token", "ending", "norm_eps")
"""Fields of a plain ViT that any other architecture says itself, through ``arch_args`` where they may differ."""

MAX_DEPTH, MAX_WIDTH, MAX_TOKENS = 10_000, 1_000_000, 1_000_000
"""Far beyond any Vision Transformer: a larger number is a slip that would only fill the memory."""


class ShapeBase(metaclass=ABCMeta):
    """What plain and stitched shapes have in common; both are frozen dataclasses with the fields named here.

    A model is a sequence of ``parts``, each as wide as its row: a plain shape is its own only part.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    mlp_ratio: float
    patch_size: int
    img_size: int
    in_chans: int
    num_classes: int
    class_token: bool
    ending: Ending
    norm_eps: float

    @property
    @abstractmethod
    def parts(self) -> list[ViTShape]:
        """Every segment as a plain ViT: its blocks, and the stem and head that its row has."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of the class; ``norm_eps`` only where it is not timm's."""
        absent = ("norm_eps",) if self.norm_eps == NORM_EPS else ()
        return {name: getattr(self, name) for name in self.__slots__ if name not in absent}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        refuse_unknown(changes, self.__slots__, "shape")
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.img_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the layers, the class token included."""
        return self.parts[0].layout.tokens

    # -- parameters: names and shapes, under timm's names and in timm's order ------------------------

    def stem_params(self) -> Sizes:
        """What comes before the layers, at the first part's width: class token, positions, patch projection."""
        return self.parts[0].stem_params()

    def norm_params(self) -> Sizes:
        """The final norm, at the last part's width."""
        return self.parts[-1].norm_params()

    def head_params(self) -> Sizes:
        """The linear head, at the last part's width; empty without classes."""
        return self.parts[-1].head_params()

    def all_params(self) -> Sizes:
        """Every parameter of the model."""
        params, blocks = self.stem_params(), itertools.count()
        for before, part in zip((None, *self.parts), self.parts, strict=False):
            for place, i in zip(range(part.depth), blocks, strict=False):
                params |= {f"blocks.{i}.{name}": shape for name, shape in part.layer_params().items()}
                if before is not None and place == 0:
                    params[f"blocks.{i}.stitch.weight"] = (part.embed_dim, before.embed_dim)
                    params[f"blocks.{i}.stitch.bias"] = (part.embed_dim,)
        return params | self.norm_params() | self.head_params()

    def params(self) -> int:
        """Number of parameters; equals the built model's count exactly."""
        parts, outer = self.parts, self.stem_params() | self.norm_params() | self.head_params()
        layers = sum(part.depth * part.layer_size() for part in parts)
        stitches = sum((a.embed_dim + 1) * b.embed_dim for a, b in itertools.pairwise(parts))
        return sum(map(math.prod, outer.values())) + layers + stitches

    def params_without_positions(self) -> int:
        """``params`` without class token and position embedding, as LSAMD's Table 2 and SN-Net's code count."""
        stem = self.stem_params()
        return self.params() - sum(math.prod(stem[name]) for name in stem.keys() & {"cls_token", "pos_embed"})

    # -- multiply-adds -------------------------------------------------------------------------------

    def macs(self) -> int:
        """Multiply-adds of one image: convolution, linear and stitch layers and the two attention products.

        Equals half of what ``torch.utils.flop_counter.FlopCounterMode`` counts on the built model, exactly.
        The papers print such a number as "FLOPs"; see ``macs_fvcore`` for the convention they counted with.
        """
        parts = self.parts
        layers = sum(part.depth * part.layout.layer_macs for part in parts)
        stitches = sum(self.num_tokens * a.embed_dim * b.embed_dim for a, b in itertools.pairwise(parts))
        head = sum(math.prod(size) for size in self.head_params().values() if len(size) > 1)
        return parts[0].layout.macs + layers + stitches + head

    def macs_fvcore(self) -> int:
        """``macs`` as fvcore counts them: every LayerNorm adds 5 per element. The papers' "FLOPs (G)"."""
        norms = sum(2 * part.depth * part.embed_dim for part in self.parts)
        final = self.parts[-1].embed_dim if self.norm_params() else 0
        return self.macs() + 5 * self.num_tokens * (norms + final)

    # -- the model -----------------------------------------------------------------------------------

    def timm_kwargs(self) -> dict[str, Any]:
        """Arguments for the timm model, JSON-serialisable so that timm can store them."""
        return {
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "mlp_ratio": self.mlp_ratio,
            "class_token": self.class_token,
            "global_pool": "token" if self.class_token else "avg",
            "fc_norm": self.ending == "official",
        }

    def _text(self) -> str:
        """What ``str`` says besides the layers."""
        token = ", class token" if self.class_token else ""
        return f"patch {self.patch_size}, {self.img_size} px, {self.num_classes} classes{token}"


@dataclass(frozen=True, slots=True)
class ViTShape(ShapeBase):
    """The size of one plain Vision Transformer, in timm's terms.

    Attributes:
        embed_dim: Width D of the tokens; must be divisible by ``num_heads``.
        depth: Number of layers.
        num_heads: Attention heads; ``embed_dim // num_heads`` is the head width.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        patch_size: Side of a square patch in pixels.
        img_size: Side of the square input image in pixels; must be divisible by ``patch_size``.
        in_chans: Image channels.
        num_classes: Outputs of the linear head; 0 means no head.
        class_token: Whether a class token is prepended and read out. Off by default: TLEG and SWS average
            the patch tokens (the authors' code, and 27 of 27 FLOPs entries of their tables).
        ending: ``aligned`` applies the final norm to every token and then averages, as the auxiliary model
            does, so that a descendant equals the auxiliary model; ``official`` averages first and then
            applies the norm (timm's ``fc_norm``), as the authors' descendants do.
        norm_eps: Epsilon of every LayerNorm: 1e-6 as timm's ViTs and the authors' descendants, or 1e-5 as the authors'
            auxiliary models really have (TLEG's and SWS's code) and the towers of CLIP.
        arch: Timm's name of another architecture than the plain ViT, such as ``vit_small_patch14_reg4_dinov2``. It says
            itself what ``ARCH_SAYS`` lists: those fields must have their defaults. ``from_dict`` takes the
            architecture's own sizes where none are given.
        arch_args: Further arguments of that architecture, as in ``timm.create_model``.

    Raises:
        ShapeError: If the numbers do not describe a Vision Transformer.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    class_token: bool = False
    ending: Ending = "aligned"
    norm_eps: float = NORM_EPS
    arch: str = ""
    arch_args: Arguments = ()

    def __post_init__(self) -> None:
        self._check_arch()
        for name in ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "in_chans"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ShapeError(f"shape: {name} must be a positive integer, not {value!r}")
            if value > (most := MAX_DEPTH if name == "depth" else MAX_WIDTH):
                raise ShapeError(f"shape: {name} {value} is more than {most}; check it for a typing error")
        if not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise ShapeError(f"shape: num_classes must be an integer of 0 or more, not {self.num_classes!r}")
        if not isinstance(self.mlp_ratio, (int, float)) or not 0 < self.mlp_ratio < 1e6:
            raise ShapeError(f"shape: mlp_ratio must be a positive number, not {self.mlp_ratio!r}")
        if self.hidden_dim < 1:
            raise ShapeError(f"shape: mlp_ratio {self.mlp_ratio} of embed_dim {self.embed_dim} leaves the MLP no width")
        if not isinstance(self.class_token, bool):
            raise ShapeError(f"shape: class_token must be true or false, not {self.class_token!r}")
        if self.embed_dim % self.num_heads:
            divisors = (h for h in range(1, self.embed_dim + 1) if self.embed_dim % h == 0)
            close = min(divisors, key=lambda h: abs(h - self.num_heads))
            raise ShapeError(
                f"shape: embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; "
                f"the nearest number of heads that divides it is {close}"
            )
        if self.img_size % self.patch_size:
            raise ShapeError(
                f"shape: img_size {self.img_size} is not divisible by patch_size {self.patch_size}; "
                f"use {self.img_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        if self.ending not in get_args(Ending):
            raise ShapeError(f"shape: unknown ending '{self.ending}'{nearest(str(self.ending), get_args(Ending))}")
        if (tokens := self.grid_size**2 + int(self.class_token)) > MAX_TOKENS:
            raise ShapeError(
                f"shape: {tokens} tokens are more than {MAX_TOKENS}; check img_size and patch_size for a typing error"
            )
        if self.norm_eps not in ARCHITECTURES:
            raise ShapeError(f"shape: norm_eps must be 1e-6 or 1e-5, which timm can name, not {self.norm_eps!r}")
        if self.class_token and self.ending == "official":
            raise ShapeError("shape: ending 'official' averages the tokens, so it needs class_token false")

    def _check_arch(self) -> None:
        if not isinstance(self.arch, str):
            raise ShapeError(f"shape: arch must be timm's name of an architecture, not {self.arch!r}")
        given = self.arch_args
        if not isinstance(given, Mapping) and not (isinstance(given, tuple) and all(len(pair) == 2 for pair in given)):
            raise ShapeError(f"shape: arch_args must be a mapping of timm's arguments, not {given!r}")
        args = {str(name): hashable(value) for name, value in dict(given).items()}
        object.__setattr__(self, "arch_args", tuple(sorted(args.items())))
        if not self.arch:
            if args:
                raise ShapeError("shape: arch_args are arguments of an arch; name one")
            return
        for name in ARCH_SAYS:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ShapeError(f"shape: {self.arch} says {name} itself; leave it out, or see shape.arch_args")
        if own := [name for name in self.__slots__ if name in args and name not in ARCH_SAYS]:
            raise ShapeError(f"shape: {own[0]} is a size; write shape.{own[0]}, not shape.arch_args.{own[0]}")

    # -- making shapes -------------------------------------------------------------------------------

    @classmethod
    def named(cls, name: str, **changes: Any) -> ViTShape:
        """The shape of a name in ``NAMED``, with ``changes`` of its fields; ``ShapeError`` if there is none."""
        if name not in NAMED:
            raise ShapeError(f"shape: unknown name '{name}'{nearest(name, NAMED)}")
        return cls.from_dict({**NAMED[name], **changes})

    @classmethod
    def from_dict(cls, fields: str | Mapping[str, Any] | ViTShape) -> ViTShape:
        """Builds a shape from a name, or from a mapping that may hold ``named`` and fields that differ."""
        if isinstance(fields, ViTShape):
            return fields
        if isinstance(fields, str):
            return cls.named(fields)
        if not isinstance(fields, Mapping):
            raise ShapeError(f"shape: must be a name or a mapping of fields, not {fields!r}")
        fields = dict(fields)
        if "named" in fields:
            return cls.named(fields.pop("named"), **fields)
        refuse_unknown(fields, [*cls.__slots__, "named"], "shape")
        if fields.get("arch") and not fields.keys() >= set(SIZES):
            from learngene.vits.timm_layout import own_sizes

            given = {name: value for name, value in fields.items() if name in SIZES}
            fields = own_sizes(fields["arch"], {**dict(fields.get("arch_args", {})), **given}) | fields
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of the class: those that the architecture leaves open."""
        absent = ARCH_SAYS if self.arch else ("arch", "arch_args")
        fields = {name: value for name, value in ShapeBase.to_dict(self).items() if name not in absent}
        return {**fields, "arch_args": dict(self.arch_args)} if self.arch else fields

    @property
    def size(self) -> str:
        """Layers, width and heads in words, which tell shapes of one gene apart."""
        return f"{self.depth} layers x {self.embed_dim} ({self.num_heads} heads)"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP, truncated as timm does."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The shape as a path of a pool: one segment with all its blocks."""
        return (Segment(self.embed_dim, self.num_heads, 1, self.depth),)

    @property
    def path(self) -> str:
        """The segment as text, such as ``192:1-6``."""
        return str(self.segments[0])

    @property
    def parts(self) -> list[ViTShape]:
        """The shape itself."""
        return [self]

    # -- parameters and multiply-adds ----------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Its parts: of a plain ViT in closed form, of another architecture as timm or a gene file says."""
        if self.arch:
            return arch_layout(self._key())
        return plain_layout(
            width=self.embed_dim,
            hidden=self.hidden_dim,
            patch_size=self.patch_size,
            grid=self.grid_size,
            in_chans=self.in_chans,
            class_token=self.class_token,
            norm=self.norm_name,
        )

    def tell(self, layout: Layout, *, proved: bool) -> None:
        """Takes over the layout that a gene file tells of another architecture.

        Raises:
            ShapeError: If timm is known to say otherwise; if ``proved``, timm is asked, which imports torch.
        """
        (refuse_other if proved else tell_layout)(self._key(), layout)

    def _key(self) -> Key:
        """What decides the layout of another architecture."""
        given = {name: value for name, value in self.timm_kwargs().items() if name not in ("depth", "num_classes")}
        return self.arch, tuple(sorted(given.items()))

    @property
    def norm_name(self) -> str:
        """A plain ViT's name of the final norm: it depends on whether it comes before or after the pooling."""
        return "fc_norm" if self.ending == "official" else "norm"

    def stem_params(self) -> Sizes:
        """Class token, positions, patch projection, and whatever else comes before the layers."""
        return dict(self.layout.stem)

    def layer_params(self) -> Sizes:
        """The parameters of one layer."""
        return dict(self.layout.layer)

    def module_params(self) -> dict[str, tuple[str, ...]]:
        """The parameters of one layer by module: ``msa``, ``mlp`` and ``ln``."""
        return self.layout.modules() if self.arch else MODULE_PARAMS

    def norm_params(self) -> Sizes:
        """Scale and shift of the final norm, and whatever else stands between the layers and the head."""
        return dict(self.layout.tail)

    def head_params(self) -> Sizes:
        """The linear head; empty without classes."""
        return {name: (self.num_classes, *size[1:]) for name, size in self.layout.head.items() if self.num_classes}

    def macs_fvcore_expansion(self) -> int:
        """``macs_fvcore`` plus one multiply-add per layer parameter for the sums of equation 1 (TLEG).

        SWS Table 5 prints 17.6 G for TLEG's Aux-B, which only this convention (or a class token) gives.
        """
        return self.macs_fvcore() + self.depth * self.layer_size()

    def macs_thop(self) -> int:
        """Multiply-adds as thop counts them: 4 per LayerNorm element, no attention products. LSAMD's "FLOPs (G)"."""
        norms, size = 2 * self.depth + 1, self.num_tokens * self.embed_dim
        return self.macs() - self.depth * 2 * self.num_tokens * size + 4 * size * norms

    def layer_size(self) -> int:
        """Number of parameters of one layer."""
        return sum(math.prod(shape) for shape in self.layer_params().values())

    # -- the model -----------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """Timm's name of the model; of a plain ViT see ``ARCHITECTURES``."""
        return self.arch or ARCHITECTURES[self.norm_eps]

    def timm_kwargs(self) -> dict[str, Any]:
        """Arguments for timm's ``architecture``, JSON-serialisable so that timm can store them."""
        if self.arch:
            return {name: getattr(self, name) for name in self.__slots__ if name in SIZES} | dict(self.arch_args)
        size = {"embed_dim": self.embed_dim, "depth": self.depth, "num_heads": self.num_heads}
        # The towers of CLIP have a norm before the layers.
        return ShapeBase.timm_kwargs(self) | size | ({} if self.norm_eps == NORM_EPS else {"pre_norm": False})

    def skeleton(self, **parts: Any) -> VisionTransformer:
        """The timm model of this shape with parameters on the meta device: without memory or initialisation.

        Modules in ``parts`` replace a plain ViT's own, for example ``attn_layer``.
        """
        import torch
        from timm.layers import LayerNorm
        from timm.models.vision_transformer import VisionTransformer

        from learngene.vits.skeleton import SkipInit

        if self.arch:
            from learngene.vits.timm_layout import arch_model

            return arch_model(self.arch, self.timm_kwargs() | parts)
        arguments = self.timm_kwargs() | {"weight_init": "skip", "norm_layer": partial(LayerNorm, eps=self.norm_eps)}
        with SkipInit():
            if not parts:  # telling timm is faster than telling torch, which then looks at every operation
                return VisionTransformer(**arguments, device="meta")
            with torch.device("meta"):
                return VisionTransformer(**arguments, **parts)

    def __str__(self) -> str:
        return (f"{self.arch}: " if self.arch else "") + f"{self.size}, {self._text()}"
