"""TLEG: Transformer as Linear Expansion of learnGene (Xia et al., AAAI 2024).

The learngene is two layers, A and B. Layer l of an L-layer model is

    theta_l = theta_B + (l - 1) / L * theta_A,    l = 1 .. L                        (equation 1)

for the attention (2), the MLP (3) and the layer norms (4), weights and biases alike, in the auxiliary model
(L is its depth) and in every descendant (L is the descendant's depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import require_choice
from learngene.methods.combination import LayerCombination, LayerTerms
from learngene.system.errors import ShapeError
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TLEG(LayerCombination):
    """Linear expansion of two layers.

    Attributes:
        modules: What is linearly expanded (Table 4): any of ``msa``, ``mlp``, ``ln``. The others are ordinary in
            every layer of the auxiliary model; a descendant of another depth starts them fresh.
        first_layer: The first linearly expanded layer, counted from 1 (Table 6 uses 3). Earlier layers are
            ordinary and are copied into descendants; the coefficient counts inside the expanded group.
    """

    modules: tuple[str, ...] = ("msa", "mlp", "ln")
    first_layer: int = 1

    name: ClassVar[str] = "tleg"
    title: ClassVar[str] = "Transformer as Linear Expansion of learnGene"
    paper: ClassVar[str] = "Xia et al., AAAI 2024"
    distillation: ClassVar[str] = "tleg-official"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.modules, Sequence):
            raise ShapeError(f"tleg: modules must be a list of msa, mlp, ln, not {self.modules!r}")
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        for module in modules:
            require_choice(self.name, "module", module, MODULE_PARAMS)
        if not modules:
            raise ShapeError("tleg: modules is empty; name at least one of msa, mlp, ln")
        object.__setattr__(self, "modules", tuple(m for m in MODULE_PARAMS if m in modules))

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """A needs at least two expanded layers to be used at all: its coefficient in the first is 0."""
        if auxiliary.depth < self.first_layer + 1:
            raise ShapeError(
                f"tleg: an auxiliary model of depth {auxiliary.depth} has no second expanded layer; "
                f"use depth {self.first_layer + 1} or more"
            )

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any depth that has room for the ordinary layers and one expanded layer can be made."""
        super().refuse(auxiliary, shape, **options)
        if shape.depth < self.first_layer:
            raise ShapeError(
                f"tleg: depth {shape.depth} is below {self.first_layer}, the first linearly expanded layer of this gene"
            )

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """A and B for the expanded modules, and what the auxiliary model keeps per layer."""
        shapes, modules = auxiliary.layer_params(), auxiliary.module_params()
        tensors = {
            f"{source}.{name}": shapes[name]
            for source in ("A", "B")
            for module in self.modules
            for name in modules[module]
        }
        for i in range(auxiliary.depth):
            for module in modules:
                if i + 1 < self.first_layer or module not in self.modules:
                    tensors |= {f"layer{i}.{name}": shapes[name] for name in modules[module]}
        return tensors

    def started(self, name: str, value: Tensor) -> Tensor:
        """As the authors' code: A and B both std 0.02, but A's norms start at 0 so that every norm starts at 1.

        The same holds for whatever else timm starts at a constant, such as the scales of LayerScale.
        """
        return value.zero_() if name.startswith("A.") and bool((value == value.flatten()[0]).all()) else value

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Equation 1 for every layer, with the ablations of Tables 4 and 6."""
        ordinary = self.first_layer - 1
        expanded = self.denominator(shape)
        terms: list[LayerTerms] = []
        for i in range(shape.depth):
            own = ((f"layer{i}", Fraction(1)),)
            if i < ordinary:
                terms.append(dict.fromkeys(MODULE_PARAMS, own))
                continue
            linear = (("B", Fraction(1)), ("A", Fraction(i - ordinary, expanded)))
            # Ordinary modules belong to the layers of the auxiliary model; another depth has no counterpart.
            other = own if shape.depth == auxiliary.depth else ()
            terms.append({m: linear if m in self.modules else other for m in MODULE_PARAMS})
        return terms

    def denominator(self, shape: Shape) -> int:
        """The expanded layers, among which the coefficient counts."""
        return shape.depth - self.first_layer + 1
