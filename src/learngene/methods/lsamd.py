"""LSAMD: Learngene Search Across Multiple Datasets (Shi et al., 2026, arXiv 2605.08209).

Which blocks of a trained ViT more than half of many data sets use as they are: those blocks, untouched, are the gene.
Adjacent ones form a stage, and a descendant repeats blocks within the stages (section "Building Variable-Sized
Des-Nets").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, Part, require_choice
from learngene.methods.combination import LayerCopies, permutation, shares
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

EXPANSIONS = ("neighbour", "cyclic", "spread")
PLACES = ("first", "middle", "last")
DEFAULT_PRIORITY = "last-middle-first"
"""The best of the paper's Table 4."""

Priority = str | int | Sequence[int]


@dataclass(frozen=True)
class LSAMD(LayerCopies):
    """Selected blocks of the ancestry.

    Attributes:
        layers: The selected blocks, counted from 1 as in the paper, ascending. The default is what the paper finds in
            DeiT-B with twelve data sets.
        stem: Whether patch projection, class token, position embedding and final norm are carried too. The paper
            counts all but class token and position embedding in its 36.11 M stored parameters.
    """

    layers: tuple[int, ...] = (1, 4, 5, 7, 8)
    stem: bool = True

    name: ClassVar[str] = "lsamd"
    title: ClassVar[str] = "Learngene Search Across Multiple Datasets"
    paper: ClassVar[str] = "Shi et al., 2026"
    origins: ClassVar[tuple[Origin, ...]] = ("extract", "search")
    options: ClassVar[Mapping[str, str]] = {
        "expansion": "neighbour (default; a stage repeats its last block), cyclic (it starts again) or spread "
        "(every block repeats, the last one first)",
        "priority": "which stages get extra layers first: last-middle-first (default), any of last, middle and "
        "first joined by -, or a list of all stages counted from 1",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.layers) != (right := sorted(set(self.layers))):
            fault = "twice" if len(right) < len(self.layers) else "out of order"
            raise ShapeError(f"lsamd: layers {list(self.layers)} name a block {fault}; write {right}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The head is always new: every descendant has a task of its own."""
        return ("stem", "norm") if self.stem else ()

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """The ancestry must have the blocks."""
        if self.layers[-1] > auxiliary.depth:
            raise ShapeError(
                f"lsamd: the ancestry has {auxiliary.depth} blocks, so there is no block {self.layers[-1]}"
            )

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Depths below the number of blocks are undefined in the paper and refused."""
        super().refuse(auxiliary, shape, **options)
        self.block_of_layer(shape.depth, **options)

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """The blocks, under their numbers in the ancestry, counted from 0."""
        return [f"layer{block - 1}" for block in self.layers]

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """Every layer is a copy of a block."""
        return [f"layer{block - 1}" for block in self.block_of_layer(shape.depth, **options)]

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The block of every layer, counted from 1 as in the settings."""
        return [f"base block {block}" for block in self.block_of_layer(shape.depth, **options)]

    # -- section "Building Variable-Sized Des-Nets" ----------------------------------------------------

    def stages(self) -> list[list[int]]:
        """Maximal runs of adjacent blocks, for example [1], [4, 5], [7, 8]."""
        out: list[list[int]] = []
        for block in self.layers:
            if out and block == out[-1][-1] + 1:
                out[-1].append(block)
            else:
                out.append([block])
        return out

    def block_of_layer(
        self, depth: int, expansion: str = "neighbour", priority: Priority = DEFAULT_PRIORITY
    ) -> list[int]:
        """The block that feeds each layer, counted from 1.

        Args:
            depth: Layers of the descendant.
            expansion: ``neighbour``, ``cyclic`` or ``spread``: which blocks of a stage repeat.
            priority: In which order stages get an extra layer each, over and over: the paper's 7-layer example shows
                that no stage gets a second one before all had their first.

        Raises:
            ShapeError: If there are fewer layers than blocks, or an option has no meaning.
        """
        require_choice(self.name, "expansion", expansion, EXPANSIONS)
        order, stages = self.order(priority), self.stages()
        extra = depth - len(self.layers)
        if extra < 0:
            raise ShapeError(
                f"lsamd: depth {depth} is below the {len(self.layers)} blocks of this gene; "
                f"the smallest depth is {len(self.layers)}"
            )
        more = shares(extra, order).values()
        return [block for stage, count in zip(stages, more, strict=True) for block in _grown(stage, count, expansion)]

    def order(self, priority: Priority) -> list[int]:
        """All stages, counted from 1, in the order of a name or of a list.

        The paper names the order for three stages. Of any other number, ``middle`` are all between the first and the
        last, later ones first.
        """
        count = len(self.stages())
        places = {"first": [1], "middle": list(range(count - 1, 1, -1)), "last": [count]}
        if isinstance(priority, str) and not priority[:1].isdigit():
            words = priority.split("-")
            for word in words:
                if word not in PLACES or words.count(word) > 1:
                    raise ShapeError(
                        f"lsamd: unknown priority '{priority}'; join last, middle and first by -, each once at most, "
                        "or list all stages"
                    )
            named = [stage for word in (*words, *DEFAULT_PRIORITY.split("-")) for stage in places[word]]
            return list(dict.fromkeys(named))
        return permutation("lsamd: priority", priority, range(1, count + 1))


def _grown(stage: Sequence[int], extra: int, expansion: str) -> list[int]:
    """A stage with so many extra layers; Figure 3b of the paper, and ``spread``, the other reading of its text."""
    if expansion == "cyclic":
        return [stage[k % len(stage)] for k in range(len(stage) + extra)]
    if expansion == "neighbour":
        return [*stage, *[stage[-1]] * extra]
    rounds, rest = divmod(extra, len(stage))
    return [block for k, block in enumerate(stage) for _ in range(1 + rounds + (k >= len(stage) - rest))]
