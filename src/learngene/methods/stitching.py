"""Rows of blocks and the paths through them: what Learngene Pool and Stitchable Neural Networks have in common.

A gene holds whole models of different widths, its rows, and linear stitch layers between their blocks. A path passes
through consecutive blocks of one row, a stitch layer, consecutive blocks of another row, and so on; it starts with the
first row's stem and ends with the last row's norm and head. Blocks count from 0 here, as i and j do in the papers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Making, Method, gene_name
from learngene.system.errors import ShapeError, nearest, refuse_unknown
from learngene.vits.segment import Segment, parse_path
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("up", "down")
Row = int | tuple[int, int, int]
"""A width, or (embed_dim, depth, num_heads)."""

LISTED = 3
"""Paths that an error names as the nearest."""


@dataclass(frozen=True)
class Stop:
    """One row's part of a path: its blocks ``first`` to ``last``, both included, counted from 0."""

    row: int
    first: int
    last: int


Path = tuple[Stop, ...]


@dataclass(frozen=True)
class StitchedRows(Method):
    """A method whose gene is a pool of rows.

    Attributes:
        rows: Widths from small to large, the last of which is the auxiliary shape's. A row may also be
            ``[embed_dim, depth, num_heads]``; a width alone has the auxiliary shape's depth and width of heads.
        direction: ``up`` stitches from narrow rows to wide ones, as both papers do; ``down`` the other way.
        nearest: Stitch neighbouring rows only (SN-Net's default); otherwise every pair of rows.
        max_stitches: Most stitch layers on a path; 2 adds paths through three rows.
        final_norm: Apply the final norm on stitched paths, as whole rows do. SN-Net's code leaves it out there.
    """

    rows: tuple[Row, ...] = (192, 768)
    direction: str = "up"
    nearest: bool = True
    max_stitches: int = 1
    final_norm: bool = True

    making: ClassVar[Making] = "pool"
    equal_depth: ClassVar[bool]
    """Whether all rows must have as many blocks."""
    stitch_init: ClassVar[str]
    """How stitch layers start by default: ``tm`` or ``ls``, see ``sections.PoolSpec``."""

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Sequence) or isinstance(self.rows, str) or len(self.rows) < 2:
            raise ShapeError(f"{self.name}: rows must be a list of two widths or more, not {self.rows!r}")
        object.__setattr__(self, "rows", tuple(_row(self.name, row) for row in self.rows))
        if self.direction not in DIRECTIONS:
            raise ShapeError(
                f"{self.name}: unknown direction '{self.direction}'{nearest(str(self.direction), DIRECTIONS)}"
            )
        for field in ("nearest", "final_norm"):
            if not isinstance(getattr(self, field), bool):
                raise ShapeError(f"{self.name}: {field} must be true or false, not {getattr(self, field)!r}")
        if not isinstance(self.max_stitches, int) or isinstance(self.max_stitches, bool) or self.max_stitches < 1:
            raise ShapeError(f"{self.name}: max_stitches must be 1 or more, not {self.max_stitches!r}")

    # -- rows ----------------------------------------------------------------------------------------

    def row_shapes(self, auxiliary: ViTShape) -> list[ViTShape]:
        """Every row as a whole model."""
        shapes = []
        for row in self.rows:
            if isinstance(row, int):
                if row % auxiliary.head_dim:
                    raise ShapeError(
                        f"{self.name}: a row of width {row} cannot have heads of {auxiliary.head_dim} as the auxiliary "
                        f"shape's; use a multiple of {auxiliary.head_dim}"
                    )
                row = (row, auxiliary.depth, row // auxiliary.head_dim)
            width, depth, heads = row
            if width != heads * auxiliary.head_dim:
                fitting = f"{width // auxiliary.head_dim} heads" if width >= auxiliary.head_dim else "a wider row"
                raise ShapeError(
                    f"{self.name}: the row of width {width} has {heads} heads of {width / heads:.3g}, but heads have "
                    f"{auxiliary.head_dim} here and are never reinterpreted; use {fitting}"
                )
            shapes.append(auxiliary.replace(embed_dim=width, depth=depth, num_heads=heads))
        return shapes

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Rows go from narrow to wide, end at the auxiliary shape, and all have heads of one width."""
        rows = self.row_shapes(auxiliary)
        if rows[-1] != auxiliary:
            mine, theirs = rows[-1], auxiliary
            raise ShapeError(
                f"{self.name}: the last row must be the auxiliary shape: it has width {mine.embed_dim}, depth "
                f"{mine.depth} and {mine.num_heads} heads, the shape {theirs.embed_dim}, {theirs.depth} and "
                f"{theirs.num_heads}; set settings.rows or shape"
            )
        for narrow, wide in itertools.pairwise(rows):
            if narrow.embed_dim >= wide.embed_dim:
                raise ShapeError(
                    f"{self.name}: rows must go from narrow to wide, but width {wide.embed_dim} follows "
                    f"{narrow.embed_dim}"
                )
        for row in rows:
            if self.equal_depth and row.depth != auxiliary.depth:
                raise ShapeError(
                    f"{self.name}: rows must be equally deep, but width {row.embed_dim} has {row.depth} blocks and "
                    f"width {auxiliary.embed_dim} has {auxiliary.depth}; method sn-net stitches rows of any depth"
                )

    # -- stitches ------------------------------------------------------------------------------------

    def row_pairs(self) -> list[tuple[int, int]]:
        """The rows that stitch layers join, each as (from, to)."""
        pairs = [(a, b) for a, b in itertools.combinations(range(len(self.rows)), 2) if b == a + 1 or not self.nearest]
        return pairs if self.direction == "up" else [(b, a) for a, b in pairs]

    def stitches(self, auxiliary: ViTShape, source: int, target: int) -> dict[tuple[int, int], int]:
        """The legal stitches between two rows, each with the layer that it uses.

        A stitch (i, j) leads from the output of block i to the input of block j. Windows of two blocks slide over both
        rows and join every block of a window with every block, so |i - j| <= 1, and all pairs that a window brings
        share its layer. Rows of unequal depth are compared on the shallower one's scale, by SN-Net's nearest index.

        Returns:
            ``{(i, j): layer}`` in the order in which the windows find them.
        """
        shapes = self.row_shapes(auxiliary)
        depths = shapes[source].depth, shapes[target].depth
        scale = min(depths)
        found: dict[tuple[int, int], int] = {}
        for window in range(max(scale - 1, 1)):
            inside = [
                [block for block in range(depth) if window <= block * scale // depth <= window + 1] for depth in depths
            ]
            for i, j in itertools.product(*inside):
                found.setdefault((i, j), window)
        return found

    def stitch_layers(self, auxiliary: ViTShape) -> dict[str, tuple[int, int]]:
        """The stitch layers by name, ``stitch.FROM.TO.LAYER``, each with the rows it joins."""
        return {
            f"stitch.{a}.{b}.{layer}": (a, b)
            for a, b in self.row_pairs()
            for layer in sorted(set(self.stitches(auxiliary, a, b).values()))
        }

    # -- paths ---------------------------------------------------------------------------------------

    def paths(self, auxiliary: ViTShape) -> list[Path]:
        """All paths: whole rows, then those with one stitch, then those with two, and so on."""
        return list(_paths(self, auxiliary))

    def _listed(self, auxiliary: ViTShape) -> list[Path]:
        depths = [row.depth for row in self.row_shapes(auxiliary)]
        paths: list[Path] = [(Stop(row, 0, depth - 1),) for row, depth in enumerate(depths)]
        open_paths: list[Path] = list(paths)
        for _ in range(self.max_stitches):
            open_paths = [longer for path in open_paths for longer in self._continued(auxiliary, path, depths)]
            paths += open_paths
        return paths

    def _continued(self, auxiliary: ViTShape, path: Path, depths: list[int]) -> Iterator[Path]:
        """Every path that leaves the last row of this one for another row."""
        *before, stop = path
        for source, target in self.row_pairs():
            if source == stop.row:
                for i, j in self.stitches(auxiliary, source, target):
                    if i >= stop.first:
                        yield (*before, Stop(source, stop.first, i), Stop(target, j, depths[target] - 1))

    def shape_of(self, auxiliary: ViTShape, path: Path, base: Shape | None = None) -> Shape:
        """The shape of a path: a plain one for a whole row, otherwise a stitched one.

        Args:
            auxiliary: The auxiliary shape.
            path: One of ``paths``.
            base: What classes and image size are taken from; the auxiliary shape by default.
        """
        rows = self.row_shapes(auxiliary)
        base = base or auxiliary
        task = {name: getattr(base, name) for name in ("num_classes", "img_size", "ending")}
        if len(path) == 1:
            return rows[path[0].row].replace(**task)
        segments = [
            Segment(rows[stop.row].embed_dim, rows[stop.row].num_heads, stop.first + 1, stop.last + 1) for stop in path
        ]
        return StitchedShape.of(auxiliary.replace(**task), segments, final_norm=self.final_norm)

    def shapes(self, auxiliary: ViTShape, base: ViTShape) -> Iterator[Shape]:
        """The shape of every path."""
        for path in self.paths(auxiliary):
            yield self.shape_of(auxiliary, path, base)

    def path_of(self, auxiliary: ViTShape, shape: Shape) -> Path:
        """The path that a shape is.

        Raises:
            ShapeError: If the pool has no such path; the message names the nearest legal ones.
        """
        if isinstance(shape, StitchedShape):
            if shape.final_norm != self.final_norm:
                raise ShapeError(
                    f"{self.name}: stitched paths of this gene have {'a' if self.final_norm else 'no'} final norm; "
                    f"use final_norm={self.final_norm}"
                )
            return self._path_of_segments(auxiliary, shape.segments)
        return self._path_of_segments(auxiliary, (Segment(shape.embed_dim, shape.num_heads, 1, shape.depth),))

    def _path_of_segments(self, auxiliary: ViTShape, segments: Sequence[Segment]) -> Path:
        rows = {row.embed_dim: (index, row) for index, row in enumerate(self.row_shapes(auxiliary))}
        for segment in segments:
            if segment.embed_dim not in rows:
                known = ", ".join(str(width) for width in rows)
                raise ShapeError(f"{self.name}: no row has width {segment.embed_dim}; rows have {known}")
            own = rows[segment.embed_dim][1].num_heads
            if segment.num_heads != own:
                raise ShapeError(
                    f"{self.name}: row {segment.embed_dim} has {own} heads, not {segment.num_heads}; "
                    "heads are never reinterpreted"
                )
        path = tuple(Stop(rows[each.embed_dim][0], each.first - 1, each.last - 1) for each in segments)
        if path not in (legal := self.paths(auxiliary)):
            raise self._no_path("+".join(str(segment) for segment in segments), path, auxiliary, legal)
        return path

    def named_shape(self, auxiliary: ViTShape, name: str) -> Shape:
        """The shape of a path by its name.

        Args:
            auxiliary: The auxiliary shape.
            name: ``192:1-4+768:5-6``, or the papers' numbers of blocks taken from each row, such as ``4+2``.

        Raises:
            ShapeError: If no path is called so, or several are.
        """
        rows, legal = self.row_shapes(auxiliary), self.paths(auxiliary)
        counts = name.replace(" ", "").split("+")
        if ":" in name:
            path = self._path_of_segments(auxiliary, parse_path(name, auxiliary.head_dim))
            return self.shape_of(auxiliary, path)
        if len(counts) != len(rows) or not all(count.isascii() and count.isdigit() for count in counts):
            widths = " + ".join(str(row.embed_dim) for row in rows)
            raise ShapeError(
                f"{self.name}: path '{name}' is neither of the form 192:1-4+768:5-6 nor a number of blocks of each row "
                f"({widths}), such as {self.counts(legal[-1])}"
            )
        wanted = "+".join(str(int(count)) for count in counts)
        found = [path for path in legal if self.counts(path) == wanted]
        if not found:
            stops = tuple(Stop(row, 0, int(count) - 1) for row, count in enumerate(counts) if int(count))
            raise self._no_path(name, stops, auxiliary, legal)
        if len(found) > 1:
            names = " or ".join(self.name_of(auxiliary, path) for path in found)
            raise ShapeError(f"{self.name}: {len(found)} paths have {wanted} blocks; use {names}")
        return self.shape_of(auxiliary, found[0])

    def counts(self, path: Path) -> str:
        """The papers' name of a path: how many blocks it takes of every row, such as ``4+2``."""
        taken = {stop.row: stop.last - stop.first + 1 for stop in path}
        return "+".join(str(taken.get(row, 0)) for row in range(len(self.rows)))

    def label(self, auxiliary: ViTShape, shape: Shape) -> str:
        """Both names of a path, in columns."""
        return f"{self.counts(self.path_of(auxiliary, shape)):8s} {shape.path:24s}"

    def flags(self, auxiliary: ViTShape, shape: Shape) -> str:
        """A path says depth, width and heads."""
        return f"--path {shape.path}"

    def name_of(self, auxiliary: ViTShape, path: Path) -> str:
        """A path's full name, ``192:1-4+768:5-6``."""
        return self.shape_of(auxiliary, path).path

    def _no_path(self, name: str, wanted: Path, auxiliary: ViTShape, legal: list[Path]) -> ShapeError:
        def distance(path: Path) -> int:
            """Blocks that only one of the two paths has."""
            stops = [{stop.row: (stop.first, stop.last) for stop in each} for each in (path, wanted)]
            apart = 0
            for row in range(len(self.rows)):
                (a, b), (c, d) = (each.get(row, (0, -1)) for each in stops)
                apart += (b - a + 1) + (d - c + 1) - 2 * max(0, min(b, d) - max(a, c) + 1)
            return apart

        close = sorted(legal, key=distance)[:LISTED]
        listed = ", ".join(f"{self.counts(path)} ({self.name_of(auxiliary, path)})" for path in close)
        return ShapeError(
            f"{self.name}: the pool has no path {name}; the nearest of its {len(legal)} paths are {listed}"
        )

    # -- what every method says ----------------------------------------------------------------------

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Only the pool's paths can be made, for any classes and image size."""
        refuse_unknown(options, self.options, f"{self.name}: expansion options")
        for field in ("mlp_ratio", "patch_size", "in_chans", "class_token"):
            have, want = getattr(auxiliary, field), getattr(shape, field)
            if have != want:
                raise ShapeError(f"shape: this gene has {field} {have}, not {want}; only its own {field} can be made")
        self.path_of(auxiliary, shape)

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """The blocks of every row, ``rowR.blocks.I...``, and the stitch layers."""
        return {
            name: size
            for name, size in self.gene_tensors(auxiliary).items()
            if name.startswith("stitch.") or ".blocks." in name
        }

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Every row as a whole model, ``row0.`` before timm's names, then the stitch layers."""
        rows = self.row_shapes(auxiliary)
        out: dict[str, tuple[int, ...]] = {}
        for index, row in enumerate(rows):
            out |= {f"row{index}.{gene_name(name)}": size for name, size in row.all_params().items()}
        for name, (a, b) in self.stitch_layers(auxiliary).items():
            out[f"{name}.weight"] = (rows[b].embed_dim, rows[a].embed_dim)
            out[f"{name}.bias"] = (rows[b].embed_dim,)
        return out

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """One line per block: ``row0 block 4``, or ``stitch.0.1.3, row1 block 5`` behind a stitch."""
        lines = []
        for stop, stitch in self._stops(auxiliary, shape):
            for block in range(stop.first, stop.last + 1):
                entered = f"{stitch}, " if stitch and block == stop.first else ""
                lines.append(f"{entered}row{stop.row} block {block + 1}")
        return lines

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """The first row's stem, the path's blocks and stitches, the last row's norm, and its head for its own task."""
        stops = self._stops(auxiliary, shape)
        first, last = f"row{stops[0][0].row}.", f"row{stops[-1][0].row}."
        out = {name: tensors[first + name] for name in shape.stem_params()}
        position = itertools.count()
        block_params = tuple(auxiliary.layer_params())
        for stop, stitch in stops:
            for block, i in zip(range(stop.first, stop.last + 1), position, strict=False):
                out |= {f"blocks.{i}.{name}": tensors[f"row{stop.row}.blocks.{block}.{name}"] for name in block_params}
                if stitch and block == stop.first:
                    out |= {f"blocks.{i}.stitch.{kind}": tensors[f"{stitch}.{kind}"] for kind in ("weight", "bias")}
        out |= {name: tensors[last + gene_name(name)] for name in shape.norm_params()}
        if shape.num_classes == auxiliary.num_classes:
            out |= {name: tensors[last + name] for name in shape.head_params()}
        return out

    def _stops(self, auxiliary: ViTShape, shape: Shape) -> list[tuple[Stop, str]]:
        """The path's stops, each with the stitch layer that leads into it (none into the first)."""
        path = self.path_of(auxiliary, shape)
        entered = [""]
        for a, b in itertools.pairwise(path):
            layer = self.stitches(auxiliary, a.row, b.row)[a.last, b.first]
            entered.append(f"stitch.{a.row}.{b.row}.{layer}")
        return list(zip(path, entered, strict=True))


@functools.lru_cache(maxsize=64)
def _paths(method: StitchedRows, auxiliary: ViTShape) -> tuple[Path, ...]:
    """The paths of a pool, which are asked for whenever one of them is named or made."""
    return tuple(method._listed(auxiliary))


def _row(name: str, given: Any) -> Row:
    if isinstance(given, Mapping):
        refuse_unknown(given, ("embed_dim", "depth", "num_heads"), f"{name}: a row")
        given = [given.get(key) for key in ("embed_dim", "depth", "num_heads")]
    numbers = [given] if isinstance(given, int) else given
    whole = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) in (1, 3)
    if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise ShapeError(
            f"{name}: a row is a width or [embed_dim, depth, num_heads], all positive integers, not {given!r}"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def rows_of(method: Method) -> StitchedRows:
    """The method as the rows that it is, where ``making`` says ``pool``."""
    assert isinstance(method, StitchedRows)
    return method
