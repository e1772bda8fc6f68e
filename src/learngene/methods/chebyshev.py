"""Chebyshev genes: layers as polynomials of their place in the model (Lin et al., NeurIPS 2024).

The learngene is N layers A_0 .. A_{N-1}. With the place x = (l - 1) / L, layer l of an L-layer model is

    theta_l = sum over n of T_n(x) * A_n,    l = 1 .. L

where T_n is a Chebyshev polynomial of the first kind, or what the paper's ablation puts in its stead. Powers of x with
two genes are TLEG: A_0 is its B, A_1 its A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import require_choice
from learngene.methods.combination import LayerCombination, LayerTerms, whole_layer
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


def _fourier(x: Fraction, n: int) -> Fraction:
    """1, cos 2 pi x, sin 2 pi x, cos 4 pi x, ...: the series with the interval as its period."""
    wave = math.sin if n % 2 == 0 else math.cos
    return Fraction(round(wave(2 * math.pi * ((n + 1) // 2) * x), 15)) if n else Fraction(1)


def _next_by(step: Callable[[int, Fraction, Fraction, Fraction], Fraction]) -> Callable[[Fraction, int], Fraction]:
    """A family of polynomials that starts with 1 and x, from its recurrence: ``step(n, x, p_n, p_(n-1))``."""

    def value(x: Fraction, n: int) -> Fraction:
        before, now = Fraction(1), x
        for k in range(1, n):
            before, now = now, step(k, x, now, before)
        return now if n else before

    return value


BASES: Mapping[str, Callable[[Fraction, int], Fraction]] = {
    "chebyshev": _next_by(lambda n, x, now, before: 2 * x * now - before),
    "taylor": lambda x, n: x**n,
    "fourier": _fourier,
    "legendre": _next_by(lambda n, x, now, before: ((2 * n + 1) * x * now - n * before) / (n + 1)),
}
"""The functions of the ablation, exact where they are rational: the value of function n at a place."""


@dataclass(frozen=True)
class Chebyshev(LayerCombination):
    """Genes that are the coefficients of a function of depth.

    Attributes:
        genes: Layers of the gene, N. The paper goes from 1 to the 12 of its DeiT-B; 4 stores a third of them for
            less than two points of its accuracy.
        basis: The functions of the place: ``chebyshev``, ``taylor``, ``fourier`` or ``legendre``.
    """

    genes: int = 4
    basis: str = "chebyshev"

    name: ClassVar[str] = "chebyshev"
    title: ClassVar[str] = "Linearly decomposed ViT (Chebyshev genes)"
    paper: ClassVar[str] = "Lin et al., NeurIPS 2024"
    distillation: ClassVar[str] = "wave"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self.name, "basis", self.basis, BASES)

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """A function with at most as many zeros as it has a number is used by as many layers as there are genes."""
        if auxiliary.depth < self.genes:
            raise ShapeError(
                f"chebyshev: {self.genes} genes are more than the {auxiliary.depth} layers of the auxiliary model; "
                f"use {auxiliary.depth} genes or fewer"
            )

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """The coefficients, in their order."""
        return [f"A{n}" for n in range(self.genes)]

    def started(self, name: str, value: Tensor) -> Tensor:
        """As TLEG: what timm starts at a constant, such as norms, starts so in A0 alone, and at 0 in the others."""
        constant = bool((value == value.flatten()[0]).all())
        return value.zero_() if constant and name[:1] == "A" and not name.startswith("A0.") else value

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Every function at every layer's place."""
        function = BASES[self.basis]
        return [
            whole_layer(*((f"A{n}", function(Fraction(i, shape.depth), n)) for n in range(self.genes)))
            for i in range(shape.depth)
        ]

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The terms with three digits, for example ``A0 + 0.25 A1 - 0.875 A2``."""
        return [
            " ".join(_term(source, c) for source, c in layer["msa"] if c).removeprefix("+ ")
            for layer in self.terms(auxiliary, shape, **options)
        ]


def _term(source: str, coefficient: Fraction) -> str:
    size = "" if abs(coefficient) == 1 else f"{float(abs(coefficient)):.3g} "
    return f"{'-' if coefficient < 0 else '+'} {size}{source}"
