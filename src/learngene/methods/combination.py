"""The step that layer-wise methods share: every layer is a linear combination of the gene's layers.

TLEG's layer is B + (i/d) A, a stage-wise layer is one copy with coefficient 1. A method writes down the terms
once; the weights, the explanation a user reads and the provenance of a descendant all follow from them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Method, gene_name
from learngene.system.errors import ShapeError
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor

Terms = tuple[tuple[str, Fraction], ...]
"""Layers of the gene by name, each with its coefficient; empty where a descendant's module stays fresh."""

LayerTerms = dict[str, Terms]
"""The terms of one layer's ``msa``, ``mlp`` and ``ln``."""


class LayerCombination(Method):
    """A method that writes down terms; its weights and explanations follow."""

    takes_arrays: ClassVar[bool] = True

    @abstractmethod
    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """The terms of every layer of ``shape``."""

    def denominator(self, shape: Shape) -> int:
        """With what fractions are written in ``describe``."""
        return 1

    def combined(self, auxiliary: ViTShape) -> Mapping[str, Sequence[str]]:
        """The names of what is combined in every layer, by module: by default a layer's parameters."""
        return auxiliary.module_params()

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The terms as text, for example ``B + 1/3 A`` or ``stage0``."""
        return describe(self.terms(auxiliary, shape, **options), self.denominator(shape))

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """The terms, evaluated, and the ordinary parts as they are; the head if the number of classes is the same."""
        out = combine(tensors, self.terms(auxiliary, shape, **options), self.combined(auxiliary))
        if "stem" in self.parts:
            out |= {name: tensors[name] for name in auxiliary.stem_params()}
        if "norm" in self.parts:
            out |= {name: tensors[gene_name(name)] for name in shape.norm_params()}
        if "head" in self.parts and shape.num_classes == auxiliary.num_classes:
            out |= {name: tensors[name] for name in shape.head_params()}
        return out


class LayerCopies(LayerCombination):
    """A method whose layers are copies of the gene's."""

    @abstractmethod
    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> Sequence[str | None]:
        """The layer of the gene that every layer of ``shape`` copies; None leaves it fresh."""

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Every layer a copy."""
        sources = self.sources(auxiliary, shape, **options)
        return [whole_layer((source, Fraction(1))) if source else whole_layer() for source in sources]


def shares(total: int, order: Sequence[int]) -> dict[int, int]:
    """How many of ``total`` layers every stage gets: equally many, and the first of the order get what is left over."""
    each, rest = divmod(total, len(order))
    return {stage: each + (stage in order[:rest]) for stage in sorted(order)}


def permutation(what: str, given: Any, numbers: range, named: str = "stages") -> list[int]:
    """The order of a list or of text such as ``2,0,1``; ``ShapeError`` if it does not name every number once."""
    if isinstance(given, str):
        listed: list[Any] = [int(part) if part.strip().isdecimal() else part for part in given.split(",")]
    else:
        listed = list(given) if isinstance(given, list | tuple) else [given]
    if not all(type(number) is int for number in listed) or sorted(listed) != list(numbers):
        raise ShapeError(f"{what} {given} must name each of the {named} {numbers[0]} to {numbers[-1]} once")
    return listed


def whole_layer(*terms: tuple[str, Fraction]) -> LayerTerms:
    """The same terms for every module of a layer."""
    return dict.fromkeys(MODULE_PARAMS, terms)


def combine(
    tensors: Mapping[str, Tensor], layers: Sequence[LayerTerms], modules: Mapping[str, Sequence[str]] = MODULE_PARAMS
) -> dict[str, Tensor]:
    """Evaluates the terms: ``blocks.i.name = sum of coefficient * tensors[term.name]``.

    A single term with coefficient 1 is the gene's tensor itself, not a copy: while training, that is what sharing
    weights means. ``modules`` are the names of a layer's parameters, by module.
    """
    out: dict[str, Tensor] = {}
    for module, names in modules.items():
        sums: dict[tuple[str, ...], dict[int, list[float]]] = {}
        for i, layer in enumerate(layers):
            used = [(source, coefficient) for source, coefficient in layer[module] if coefficient]
            if len(used) == 1 and used[0][1] == 1:
                out |= {f"blocks.{i}.{name}": tensors[f"{used[0][0]}.{name}"] for name in names}
            elif used:
                sources = tuple(source for source, _ in used)
                sums.setdefault(sources, {})[i] = [float(coefficient) for _, coefficient in used]
        for sources, rows in sums.items():
            from learngene.methods.blend import blend  # the only step that computes, and so needs torch or numpy

            for name in names:
                values = blend(tuple(rows.values()), [tensors[f"{source}.{name}"] for source in sources])
                out |= {f"blocks.{i}.{name}": value for i, value in zip(rows, values, strict=True)}
    return out


def describe(layers: Sequence[LayerTerms], denominator: int = 1) -> list[str]:
    """One readable line per layer, such as ``B + 3/12 A`` or ``msa: B + 1/6 A, mlp and ln: fresh``.

    Fractions are written with the denominator, unreduced, as the paper does.
    """
    lines = []
    for layer in layers:
        by_text: dict[str, list[str]] = {}
        for module, terms in layer.items():
            by_text.setdefault(_text(terms, denominator), []).append(module)
        if len(by_text) == 1:
            lines.append(next(iter(by_text)))
        else:
            lines.append(", ".join(f"{' and '.join(mods)}: {text}" for text, mods in by_text.items()))
    return lines


def _text(terms: Terms, denominator: int) -> str:
    def one(source: str, coefficient: Fraction) -> str:
        return source if coefficient == 1 else f"{coefficient * denominator}/{denominator} {source}"

    return " + ".join(one(source, coefficient) for source, coefficient in terms if coefficient) or "fresh"
