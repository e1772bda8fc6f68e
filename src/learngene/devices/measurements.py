"""What was measured in a runtime at some depths and widths, and the lines that give every other depth and width."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from learngene.system.errors import LearngeneError
from learngene.system.records import Record, RecordError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

Runtime = Literal["onnxruntime", "openvino", "executorch", "torch", "torch-compile"]
What = Literal["milliseconds", "stored", "memory"]


class Point(BaseModel):
    """A model that was measured.

    Attributes:
        shape: Of a plain ViT.
        milliseconds: Of one forward pass, a median.
        stored: Bytes of its files.
        memory: Megabytes that loading and running it adds at its peak; None where it was not looked at.
    """

    model_config = ConfigDict(frozen=True)

    shape: dict[str, Any]
    milliseconds: float = Field(ge=1e-6, le=1e9, allow_inf_nan=False)
    stored: int = Field(gt=0, le=10**15)
    memory: float | None = Field(None, ge=1e-6, le=1e9, allow_inf_nan=False)


class Line(NamedTuple):
    """What grows with depth: ``base`` and ``slope`` for every layer, and how far it is off at most, as a share."""

    base: float
    slope: float
    off: float


class Measurements(Record):
    """Models of a few depths and widths, measured in one runtime, as ``latency.json``.

    Attributes:
        runtime: Whose times they are.
        runtime_version: Of its package.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        batch_size: Images of a pass.
        threads: Of the runtime; None is its own choice.
        environment: The machine.
        points: What was measured.
    """

    kind: ClassVar[str] = "learngene-latency"
    version: ClassVar[int] = 1
    noun: ClassVar[str] = "a file of measured latencies, which the program of `learngene measure-on-device` makes"

    runtime: Runtime
    runtime_version: str
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    batch_size: int = Field(gt=0)
    threads: int | None = Field(gt=0)
    environment: dict[str, Any]
    points: list[Point]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file; raises ``RecordError`` where shapes are none, or a width has one depth alone."""
        found = super().read(path)
        try:
            depths = {family: {shape.depth for shape, _ in own} for family, own in found._families.items()}
        except (LearngeneError, TypeError) as error:
            raise RecordError(f"{path}: damaged, {error}") from None
        if not depths or min(map(len, depths.values())) < 2:
            raise RecordError(f"{path}: damaged, every width must be measured at two depths or more")
        return found

    def __str__(self) -> str:
        threads = {None: "threads of its own choice", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        return f"{self.runtime} {self.runtime_version}, {self.precision}, {threads}, batch {self.batch_size}"

    def tells(self, shape: ViTShape, *, memory: bool = False) -> bool:
        """Whether a shape's width was measured, or lies between two that were."""
        try:
            self._line(shape, "memory" if memory else "milliseconds")
        except LearngeneError:
            return False
        return True

    def at(self, shape: Shape, what: What) -> float:
        """Milliseconds, bytes or megabytes of a shape: of a stitched one those of its parts.

        Raises:
            LearngeneError: If no such images, patches, classes or widths were measured.
        """
        parts = shape.parts
        lines = [self._line(part, what) for part in parts]
        found = (lines[0].base + lines[-1].base) / 2  # the stem is the first part's, the head the last part's
        found += sum(line.slope * part.depth for line, part in zip(lines, parts, strict=True))
        for (before, after), line in zip(itertools.pairwise(parts), lines[1:], strict=True):
            found += line.slope * before.embed_dim * after.embed_dim / after.layer_size()  # a stitch in layers
        return found

    def told(self) -> str:
        """How well the lines fit, in words."""
        depths = sorted({shape.depth for own in self._families.values() for shape, _ in own})
        off = max(self._own_line(key, "milliseconds").off for key in self._families)
        text = f"lines over depths {', '.join(map(str, depths))} are off by at most {off:.1%} there"
        apart = [found for group in self._groups.values() for found in self._left_out(group)]
        if apart:
            text += f"; a width that is left out is foretold by its neighbours within {max(apart):.1%}"
        return text

    # -- lines over depth, and between widths --------------------------------------------------------

    @cached_property
    def _families(self) -> dict[str, list[tuple[ViTShape, Point]]]:
        found: dict[str, list[tuple[ViTShape, Point]]] = {}
        for point in self.points:
            shape = ViTShape.from_dict(point.shape)
            found.setdefault(family(shape), []).append((shape, point))
        return found

    @cached_property
    def _groups(self) -> dict[str, list[ViTShape]]:
        """Of families that differ in width alone, a shape each, the narrowest first."""
        found: dict[str, list[ViTShape]] = {}
        for (shape, _), *_ in self._families.values():
            found.setdefault(_group(shape), []).append(shape)
        return {key: sorted(shapes, key=lambda shape: shape.embed_dim) for key, shapes in found.items()}

    def _own_line(self, key: str, what: What) -> Line:
        points = [(shape.depth, getattr(point, what)) for shape, point in self._families[key]]
        if any(value is None for _, value in points):
            raise LearngeneError("plan: the peak memory was not measured; leave --max-memory out, or measure on Linux")
        return fit(points)

    def _line(self, shape: ViTShape, what: What) -> Line:
        if family(shape) in self._families:
            return self._own_line(family(shape), what)
        beside = [each for each in self._groups.get(_group(shape), []) if each.embed_dim != shape.embed_dim]
        between = [
            pair for pair in itertools.pairwise(beside) if pair[0].embed_dim < shape.embed_dim < pair[1].embed_dim
        ]
        if not between:
            raise LearngeneError(
                f"plan: {self.runtime} was not measured for {shape.size} with {shape.num_classes} classes and "
                f"{shape.img_size} px; measured are {'; '.join(self._measured())}"
            )
        return self._between(shape, *between[0], what)

    def _between(self, shape: ViTShape, below: ViTShape, above: ViTShape, what: What) -> Line:
        """A width's line from those of two others: stem and head grow with the width, layers with their weights."""
        low, high = (self._own_line(family(each), what) for each in (below, above))
        wide = (shape.embed_dim - below.embed_dim) / (above.embed_dim - below.embed_dim)
        large = (shape.layer_size() - below.layer_size()) / (above.layer_size() - below.layer_size())
        return Line(low.base + wide * (high.base - low.base), low.slope + large * (high.slope - low.slope), 0.0)

    def _left_out(self, group: Sequence[ViTShape]) -> list[float]:
        """How far the time of every measured width is from what its neighbours would give."""
        out = []
        for below, shape, above in zip(group, group[1:], group[2:], strict=False):
            guess = self._between(shape, below, above, "milliseconds")
            for at, point in self._families[family(shape)]:
                out.append(abs(guess.base + guess.slope * at.depth - point.milliseconds) / point.milliseconds)
        return out

    def _measured(self) -> list[str]:
        shapes = [own[0][0] for own in self._families.values()]
        return [f"width {each.embed_dim}, {each.num_classes} classes, {each.img_size} px" for each in shapes]


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """The line through depths and values with the least squares of relative differences."""
    weights = [(1 / value**2, depth, value) for depth, value in points]
    total = sum(weight for weight, *_ in weights)
    depth, value = (sum(each[0] * each[k] for each in weights) / total for k in (1, 2))
    spread = sum(weight * (at - depth) ** 2 for weight, at, _ in weights)
    slope = sum(weight * (at - depth) * (y - value) for weight, at, y in weights) / spread if spread else 0.0
    slope = max(0.0, slope)  # a layer takes time, whatever the noise says
    base = value - slope * depth
    return Line(base, slope, max(abs(base + slope * at - y) / y for at, y in points))


def family(shape: ViTShape) -> str:
    """What shapes that differ in depth alone have in common."""
    return json.dumps({key: value for key, value in shape.to_dict().items() if key != "depth"}, sort_keys=True)


def _group(shape: ViTShape) -> str:
    """What shapes that differ in depth and width alone have in common."""
    own = ("depth", "embed_dim", "num_heads")
    return json.dumps({key: value for key, value in shape.to_dict().items() if key not in own}, sort_keys=True)
