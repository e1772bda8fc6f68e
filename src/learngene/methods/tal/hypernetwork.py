"""Graph hypernetworks: GHN-3 (Knyazev et al., 2023), LoGAH (Zhou et al., 2024) and TAL (anonymous, under review).

The gene is a network that reads the graph of a ViT, and for TAL a task, and predicts the ViT's weights. Its encoder is
what TAL calls the learngene. Here is what such a gene consists of, and which shapes it can make; how it predicts is in
``graph``, ``encoder``, ``low_rank``, ``dense`` and ``predict``. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Making, Method, is_count, refuse_arch, require_choice, require_plain
from learngene.methods.tal.ranges import Size, checked_shapes, limits, sizes_of
from learngene.methods.tal.sizes import (
    DEGREES,
    EDGES,
    KERNEL,
    LARGEST,
    NODE_TYPES,
    PATHS,
    SIZES,
    SPATIAL,
    Decoder,
    Layout,
    NetworkConfig,
)
from learngene.system.errors import ShapeError
from learngene.vits.shape import MAX_DEPTH, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Hypernetwork(Method):
    """What all graph hypernetworks have in common.

    Attributes:
        size: Names the five numbers that follow, see ``SIZES``; each may be given instead.
        hid: Width of the encoder.
        encoder_layers: Its layers.
        encoder_heads: Its attention heads.
        rank: Of the low-rank decoder's factors (LoGAH's r).
        expansion: Largest number of rows of a factor (LoGAH's K). It is part of the function, not only its size.
        max_shape: Rows and columns beyond this are copies; 2048 as published, ``hid`` for the dense decoder.
        layout: How latents become factors: ``official`` reinterprets memory as the authors' code does, so that a
            weight with c rows uses ceil(c r / K) of the r latent rows; ``transposed`` uses all, as the idea has it.
        task_dim: Width of task embeddings, the ancestry's feature width; 0 leaves task layers out.
        attention_node: A node for the softmax of attention, which graphs traced by older PyTorch had.
        vocabulary: The number of classes that has a row of its own among the channel counts; 1000 in the code.
        architectures: What is trained: a name in ``ranges.RANGES``, or a list of depth, embed_dim and num_heads.
    """

    size: str = "published"
    hid: int | None = None
    encoder_layers: int | None = None
    encoder_heads: int | None = None
    rank: int | None = None
    expansion: int | None = None
    max_shape: int | None = None
    layout: Layout = "official"
    task_dim: int = dataclasses.field(default=0, metadata={"minimum": 0})
    attention_node: bool = False
    vocabulary: int = 1000
    architectures: str | tuple[Size, ...] = "vits-1k"

    decoder: ClassVar[Decoder] = "low-rank"
    making: ClassVar[Making] = "hyper"
    kept_fields: ClassVar[tuple[str, ...]] = ()
    changes: ClassVar[tuple[str, ...]] = ("its position tables were not laid out patch by patch, as the authors' are",)

    def __post_init__(self) -> None:
        require_choice(self.name, "size", self.size, SIZES)
        for name, value in SIZES[self.size].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.max_shape is None:
            object.__setattr__(self, "max_shape", self.hid if self.decoder == "dense" else 2048)
        for name in (*SIZES["published"], "max_shape"):
            if not is_count(getattr(self, name)):
                raise ShapeError(f"{self.name}: {name} must be a positive integer, not {getattr(self, name)!r}")
        super().__post_init__()
        if self.config.encoder_layers > MAX_DEPTH:
            raise ShapeError(f"{self.name}: encoder_layers {self.encoder_layers} is more than {MAX_DEPTH}")
        hid, heads = self.config.hid, self.config.encoder_heads
        if hid % 4 or hid % heads:
            raise ShapeError(f"{self.name}: hid {hid} must be divisible by 4 and by encoder_heads {heads}")
        require_choice(self.name, "layout", self.layout, ("official", "transposed"))
        object.__setattr__(self, "architectures", checked_shapes(self.architectures))
        if self.task_dim and not self.task_aware:
            raise ShapeError(f"{self.name}: has no task layers; leave task_dim out, or use method tal")

    @functools.cached_property
    def config(self) -> NetworkConfig:
        """What fixes the function that the gene's tensors stand for; what it is trained on is not in it."""
        return NetworkConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(NetworkConfig)})

    # -- the gene's tensors --------------------------------------------------------------------------------------

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """The hypernetwork's parameters, whatever the auxiliary shape; stem, norm and head are predicted, too."""
        hid, heads = self.config.hid, self.config.encoder_heads
        out: dict[str, tuple[int, ...]] = {
            "encoder.types": (NODE_TYPES, hid),
            "encoder.channels": (len(self.config.channels) + 1, hid // 4),
            "encoder.spatial": (len(SPATIAL) + 1, hid // 4),
            "encoder.in_degrees": (DEGREES, hid),
            "encoder.out_degrees": (DEGREES, hid),
            "encoder.input_distances": (PATHS, hid),
            "encoder.distances": (EDGES, hid),
            **_linear("encoder.edge1", 2 * hid, hid),
            **_linear("encoder.edge2", hid, heads),
        }
        for layer in range(self.config.encoder_layers):
            name = f"encoder.layers.{layer}"
            out |= _norm(f"{name}.norm1", hid)
            if self.task_dim:
                out |= _linear(f"{name}.scale", self.task_dim, hid) | _linear(f"{name}.shift", self.task_dim, hid)
            out |= {f"{name}.qkv.weight": (3 * hid, hid)}
            out |= _linear(f"{name}.proj", hid, hid) | _norm(f"{name}.norm2", hid)
            out |= _linear(f"{name}.fc1", hid, 4 * hid) | _linear(f"{name}.fc2", 4 * hid, hid)
        return out | _norm("encoder.norm", hid) | self.decoder_tensors() | {"class_position": (LARGEST,)}

    def decoder_tensors(self) -> dict[str, tuple[int, ...]]:
        """Those of the decoder."""
        hid, rank = self.config.hid, self.config.rank
        return {
            **_linear("decoder.fc1", hid, 4 * hid),
            **_linear("decoder.fc2", 4 * hid, 8 * hid),
            **_linear("decoder.fc3", 8 * hid, 2 * rank * rank),
            **_linear("decoder.expand", rank, self.config.expansion),
        }

    def fixed(self, name: str) -> bool:
        """The class token's position is not predicted, in the authors' code either: one random row, never trained."""
        return name == "class_position"

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """Tables: truncated normal of deviation hid^-0.5. Linear layers: PyTorch's default. Task layers: zero."""
        import torch

        value = torch.empty(shapes[name])
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        if name == "class_position":
            return value.normal_(std=0.02, generator=generator)
        if part.startswith("norm"):
            return value.fill_(1.0 if kind == "weight" else 0.0)
        if part in ("scale", "shift"):
            return value.zero_()
        if module == "encoder":
            return torch.nn.init.trunc_normal_(value, std=self.config.hid**-0.5, generator=generator)
        bound = 1 / math.sqrt(math.prod(shapes[f"{module}.weight"][1:]))
        return self._scaled(part, kind, value.uniform_(-bound, bound, generator=generator))

    def _scaled(self, part: str, kind: str, value: Tensor) -> Tensor:
        """The start of a linear layer, for decoders that begin in another way."""
        return value

    # -- shapes ----------------------------------------------------------------------------------------------------

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """The auxiliary shape is the default of what is predicted, so it must be possible."""
        self._refuse_shape(auxiliary)

    def refuse_trained(self, auxiliary: ViTShape) -> None:
        """Raises ``ShapeError`` if training would draw a size that cannot be predicted."""
        for depth, width, heads in sizes_of(self.architectures):
            self._refuse_shape(auxiliary.replace(depth=depth, embed_dim=width, num_heads=heads))

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any plain ViT with a class token can be made whose widest weight the decoder can express."""
        super().refuse(auxiliary, shape, **options)
        self._refuse_shape(require_plain(shape))

    def _refuse_shape(self, shape: ViTShape) -> None:
        refuse_arch(self.name, shape)
        if not shape.class_token:
            raise ShapeError(f"{self.name}: predicts ViTs with a class token; set shape.class_token=true")
        if shape.num_classes > LARGEST:
            raise ShapeError(
                f"{self.name}: {shape.num_classes} classes are beyond its vocabulary; use {LARGEST} or less, or "
                "num_classes=0 and a head of your own"
            )
        if shape.embed_dim > LARGEST:
            raise ShapeError(
                f"{self.name}: embed_dim {shape.embed_dim} is beyond its vocabulary; use {LARGEST} or less"
            )
        if self.decoder == "low-rank":
            self._refuse_expansion(shape)

    def _refuse_expansion(self, shape: ViTShape) -> None:
        """K >= max(o kh, i kw, 2n, d s): else a factor has too few rows."""
        expansion = self.config.expansion
        widest = max(self.config.rounded(size) for size in (3 * shape.embed_dim, shape.hidden_dim, shape.num_classes))
        patch = min(shape.embed_dim, self.config.max_shape) * shape.patch_size
        need = max(2 * widest, patch, shape.embed_dim * shape.grid_size)
        if need > expansion:
            raise ShapeError(
                f"{self.name}: factors of {expansion} rows are too small for the widest weight of {shape}, which needs "
                f"{need}; set settings.expansion={need} or more when the gene is made"
            )

    def cautions(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """A shape outside what the hypernetwork was trained for can be predicted, but nobody has seen how well."""
        shape = require_plain(shape)
        depths, widths = limits(self.architectures)
        out = []
        for what, value, (low, high) in (("depth", shape.depth, depths), ("embed_dim", shape.embed_dim, widths)):
            if not low <= value <= high:
                out.append(f"{what} {value} is outside the {low} to {high} that this hypernetwork was trained for")
        for what in ("patch_size", "img_size", "mlp_ratio", "in_chans"):
            have, want = getattr(auxiliary, what), getattr(shape, what)
            if have != want:
                out.append(f"{what} {want} is not the {have} that this hypernetwork was trained for")
        if self.task_aware and options.get("task") is None:
            out.append("no task is given, so the weights are those of no task in particular")
        return out

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """All widths and heads that were trained."""
        trained = {(width, heads) for _, width, heads in sizes_of(self.architectures)}
        return sorted(trained | {(auxiliary.embed_dim, auxiliary.num_heads)})

    def shapes(self, auxiliary: ViTShape, base: ViTShape) -> Iterator[Shape]:
        """All trained sizes, for ``plan``."""
        for depth, width, heads in sizes_of(self.architectures):
            yield base.replace(depth=depth, embed_dim=width, num_heads=heads)

    def beyond(self, auxiliary: ViTShape, shape: Shape) -> bool:
        """All sizes that ``plan`` lists were trained."""
        return False

    def label(self, auxiliary: ViTShape, shape: Shape) -> str:
        """Depth, width and heads, all of which differ."""
        return f"depth {shape.depth:3d}  width {shape.embed_dim:4d}  heads {require_plain(shape).num_heads:2d}"

    def flags(self, auxiliary: ViTShape, shape: Shape) -> str:
        """Depth, width and heads."""
        return f"--depth {shape.depth} --embed-dim {shape.embed_dim} --num-heads {require_plain(shape).num_heads}"

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """Every layer is predicted."""
        return ["predicted"] * shape.depth

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """All weights of one shape, for one task."""
        from learngene.methods.tal.predict import predict

        task = options.get("task")
        return predict(self.config, tensors, [require_plain(shape)], None if task is None else task[None])[0]


def _linear(name: str, wide_in: int, wide_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (wide_out, wide_in), f"{name}.bias": (wide_out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@dataclass(frozen=True)
class GHN3(Hypernetwork):
    """Decodes a block of weights per tensor and tiles it: the baseline before LoGAH."""

    name: ClassVar[str] = "ghn3"
    title: ClassVar[str] = "Graph HyperNetwork 3"
    paper: ClassVar[str] = "Knyazev et al., ICML 2023"
    decoder: ClassVar[Decoder] = "dense"

    def decoder_tensors(self) -> dict[str, tuple[int, ...]]:
        """A 16 x 16 kernel of 4 hid channels, then m x m weights per position; vectors and heads of their own."""
        hid, most = self.config.hid, self.config.max_shape
        return {
            "decoder.fc.weight": (4 * hid * KERNEL * KERNEL, hid),
            "decoder.fc.bias": (4 * hid * KERNEL * KERNEL,),
            **_linear("decoder.conv1", 4 * hid, 8 * hid),
            **_linear("decoder.conv2", 8 * hid, most * most),
            **_linear("decoder.classes", most, self.vocabulary),
            **_linear("decoder.vector1", hid, 2 * hid),
            **_linear("decoder.vector2", 2 * hid, 2 * most),
            **_linear("decoder.class_bias", most, self.vocabulary),
        }

    def _scaled(self, part: str, kind: str, value: Tensor) -> Tensor:
        if part not in ("conv2", "vector2", "classes", "class_bias"):
            return value
        return value.zero_() if kind == "bias" else value.div_(5)


@dataclass(frozen=True)
class LoGAH(Hypernetwork):
    """Decodes every tensor as a product of two low-rank factors, so that large ones are not copies of small ones."""

    name: ClassVar[str] = "logah"
    title: ClassVar[str] = "Low-rank Graph Hypernetwork"
    paper: ClassVar[str] = "Zhou et al., 2024"


@dataclass(frozen=True)
class TAL(Hypernetwork):
    """LoGAH with task layers: every encoder layer scales and shifts its first norm's output by the task (eq. 2, 3).

    Attributes:
        task_dim: Width of the ancestry's features; 768 of the paper's ViT-B.
    """

    task_dim: int = 768

    name: ClassVar[str] = "tal"
    title: ClassVar[str] = "Task-Aware Learngene"
    paper: ClassVar[str] = "anonymous, under review"
    task_aware: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str]] = {
        "task": "name of a task that the gene was tuned on; none leaves the task layers out"
    }


def hypernetwork_of(method: Method) -> Hypernetwork:
    """The method as the hypernetwork that it is, where ``making`` says ``hyper``."""
    assert isinstance(method, Hypernetwork)
    return method
