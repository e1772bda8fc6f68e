"""The part of a condense recipe that says at which shapes a gene is trained: a list of sizes, or of ranges of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from learngene.methods import Method
from learngene.recipe.sections import Count, Positive, Section, smallest_first
from learngene.system.errors import RecipeError, ShapeError
from learngene.vits.shape import ViTShape

MOST_SHARE, MOST_SHAPES = 1000, 10_000
"""Beyond what a run has steps for: a larger number is a slip that would only fill the memory."""

Range = Annotated[tuple[Positive, Positive], AfterValidator(smallest_first)]


class Size(Section):
    """One shape, or a range of them."""

    embed_dim: Positive | Range | None = Field(
        None, description="width, or the smallest and the largest of a range; by default the auxiliary shape's"
    )
    depth: Positive | Range | None = Field(
        None, description="layers, or the fewest and the most of a range; by default the auxiliary shape's"
    )
    num_heads: Positive | None = Field(
        None, description="heads; by default as many as keep the width of the auxiliary shape's, as in every range"
    )
    share: Annotated[Positive, Field(le=MOST_SHARE)] = Field(
        1, description="how often it is trained, relative to others; a range counts three times"
    )

    def shapes(self, kind: Method, auxiliary: ViTShape) -> list[ViTShape]:
        """What it stands for, smallest first.

        Raises:
            LearngeneError: If there is no such shape, or the method makes none of them.
        """
        width, depth, head = self.embed_dim or auxiliary.embed_dim, self.depth or auxiliary.depth, auxiliary.head_dim
        if isinstance(width, int) and isinstance(depth, int):
            if self.num_heads is None and width % head:
                low = width // head * head
                raise RecipeError(
                    f"embed_dim {width} is no multiple of {head}, the width of this gene's heads; use "
                    f"{f'{low} or ' if low else ''}{low + head}, or say num_heads"
                )
            shape = auxiliary.replace(embed_dim=width, depth=depth, num_heads=self.num_heads or width // head)
            kind.refuse(auxiliary, shape)
            return [shape]
        if self.num_heads is not None:
            raise RecipeError("num_heads: those of a range follow from the width of this gene's heads; leave it out")
        if not (widths := _all(width, head)):
            raise RecipeError(
                f"embed_dim {_told(width)} holds no multiple of {head}, the width of this gene's heads; widen it"
            )
        if (count := len(widths) * len(_all(depth))) > MOST_SHAPES:
            raise RecipeError(
                f"embed_dim {_told(width)}, depth {_told(depth)} holds {count} shapes, over {MOST_SHAPES}; narrow it"
            )
        found, refusal = [], ""
        for each, layers in product(widths, _all(depth)):
            shape = auxiliary.replace(embed_dim=each, depth=layers, num_heads=each // head)
            try:
                kind.refuse(auxiliary, shape)
                found.append(shape)
            except ShapeError as error:
                refusal = refusal or str(error)
        if not found:
            raise RecipeError(
                f"embed_dim {_told(width)}, depth {_told(depth)} holds no shape that {kind.name} makes: {refusal}"
            )
        for name, axis in (("embed_dim", widths), ("depth", _all(depth))):
            made = {getattr(shape, name) for shape in found}
            if len(axis) > 1 == len(made):
                raise RecipeError(f"{name} {_told((axis[0], axis[-1]))}: {kind.name} makes {made.pop()} alone; say so")
        return sorted(found, key=ViTShape.params)


@dataclass(frozen=True)
class Turn:
    """What a step can be trained at: one shape, or any of those within a range.

    Attributes:
        shapes: Smallest first.
        share: How often, relative to other turns.
    """

    shapes: tuple[ViTShape, ...]
    share: int = 1


class TrainedShapes(Section):
    """At which shapes a gene is trained, and in which order."""

    sizes: list[Size] = Field(min_length=1, description="shapes, and ranges of them")
    sampling: Literal["cycle", "random", "per-process"] = Field(
        "cycle",
        description="cycle: in turn; random: drawn for every step; per-process: the same, but every process draws its "
        "own, as with depths, so that a run depends on how many there are",
    )
    sandwich: Count | None = Field(
        None,
        description="every step trains the smallest and the largest of all shapes, and so many others; losses are "
        "averaged, so that rate, clipping and decay mean what they mean for one; null: every step trains one shape",
    )

    def turns(self, kind: Method, auxiliary: ViTShape) -> list[Turn]:
        """What a step can be trained at: every shape, and of a range its smallest, its largest and any between.

        Raises:
            LearngeneError: If a size stands for nothing or a shape is given twice.
        """
        alone, within = [], []
        for size in self.sizes:
            shapes = size.shapes(kind, auxiliary)
            alone += [Turn((end,), size.share) for end in dict.fromkeys((shapes[0], shapes[-1]))]
            within += [Turn(tuple(shapes[1:-1]), size.share)] if len(shapes) > 2 else []
        fixed = [turn.shapes[0] for turn in alone]
        for shape in fixed:
            if fixed.count(shape) > 1:
                raise RecipeError(f"{shape.size} is given twice; leave one out, or give it a larger share")
        others = [Turn(tuple(shape for shape in turn.shapes if shape not in fixed), turn.share) for turn in within]
        turns = alone + [turn for turn in others if turn.shapes]
        most = len({shape for turn in self.between(turns) for shape in turn.shapes})
        if self.sandwich and self.sandwich > most:
            raise RecipeError(
                f"sandwich {self.sandwich}: besides the smallest and the largest there are {most}; give at most that"
            )
        return turns

    def ends(self, turns: Sequence[Turn]) -> list[ViTShape]:
        """The smallest and the largest shape, by parameters; one if they are the same."""
        shapes = [shape for turn in turns for shape in turn.shapes]
        return list(dict.fromkeys((min(shapes, key=ViTShape.params), max(shapes, key=ViTShape.params))))

    def between(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns but for those of the smallest and the largest shape."""
        ends = self.ends(turns)
        return [turn for turn in turns if turn.shapes[0] not in ends]

    def macs(self, turns: Sequence[Turn]) -> Fraction:
        """Multiply-adds of an image in a forward pass of all that a step trains, on average."""
        ends = 0 if self.sandwich is None else sum(shape.macs() for shape in self.ends(turns))
        drawn, count = (turns, 1) if self.sandwich is None else (self.between(turns), self.sandwich)
        each = [
            Fraction(mean(Fraction(shape.macs()) for shape in turn.shapes)) for turn in drawn for _ in range(turn.share)
        ]
        return Fraction(ends + (count * mean(each) if count else 0))

    def told(self, turns: Sequence[Turn]) -> str:
        """What is trained, in a line."""
        smallest, *largest = (shape.size for shape in self.ends(turns))
        count = len({shape for turn in turns for shape in turn.shapes})
        several = f"{count} from {smallest} to {largest[0]}" if largest else smallest
        if self.sandwich is None:
            return f"shapes: {several}, one per step, {self.sampling}"
        return f"shapes: {several}, per step the smallest, the largest and {self.sandwich} others, {self.sampling}"


