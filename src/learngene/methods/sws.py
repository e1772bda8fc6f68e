"""SWS: Stage-wise Weight Sharing (Xia et al., IJCAI 2024).

The auxiliary model has M stages; stage m applies one layer L_m times (equation 1), so the learngene is M layers. A
descendant's layers are copies of them, every stage at its own place, either cyclically or randomly assigned.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, require_choice
from learngene.methods.combination import LayerCopies, permutation, shares
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

Order = str | Sequence[int]
ORDERS = ("front-mid-last", "front-last-mid")
ASSIGNMENTS = ("cyclic", "random", "as-trained")


@dataclass(frozen=True)
class SWS(LayerCopies):
    """Stages of one shared layer each.

    Attributes:
        stages: Layers of the auxiliary model per stage, front to last; their sum is its depth. The default is the
            paper's balanced MS-WS6 (Table 5); any other assignment is allowed, for example 1,4,1,1,4,1.
    """

    stages: tuple[int, ...] = (3, 3, 4, 3, 3)

    name: ClassVar[str] = "sws"
    title: ClassVar[str] = "Stage-wise Weight Sharing"
    paper: ClassVar[str] = "Xia et al., IJCAI 2024"
    distillation: ClassVar[str] = "sws-official"
    options: ClassVar[Mapping[str, str]] = {
        "order": "which stages repeat first: front-mid-last (default), front-last-mid, or a list of all stages",
        "assign": "cyclic (default), random (sorted, every stage present), or as-trained (auxiliary depth only)",
        "assign_seed": "of the random assignment; default 0",
    }

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """The stages must add up to the auxiliary model's depth."""
        if sum(self.stages) != auxiliary.depth:
            raise ShapeError(
                f"sws: stages {','.join(map(str, self.stages))} add up to {sum(self.stages)} layers, "
                f"but the auxiliary shape has depth {auxiliary.depth}"
            )

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Depths below the number of stages are undefined in the paper and refused."""
        super().refuse(auxiliary, shape, **options)
        self.stage_of_layer(shape.depth, **options)

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """One layer per stage."""
        return [f"stage{m}" for m in range(len(self.stages))]

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """Equation 1: every layer is its stage's layer."""
        return [f"stage{m}" for m in self.stage_of_layer(shape.depth, **options)]

    # -- section 3.3: initialisation strategy and order ------------------------------------------------

    def stage_of_layer(
        self, depth: int, order: Order | None = None, assign: str | None = None, assign_seed: int = 0
    ) -> list[int]:
        """The stage that feeds each layer, in ascending order: the papers' layer string.

        Args:
            depth: Layers of the descendant.
            order: Stages in the order in which they get one of the ``depth mod M`` extra layers.
            assign: ``cyclic``, ``random`` or ``as-trained``. Without any option, the auxiliary model's own depth is
                laid out as trained (so that this descendant is the auxiliary model) and any other one cyclically.
            assign_seed: Of the random assignment; its own name, because ``seed`` is that of fresh tensors.

        Raises:
            ShapeError: If there are fewer layers than stages, or an option has no meaning.
        """
        count = len(self.stages)
        if depth < count:
            raise ShapeError(
                f"sws: depth {depth} is below the {count} stages of this gene; the smallest depth is {count}"
            )
        if assign is None:
            assign = "as-trained" if order is None and depth == sum(self.stages) else "cyclic"
        require_choice(self.name, "assignment", assign, ASSIGNMENTS)
        if assign == "as-trained":
            if depth != sum(self.stages):
                raise ShapeError(f"sws: 'as-trained' needs the auxiliary depth {sum(self.stages)}, not {depth}")
            repeats = list(self.stages)
        elif assign == "cyclic":  # Table 4
            repeats = list(shares(depth, self.order(order)).values())
        else:
            if not isinstance(assign_seed, int):
                raise ShapeError(f"sws: assign_seed must be an integer, not {assign_seed!r}")
            # Not in the authors' code. Table 4's random row stays far above chance, so the stages cannot be shuffled:
            # how often each is used is drawn, every one at least once, and the stages keep their places.
            draw = random.Random(assign_seed)
            repeats = [1] * count
            for _ in range(depth - count):
                repeats[draw.randrange(count)] += 1
        return [m for m, times in enumerate(repeats) for _ in range(times)]

    def order(self, order: Order | None) -> list[int]:
        """All stages in the order of a name or of a list, checked to be a permutation."""
        return stage_order(self.name, order, len(self.stages))


@dataclass(frozen=True)
class SimpleLG(LayerCopies):
    """The baseline of section 1 and Table 3: the layers of an ordinary model, repeated without having learned to be.

    An M-layer model (5 in the paper) is trained on labels; each of its layers then serves as a stage.
    """

    name: ClassVar[str] = "simple-lg"
    title: ClassVar[str] = "Simple-LG"
    paper: ClassVar[str] = "Xia et al., IJCAI 2024 (baseline)"
    origins: ClassVar[tuple[Origin, ...]] = ("condense", "extract")
    options: ClassVar[Mapping[str, str]] = {"order": SWS.options["order"]}

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """As SWS: no fewer layers than the model has."""
        super().refuse(auxiliary, shape, **options)
        if shape.depth < auxiliary.depth:
            raise ShapeError(f"simple-lg: depth {shape.depth} is below the {auxiliary.depth} layers of this gene")
        self._order(auxiliary, **options)

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The cyclic assignment of SWS with every layer a stage."""
        repeats = shares(shape.depth, self._order(auxiliary, **options))
        return [f"layer{layer}" for layer, times in repeats.items() for _ in range(times)]

    def _order(self, auxiliary: ViTShape, order: Order | None = None) -> list[int]:
        return stage_order(self.name, order, auxiliary.depth, "layers")


def stage_order(method: str, order: Order | None, count: int, stages: str = "stages") -> list[int]:
    """All of ``count`` stages, those first that get one layer more; None stands for ``front-mid-last``."""
    if order is None or order == "front-mid-last":
        return list(range(count))
    if order == "front-last-mid":
        # From the ends inward: 0, M-1, 1, M-2, ...; the paper shows it for M = 3 (Figure 3c).
        return [m // 2 if m % 2 == 0 else count - 1 - m // 2 for m in range(count)]
    if isinstance(order, str) and not order[:1].isdecimal():
        require_choice(method, "order", order, ORDERS)
    return permutation(f"{method}: order", order, range(count), stages)
