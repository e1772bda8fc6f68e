"""What methods that cut a smaller ViT out of a larger one have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from learngene.methods.base import gene_name, plain
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


def refuse_larger(name: str, auxiliary: ViTShape, shape: Shape) -> None:
    """Raises ``ShapeError`` unless every size is at most the larger model's, and the images are cut the same way."""
    plain(shape)
    for field in ("patch_size", "in_chans", "class_token"):
        have, want = getattr(auxiliary, field), getattr(shape, field)
        if have != want:
            raise ShapeError(f"shape: this gene has {field} {have}, not {want}; only its own {field} can be made")
    for field in ("depth", "embed_dim", "hidden_dim"):
        have, want = getattr(auxiliary, field), getattr(shape, field)
        if want > have:
            raise ShapeError(f"{name}: {field} {want} is beyond the ancestry's {have}; it can only be cut, not grown")


def narrower_widths(auxiliary: ViTShape) -> list[tuple[int, int]]:
    """Width and heads of every narrower ViT with heads of the same size, the ancestry's own first."""
    return [(heads * auxiliary.head_dim, heads) for heads in range(auxiliary.num_heads, 0, -1)]


def wanted(
    parts: Collection[str], auxiliary: ViTShape, shape: ViTShape
) -> Iterator[tuple[str, tuple[int, ...], int | None, str]]:
    """Every tensor of the smaller model that comes from the larger one; the head only for the same number of classes.

    Yields:
        Its name, its size on the auxiliary grid, its layer (None outside the layers), and its name in the layer or,
        outside, in the gene.
    """
    for name, size in shape.replace(img_size=auxiliary.img_size).all_params().items():
        if name.startswith("blocks."):
            layer, _, rest = name.removeprefix("blocks.").partition(".")
            yield name, size, int(layer), rest
        elif not name.startswith("head.") or ("head" in parts and shape.num_classes == auxiliary.num_classes):
            yield name, size, None, gene_name(name)
