"""What a gene scored at the shapes that it was trained at, when it was made, and what that says of shapes between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import TYPE_CHECKING, Any, Literal, Protocol

from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from learngene.methods import Method

Known = Literal["measured", "between measured shapes"]
SIDES = {"embed_dim": ("narrower", "wider"), "depth": ("shallower", "deeper")}


class ReadGene(Protocol):
    """A gene, in whatever its tensors are, or its header."""

    @property
    def method(self) -> Method:
        """The method with its settings."""

    @property
    def shape(self) -> ViTShape:
        """The auxiliary shape."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the gene file says about its origin."""


def size_of(entry: Mapping[str, Any]) -> str:
    """A measured shape in words."""
    return f"{entry['depth']} layers x {entry['embed_dim']} ({entry['num_heads']} heads)"


def score_of(entries: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Which score of measured shapes counts, and what it is called: accuracy, or of features their neighbours."""
    return ("top1", "top-1") if "top1" in entries[0] else ("neighbours", "neighbours in common")


@dataclass(frozen=True)
class ShapeScores:
    """Scores by shape.

    Attributes:
        entries: ``shapes`` of the metadata: sizes, each with its score.
        name: Which score counts: ``top1`` or ``neighbours``.
        auxiliary: The gene's shape, from which those differ in their sizes.
    """

    entries: Sequence[Mapping[str, Any]]
    name: str
    auxiliary: ViTShape

    def at(self, shape: Shape) -> tuple[float, Known] | None:
        """A shape's score and how it is known; None if it lies beyond all that was measured.

        Between measured shapes scores are interpolated linearly over depth and the logarithm of the width: along the
        line if one of the two is always the same, otherwise within Delaunay's triangles. Where no triangle lies, but
        width and depth are each between measured ones, over the logarithm of the multiply-adds.
        """
        for entry in self.entries:
            if all(getattr(shape, key) == entry[key] for key in ("embed_dim", "num_heads", "depth")):
                return float(entry[self.name]), "measured"
        point = (log2(shape.embed_dim), float(shape.depth))
        axes = list(zip(*self._points, strict=True))
        if not all(min(axis) <= where <= max(axis) for axis, where in zip(axes, point, strict=True)):
            return None
        return self._between(point, shape), "between measured shapes"

    @cached_property
    def _points(self) -> list[tuple[float, float]]:
        return [(log2(entry["embed_dim"]), float(entry["depth"])) for entry in self.entries]

    @cached_property
    def _values(self) -> list[float]:
        return [float(entry[self.name]) for entry in self.entries]

    def _between(self, point: tuple[float, float], shape: Shape) -> float:
        from numpy import isnan

        for fixed, free in ((0, 1), (1, 0)):
            if len({each[fixed] for each in self._points}) == 1:
                return _along([each[free] for each in self._points], self._values, point[free])
        found = float(self._triangles(*point)) if self._triangles else float("nan")
        if not isnan(found):
            return found
        sizes = ("embed_dim", "num_heads", "depth")
        macs = [self.auxiliary.replace(**{key: entry[key] for key in sizes}).macs() for entry in self.entries]
        return _along([log2(each) for each in macs], self._values, log2(shape.macs()))

    @cached_property
    def _triangles(self) -> Any:
        from scipy.interpolate import LinearNDInterpolator
        from scipy.spatial import QhullError

        try:
            return LinearNDInterpolator(self._points, self._values, rescale=True)
        except QhullError:  # all on one line
            return None


def _along(places: Sequence[float], values: Sequence[float], where: float) -> float:
    """Linear interpolation between the nearest two places."""
    from numpy import interp

    ordered = sorted(zip(places, values, strict=True))
    return float(interp(where, [place for place, _ in ordered], [value for _, value in ordered]))


def shape_scores(metadata: Mapping[str, Any], auxiliary: ViTShape, base: ViTShape) -> ShapeScores | None:
    """What was measured of a gene that counts for a task; nothing for another image size, no accuracy of other classes.

    Args:
        metadata: The gene's.
        auxiliary: Its shape.
        base: That shape, with the classes and the image size of the task.
    """
    entries = metadata.get("shapes", [])
    if not entries or base.img_size != auxiliary.img_size:
        return None
    name, _ = score_of(entries)
    counts = name == "neighbours" or base.num_classes == auxiliary.num_classes
    return ShapeScores(entries, name, base) if counts else None


def outside(gene: ReadGene, shape: Shape) -> str:
    """On which sides a shape lies outside of all that a gene was trained at, and how near it was; empty within them.

    The nearest trained shape is that of the fewest doublings and halvings of width and depth. A gene that was trained
    at its auxiliary shape alone serves the sizes that its method says.
    """
    entries: Sequence[Mapping[str, Any]] = gene.metadata.get("shapes", [])
    trained = {key: [entry[key] for entry in entries] for key in SIDES} if entries else trained_sizes(gene)
    sides = [
        name
        for key, values in trained.items()
        for name in SIDES[key]
        if (getattr(shape, key) < min(values) if name == SIDES[key][0] else getattr(shape, key) > max(values))
    ]
    if not sides:
        return ""
    if not entries:
        return f"{' and '.join(sides)} than the auxiliary model, the only one that was trained"
    name, called = score_of(entries)

    def distance(entry: Mapping[str, Any]) -> float:
        # Rounded, so that of two that are as near the first is always named.
        return round(sum(abs(log2(entry[key] / getattr(shape, key))) for key in ("embed_dim", "depth")), 9)

    near = min(entries, key=distance)
    behind = max(float(entry[name]) for entry in entries) - near[name]
    rest = f", {behind:.2f} points below its best" if behind else ""
    return (
        f"{' and '.join(sides)} than all that this gene was trained at; the nearest, {size_of(near)}, has {called} "
        f"{near[name]:.2f} %{rest}"
    )


def trained_sizes(gene: ReadGene) -> dict[str, tuple[int, int]]:
    """Least and most width and depth of a gene that one stage trained at its auxiliary shape; empty for any other."""
    trained = gene.method.making == "stage" and "epochs" in gene.metadata.get("training", {})
    return gene.method.trained_sizes(gene.shape) if trained else {}
