"""Rows of blocks and the paths through them: what Learngene Pool and Stitchable Neural Networks have in common.

A gene holds whole models of different widths, its rows, and linear stitch layers between their blocks. A path passes
through consecutive blocks of one row, a stitch layer, consecutive blocks of another row, and so on; it starts with the
first row's stem and ends with the last row's norm and head. Blocks count from 0 here, as i and j do in the papers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Making, Method, gene_name, is_count, refuse_arch, require_choice
from learngene.system.errors import ShapeError, refuse_unknown
from learngene.vits.segment import Segment, path_pieces
from learngene.vits.shape import MAX_DEPTH, ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("up", "down")
RowSize = int | tuple[int, int, int]
"""A width, or (embed_dim, depth, num_heads)."""

LISTED = 3
"""Paths that an error names as the nearest."""

Segments = tuple[Segment, ...]


@dataclass(frozen=True)
class StitchedRows(Method):
    """A method whose gene is a pool of rows.

    Attributes:
        rows: Widths from small to large, the last of which is the auxiliary shape's. A row may also be
            ``[embed_dim, depth, num_heads]``, with heads of any width; a width alone has the auxiliary shape's depth
            and width of heads.
        direction: ``up`` stitches from narrow rows to wide ones, as both papers do; ``down`` the other way.
        nearest: Stitch neighbouring rows only (SN-Net's default); otherwise every pair of rows.
        max_stitches: Most stitch layers on a path; 2 adds paths through three rows.
        final_norm: Apply the final norm on stitched paths, as whole rows do. SN-Net's code leaves it out there.
    """

    rows: tuple[RowSize, ...] = (192, 768)
    direction: str = "up"
    nearest: bool = True
    max_stitches: int = 1
    final_norm: bool = True

    making: ClassVar[Making] = "pool"
    kept_fields: ClassVar[tuple[str, ...]] = ("mlp_ratio", "patch_size", "in_chans", "class_token")
    makes_paths: ClassVar[bool] = True
    takes_arrays: ClassVar[bool] = True
    equal_depth: ClassVar[bool]
    """Whether all rows must have as many blocks."""
    stitch_init: ClassVar[str]
    """How stitch layers start by default: ``tm`` or ``ls``, see ``recipe.sections.PoolSpec``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rows, Sequence) or isinstance(self.rows, str) or len(self.rows) < 2:
            raise ShapeError(f"{self.name}: rows must be a list of two widths or more, not {self.rows!r}")
        object.__setattr__(self, "rows", tuple(_row_size(self.name, row) for row in self.rows))
        require_choice(self.name, "direction", self.direction, DIRECTIONS)

    # -- rows ----------------------------------------------------------------------------------------

    def row_shapes(self, auxiliary: ViTShape) -> list[ViTShape]:
        """Every row as a whole model."""
        shapes = []
        for row in self.rows:
            if isinstance(row, int):
                if row % auxiliary.head_dim:
                    raise ShapeError(
                        f"{self.name}: a row of width {row} cannot have heads of {auxiliary.head_dim} as the auxiliary "
                        f"shape's; use a multiple of {auxiliary.head_dim}, or [{row}, DEPTH, HEADS]"
                    )
                row = (row, auxiliary.depth, row // auxiliary.head_dim)
            width, depth, heads = row
            shapes.append(auxiliary.replace(embed_dim=width, depth=depth, num_heads=heads))
        return shapes

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Rows go from narrow to wide and end at the auxiliary shape."""
        refuse_arch(self.name, auxiliary)
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

    # -- paths: each is a shape, a plain one for a whole row and otherwise a stitched one -------------------------

    def paths(self, auxiliary: ViTShape) -> list[Shape]:
        """All paths: whole rows, then those with one stitch, then those with two, and so on."""
        return list(_paths(self, auxiliary).values())

    def _list_paths(self, auxiliary: ViTShape) -> Iterator[Segments]:
        """The segments of all paths, without the shapes that ``paths`` makes of them."""
        rows = [row.segments[0] for row in self.row_shapes(auxiliary)]
        paths: list[Segments] = [(row,) for row in rows]
        yield from paths
        for _ in range(self.max_stitches):
            paths = [longer for path in paths for longer in self._continued(auxiliary, path, rows)]
            yield from paths

    def _continued(self, auxiliary: ViTShape, path: Segments, rows: Sequence[Segment]) -> Iterator[Segments]:
        """Every path that leaves the last row of this one for another row."""
        *before, last = path
        for source, target in self.row_pairs():
            if rows[source].embed_dim == last.embed_dim:
                for i, j in self.stitches(auxiliary, source, target):
                    if i + 1 >= last.first:
                        left, entered = replace(last, last=i + 1), replace(rows[target], first=j + 1)
                        yield (*before, left, entered)

    def shapes(self, auxiliary: ViTShape, base: ViTShape) -> Iterator[Shape]:
        """The shape of every path for another task."""
        for path in self.paths(auxiliary):
            yield path.replace(num_classes=base.num_classes, img_size=base.img_size, ending=base.ending)

    def row_of(self, segment: Segment) -> int:
        """The row of a segment; rows differ in width."""
        widths = [row if isinstance(row, int) else row[0] for row in self.rows]
        return widths.index(segment.embed_dim)

    def _refuse_segments(self, auxiliary: ViTShape, segments: Segments) -> None:
        """Raises ``ShapeError`` if they are no path of the pool; the message names the nearest ones."""
        heads = self._heads(auxiliary)
        for segment in segments:
            if segment.embed_dim not in heads:
                known = ", ".join(map(str, heads))
                raise ShapeError(f"{self.name}: no row has width {segment.embed_dim}; rows have {known}")
            if segment.num_heads != (own := heads[segment.embed_dim]):
                raise ShapeError(
                    f"{self.name}: row {segment.embed_dim} has {own} heads, not {segment.num_heads}; "
                    f"heads are never reinterpreted; name the path, or give segments"
                )
        if segments not in _paths(self, auxiliary):
            raise self._no_path("+".join(map(str, segments)), segments, auxiliary)

    def _heads(self, auxiliary: ViTShape) -> dict[int, int]:
        """The heads of every row, by its width."""
        return {row.embed_dim: row.num_heads for row in self.row_shapes(auxiliary)}

    def named_shape(self, auxiliary: ViTShape, name: str) -> Shape:
        """The path ``192:1-4+768:5-6``, or that of the papers' numbers of blocks from each row, such as ``4+2``.

        Raises:
            ShapeError: If no path is called so, or several are.
        """
        rows, paths = self.row_shapes(auxiliary), self.paths(auxiliary)
        if ":" in name:
            heads = self._heads(auxiliary)
            segments = tuple(Segment(width, heads.get(width, 0), *blocks) for width, *blocks in path_pieces(name))
            self._refuse_segments(auxiliary, segments)
            return _paths(self, auxiliary)[segments]
        counts = name.replace(" ", "").split("+")
        if len(counts) != len(rows) or not all(count.isascii() and count.isdigit() for count in counts):
            widths = " + ".join(str(row.embed_dim) for row in rows)
            raise ShapeError(
                f"{self.name}: path '{name}' is neither of the form 192:1-4+768:5-6 nor a number of blocks of each row "
                f"({widths}), such as {self.counts(paths[-1])}"
            )
        wanted = "+".join(str(int(count)) for count in counts)
        found = [path for path in paths if self.counts(path) == wanted]
        if not found:
            taken = zip(rows, map(int, counts), strict=True)
            segments = tuple(replace(row.segments[0], last=count) for row, count in taken if count)
            raise self._no_path(name, segments, auxiliary)
        if len(found) > 1:
            names = " or ".join(path.path for path in found)
            raise ShapeError(f"{self.name}: {len(found)} paths have {wanted} blocks; use {names}")
        return found[0]

    def counts(self, path: Shape) -> str:
        """The papers' name of a path: how many blocks it takes of every row, such as ``4+2``."""
        taken = {self.row_of(segment): segment.depth for segment in path.segments}
        return "+".join(str(taken.get(row, 0)) for row in range(len(self.rows)))

    def label(self, auxiliary: ViTShape, shape: Shape) -> str:
        """Both names of a path, in columns."""
        return f"{self.counts(shape):8s} {shape.path:24s}"

    def flags(self, auxiliary: ViTShape, shape: Shape) -> str:
        """A path says depth, width and heads."""
        return f"--path {shape.path}"

    def _no_path(self, name: str, segments: Segments, auxiliary: ViTShape) -> ShapeError:
        wanted, paths = _blocks(segments), self.paths(auxiliary)
        close = sorted(paths, key=lambda path: len(_blocks(path.segments) ^ wanted))[:LISTED]
        listed = ", ".join(f"{self.counts(path)} ({path.path})" for path in close)
        return ShapeError(
            f"{self.name}: the pool has no path {name}; the nearest of its {len(paths)} paths are {listed}"
        )

    # -- what every method says ----------------------------------------------------------------------

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Only the pool's paths can be made, for any classes and image size."""
        super().refuse(auxiliary, shape, **options)
        if isinstance(shape, StitchedShape) and shape.final_norm != self.final_norm:
            raise ShapeError(
                f"{self.name}: stitched paths of this gene have {'a' if self.final_norm else 'no'} final norm; "
                f"use final_norm={self.final_norm}"
            )
        self._refuse_segments(auxiliary, shape.segments)

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
        for segment, stitch in self._entered(auxiliary, shape):
            for block in range(segment.first, segment.last + 1):
                entered = f"{stitch}, " if stitch and block == segment.first else ""
                lines.append(f"{entered}row{self.row_of(segment)} block {block}")
        return lines

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """The first row's stem, the path's blocks and stitches, the last row's norm, and its head for its own task."""
        first, last = (f"row{self.row_of(shape.segments[end])}." for end in (0, -1))
        out = {name: tensors[first + name] for name in shape.stem_params()}
        position, names = itertools.count(), tuple(auxiliary.layer_params())
        for segment, stitch in self._entered(auxiliary, shape):
            for block in range(segment.first, segment.last + 1):
                source, target = f"row{self.row_of(segment)}.blocks.{block - 1}", f"blocks.{next(position)}"
                out |= {f"{target}.{name}": tensors[f"{source}.{name}"] for name in names}
                if stitch and block == segment.first:
                    out |= {f"{target}.stitch.{kind}": tensors[f"{stitch}.{kind}"] for kind in ("weight", "bias")}
        out |= {name: tensors[last + gene_name(name)] for name in shape.norm_params()}
        if shape.num_classes == auxiliary.num_classes:
            out |= {name: tensors[last + name] for name in shape.head_params()}
        return out

    def _entered(self, auxiliary: ViTShape, shape: Shape) -> Iterator[tuple[Segment, str]]:
        """The path's segments, each with the stitch layer that leads into it (none into the first)."""
        yield shape.segments[0], ""
        for a, b in itertools.pairwise(shape.segments):
            rows = self.row_of(a), self.row_of(b)
            yield b, "stitch.{}.{}.{}".format(*rows, self.stitches(auxiliary, *rows)[a.last - 1, b.first - 1])


@functools.lru_cache(maxsize=64)
def _paths(method: StitchedRows, auxiliary: ViTShape) -> dict[Segments, Shape]:
    """The paths of a pool by their segments; they are asked for whenever one of them is named or made."""
    rows = {row.segments: row for row in method.row_shapes(auxiliary)}
    return {
        path: rows.get(path) or StitchedShape.of(auxiliary, path, final_norm=method.final_norm)
        for path in method._list_paths(auxiliary)
    }


def _blocks(segments: Segments) -> set[tuple[int, int]]:
    """Width and number of every block, as far as rows can be deep."""
    return {
        (segment.embed_dim, block)
        for segment in segments
        for block in range(segment.first, min(segment.last, MAX_DEPTH) + 1)
    }


def _row_size(name: str, given: Any) -> RowSize:
    if isinstance(given, Mapping):
        refuse_unknown(given, ("embed_dim", "depth", "num_heads"), f"{name}: a row")
        given = [given.get(key) for key in ("embed_dim", "depth", "num_heads")]
    numbers = [given] if isinstance(given, int) else given
    listed = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) in (1, 3)
    if not listed or not all(map(is_count, numbers)):
        raise ShapeError(
            f"{name}: a row is a width or [embed_dim, depth, num_heads], all positive integers, not {given!r}"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def rows_of(method: Method) -> StitchedRows:
    """The method as the rows that it is, where ``making`` says ``pool``."""
    assert isinstance(method, StitchedRows)
    return method