def measured(turns: Sequence[Turn]) -> list[ViTShape]:
    """Where a gene is measured when it is trained: all shapes, but of a range the ends and the middle of both axes."""
    out: dict[ViTShape, None] = {}
    for turn in turns:
        widths, depths = (sorted({getattr(shape, name) for shape in turn.shapes}) for name in ("embed_dim", "depth"))
        few = [{axis[0], axis[len(axis) // 2], axis[-1]} for axis in (widths, depths)]
        out |= dict.fromkeys(shape for shape in turn.shapes if shape.embed_dim in few[0] and shape.depth in few[1])
    return list(out)


def depths_alone(depths: Sequence[int]) -> TrainedShapes:
    """What ``depths`` of a recipe stands for."""
    return TrainedShapes(sizes=[Size(depth=depth) for depth in depths], sampling="per-process")


def _sizes_alone(given: Any) -> Any:
    return {"sizes": given} if isinstance(given, Sequence) and not isinstance(given, str) else given


ShapesOrSizes = Annotated[TrainedShapes, BeforeValidator(_sizes_alone)]
"""The section, or its sizes alone."""


def _all(span: int | tuple[int, int], step: int = 1) -> range:
    """The multiples of a step within a span."""
    low, high = (span, span) if isinstance(span, int) else span
    return range(-(-low // step) * step, high + 1, step)


def _told(span: int | tuple[int, int]) -> str:
    return str(span if isinstance(span, int) else list(span))
