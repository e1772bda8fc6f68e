"""LeTs: learnable transformation of a narrow ViT into wider and deeper ones (Xia et al., NeurIPS 2024).

The gene is a whole ViT of width d with K layers, width matrices F and depth coefficients G, all trained together as one
auxiliary model of width D and depth L. New neurons are appended to the old ones, as mixtures of them:

    E(F) = [ I ; F ],    wide(k, W) = E_out W E_in^T,    wide(k, b) = E_out b        for each source layer k
    layer i = G[r, 0] * wide(2p) + G[r, 1] * wide(2p + 1)

with pair p and row r of layer i, and a G for the weights and one for the biases of every module. F.embed serves the
whole residual stream, F.q, F.k, F.v and F.ffn belong to a source layer, and the head has a matrix of its own. Positions
are not transformed: they are free at width D, of which a narrower model takes the first channels. A descendant between
d and D takes the first rows of every F, and so needs no data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import ANY_WIDTH, Method, gene_name, refuse_arch, require_choice, require_plain
from learngene.methods.combination import shares
from learngene.methods.cutting import refuse_other_heads
from learngene.methods.sws import ORDERS, stage_order
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODULES = ("norm1", "q", "k", "v", "proj", "norm2", "fc1", "fc2")
"""Of which each has two coefficients for its weights and two for its biases."""

SELECTIONS = ("continuous", "top-l1", "top-l2", "bottom-l1", "bottom-l2")
FREE = ("pos_embed", "cls_token")
"""What has the auxiliary width in the gene."""


@dataclass(frozen=True)
class LeTs(Method):
    """A narrow ViT with matrices for its width and coefficients for its depth.

    Attributes:
        width: Of the narrow ViT, d: whole heads, fewer than the auxiliary model has. 0, the default, stands for half of
            the auxiliary model's heads, the ratio of the paper's 384 to 768.
        sources: Its layers, K: an even number, as every layer is made of two of them.
        share: Layers of the auxiliary model that follow each other with the same coefficients.
        rank: Of the width matrices, which are then products of two; 0 keeps them whole, as the paper does. ALT (an
            ICLR 2026 submission) finds them far from full rank.
    """

    width: int = dataclasses.field(default=0, metadata={"minimum": 0})
    sources: int = 8
    share: int = 2
    rank: int = dataclasses.field(default=0, metadata={"minimum": 0})

    name: ClassVar[str] = "lets"
    title: ClassVar[str] = "LeTs: learnable transformation"
    paper: ClassVar[str] = "Xia et al., NeurIPS 2024"
    distillation: ClassVar[str] = "lets-official"
    kept_fields: ClassVar[tuple[str, ...]] = ANY_WIDTH
    options: ClassVar[Mapping[str, str]] = {
        "selection": "which rows of the width matrices: continuous (default: the first), or those of largest (top-l1, "
        "top-l2) or smallest norm (bottom-l1, bottom-l2)",
        "order": "which coefficients repeat first: middle-first (default), front-mid-last, front-last-mid, or a list "
        "of all rows",
        "layer": "instead of order: for every layer, the layer of the auxiliary model whose two sources it has",
        "coef": "with layer: for every layer, the layer of the auxiliary model whose coefficients it has",
        "outside": "slice also makes models narrower than the narrow ViT, its first channels; repeat also makes models "
        "wider than the auxiliary one, to which the width matrices are applied again",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sources % 2:
            raise ShapeError(f"lets: {self.sources} sources do not come in pairs; use {self.sources + 1}")

    def narrow(self, auxiliary: ViTShape) -> ViTShape:
        """The shape of the narrow ViT."""
        width = self.width or auxiliary.num_heads // 2 * auxiliary.head_dim
        return auxiliary.replace(embed_dim=width, num_heads=max(1, width // auxiliary.head_dim), depth=self.sources)

    # -- which shapes can be made ----------------------------------------------------------------------

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """It must be wider than the narrow ViT by whole heads, and use every pair of sources."""
        refuse_arch(self.name, auxiliary)
        if auxiliary.num_heads == 1:
            raise ShapeError(
                "lets: the auxiliary model must have 2 heads or more, of which the narrow ViT has a part; it has 1"
            )
        half = auxiliary.num_heads // 2 * auxiliary.head_dim
        width = self.width or half
        if width >= auxiliary.embed_dim or width % auxiliary.head_dim:
            raise ShapeError(
                f"lets: width {width} must be below the auxiliary model's {auxiliary.embed_dim} and a multiple of its "
                f"heads' {auxiliary.head_dim}; set another, such as {half}, in settings.width, or leave it out"
            )
        if self.rank > width:
            raise ShapeError(f"lets: rank {self.rank} is beyond width {width}; use {width} or less")
        if auxiliary.depth < self.sources // 2:
            raise ShapeError(
                f"lets: {auxiliary.depth} layers do not use all {self.sources // 2} pairs of sources; use "
                f"{2 * auxiliary.depth} sources or fewer"
            )

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any depth; any number of heads of the gene's width, from the narrow ViT to the auxiliary model."""
        super().refuse(auxiliary, shape, **options)
        shape, outside = require_plain(shape), options.get("outside")
        require_choice(self.name, "selection", options.get("selection", "continuous"), SELECTIONS)
        if outside is not None:
            require_choice(self.name, "outside", outside, ("slice", "repeat"))
        self.feeds(auxiliary, shape, **options)
        refuse_other_heads(self.name, auxiliary, shape)
        narrow = self.narrow(auxiliary).embed_dim
        if shape.embed_dim < narrow and outside != "slice":
            raise ShapeError(
                f"lets: width {shape.embed_dim} is below the narrow ViT's {narrow}; "
                "outside=slice takes its first channels"
            )
        if shape.embed_dim > auxiliary.embed_dim and outside != "repeat":
            raise ShapeError(
                f"lets: width {shape.embed_dim} is beyond the auxiliary model's {auxiliary.embed_dim}; "
                "outside=repeat applies the width matrices again"
            )

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """Every number of heads, the auxiliary model's first; up to twice as many, for option ``outside``."""
        heads = [
            auxiliary.num_heads,
            *range(1, auxiliary.num_heads),
            *range(auxiliary.num_heads + 1, 2 * auxiliary.num_heads + 1),
        ]
        return [(count * auxiliary.head_dim, count) for count in heads]

    def trained_sizes(self, auxiliary: ViTShape) -> dict[str, tuple[int, int]]:
        """The widths from the narrow ViT to the auxiliary model, both of which are trained."""
        return {
            **super().trained_sizes(auxiliary),
            "embed_dim": (self.narrow(auxiliary).embed_dim, auxiliary.embed_dim),
        }

    def cautions(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """What neither the paper nor its code does."""
        narrow = self.narrow(auxiliary).embed_dim
        if narrow <= shape.embed_dim <= auxiliary.embed_dim:
            return []
        return [f"width {shape.embed_dim} is outside {narrow} to {auxiliary.embed_dim}, where nothing was trained"]

    # -- which sources and coefficients feed a layer ---------------------------------------------------

    def rows(self, auxiliary: ViTShape) -> list[int]:
        """How many layers of the auxiliary model have each row of coefficients."""
        return [min(self.share, auxiliary.depth - first) for first in range(0, auxiliary.depth, self.share)]

    def feeds(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[tuple[int, int]]:
        """The pair of sources and the row of coefficients of every layer.

        The authors' table for 8 sources and 16 layers, and their lists for 12 layers, are what comes out for them.
        """
        layer, coef, order = (options.get(name) for name in ("layer", "coef", "order"))
        depth, rows = shape.depth, self.rows(auxiliary)
        if layer is not None or coef is not None:
            if layer is None or coef is None or order is not None:
                raise ShapeError("lets: give layer and coef, or order; layer and coef are two halves of one choice")
            listed = self._listed("coef", coef, auxiliary, depth)
            if off := [number for number in listed if number % self.share]:
                raise ShapeError(
                    f"lets: coef {off[0]} is no layer with coefficients of its own; those are 0, {self.share}, "
                    f"{2 * self.share} and so on"
                )
            pairs = [self._pair(auxiliary, number) for number in self._listed("layer", layer, auxiliary, depth)]
            return list(zip(pairs, (number // self.share for number in listed), strict=True))
        repeats = dict(enumerate(rows))
        if depth < len(rows):
            repeats = dict.fromkeys((i * len(rows) // depth for i in range(depth)), 1)
        elif depth != auxiliary.depth or order is not None:
            repeats = shares(depth, self._order(order, len(rows)))
        return [
            (self._pair(auxiliary, row * self.share + time * rows[row] // times), row)
            for row, times in repeats.items()
            for time in range(times)
        ]

    def _pair(self, auxiliary: ViTShape, layer: int) -> int:
        """Sources 2p and 2p + 1 feed equally many layers of the auxiliary model, front to last."""
        return layer * (self.sources // 2) // auxiliary.depth

    def _order(self, order: Any, count: int) -> list[int]:
        """Rows in the order in which they get one more layer; by default those nearest the middle first."""
        if order is None or order == "middle-first":
            return sorted(range(count), key=lambda row: abs(2 * row - count + 1))
        if isinstance(order, str) and not order[:1].isdecimal():
            require_choice(self.name, "order", order, ("middle-first", *ORDERS))
        return stage_order(self.name, order, count, "rows")

    def _listed(self, what: str, given: Any, auxiliary: ViTShape, depth: int) -> list[int]:
        """As many layers of the auxiliary model as the descendant has, from a list or from text such as 0,1,4."""
        numbers = re.split(r"\s*,\s*", given) if isinstance(given, str) else given
        try:
            listed = [int(str(number)) for number in numbers]
        except (TypeError, ValueError):
            listed = []
        if len(listed) != depth or not all(0 <= number < auxiliary.depth for number in listed):
            raise ShapeError(
                f"lets: {what} {given} must list {depth} layers of the auxiliary model, each of 0 to "
                f"{auxiliary.depth - 1}"
            )
        return listed

    # -- the gene --------------------------------------------------------------------------------------

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """The narrow ViT, with the positions of the auxiliary model, and F and G."""
        narrow, wide = self.narrow(auxiliary), auxiliary.stem_params()
        out = {name: wide[name] if name in FREE else size for name, size in narrow.stem_params().items()}
        out |= super().layer_tensors(narrow) | self._transformation(auxiliary, narrow)
        out |= {gene_name(name): size for name, size in narrow.norm_params().items()}
        return out | narrow.head_params()

    def _transformation(self, auxiliary: ViTShape, narrow: ViTShape) -> dict[str, tuple[int, ...]]:
        residual = (auxiliary.embed_dim - narrow.embed_dim, narrow.embed_dim)
        matrices = {"embed": residual} | ({"head": residual} if auxiliary.num_classes else {})
        for k in range(self.sources):
            matrices |= {f"layer{k}.{part}": residual for part in "qkv"}
            matrices[f"layer{k}.ffn"] = (auxiliary.hidden_dim - narrow.hidden_dim, narrow.hidden_dim)
        out: dict[str, tuple[int, ...]] = {}
        for name, (new, old) in matrices.items():
            factors = {".A": (new, self.rank), ".B": (self.rank, old)} if self.rank else {"": (new, old)}
            out |= {f"F.{name}{factor}": size for factor, size in factors.items()}
        rows = range(len(self.rows(auxiliary)))
        kinds = ("weight", "bias")
        return out | {f"G.row{row}.{module}.{kind}": (2,) for row in rows for module in MODULES for kind in kinds}

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """As the authors' code: new neurons as averages of the old ones, and of each pair almost only one source."""
        import torch

        if not name.startswith(("F.", "G.")):
            return super().initial(name, shapes, generator)
        value = torch.rand(shapes[name], generator=generator)
        if name.startswith("G."):
            row = int(name.split(".")[1].removeprefix("row"))
            value = 0.03 * value
            value[row * self.share % 2] += 1
        return value / value.sum(-1, keepdim=True)

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The sources, the coefficients and, between the two widths, how many neurons are new."""
        narrow = self.narrow(auxiliary).embed_dim
        new = shape.embed_dim - narrow
        width = f", {narrow} wide and {new} new" if new > 0 else f", {shape.embed_dim} of {narrow} wide"
        return [
            f"layer{2 * pair} and layer{2 * pair + 1} by row {row}{width if new else ''}"
            for pair, row in self.feeds(auxiliary, shape, **options)
        ]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Each source at the new width once, and of those the distinct layers."""
        from learngene.methods.widening import Widening

        shape = require_plain(shape)
        feeds = self.feeds(auxiliary, shape, **options)
        used = sorted({source for pair, _ in feeds for source in (2 * pair, 2 * pair + 1)})
        wide = Widening(tensors, self.narrow(auxiliary), shape, used, options.get("selection", "continuous"))
        out = wide.stem(auxiliary)
        out |= {
            f"blocks.{i}.{name}": value for i, layer in enumerate(wide.layers(feeds)) for name, value in layer.items()
        }
        out |= {name: wide.residual(tensors[gene_name(name)]) for name in shape.norm_params()}
        if shape.num_classes == auxiliary.num_classes and shape.num_classes:
            out |= {"head.weight": wide.head(), "head.bias": tensors["head.bias"]}
        return out
