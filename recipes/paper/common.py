"""What all generated recipes share: their header of size and cost, and their text."""

import math
from collections.abc import Mapping

from learngene.methods import Method
from learngene.vits.shape import ViTShape

Fields = Mapping[str, object]

IMAGES = 1_281_167  # training images of ImageNet-1K
IMAGENET = "data.source=/path/to/imagenet"  # of the commands in headers
SIZES = {"ti": "deit_tiny_patch16_224", "s": "deit_small_patch16_224", "b": "deit_base_patch16_224"}
UNFLIPPED = ("gtsrb", "omniglot", "svhn")  # without flips and colours in the authors' code


def stored_numbers(kind: Method, shape: ViTShape) -> int:
    """Parameters of a gene with this auxiliary shape."""
    return sum(math.prod(tensor) for tensor in kind.gene_tensors(shape).values())


def size_and_cost(
    shape: ViTShape,
    epochs: int,
    stored: int = 0,
    teacher: int = 0,
    images: int = IMAGES,
    taught_by: str = "LeViT-384",
) -> str:
    """Two lines of a header: of the model, and of its training beside a teacher of so many multiply-adds."""
    # A backward pass costs two forward passes; the ancestry only runs forward.
    total = (3 * shape.macs() + teacher) * images * epochs
    gene = f" ({stored:,} in the gene)" * bool(stored)
    per_image = f"3 x {shape.macs() / 1e9:.3f}" + f" + {teacher / 1e9:.3f} for {taught_by}" * bool(teacher)
    return f"""\
Size: {shape.params():,} parameters{gene}, {shape.macs() / 1e9:.3f} G multiply-adds per image.
Cost: {total:.2e} multiply-adds = {epochs} epochs x {images:,} images x ({per_image}) G."""


def recipe_text(
    kind: str,
    path: str,
    header: str,
    fields: Fields,
    train: Fields,
    images: str = IMAGENET,
    base: str = "",
    out: str = "",
) -> str:
    """A recipe that says what is its own, below its header."""
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    run = f"learngene {kind} recipes/paper/{path}.yaml {images}"
    if lines[-1].endswith(("Run:", "#")):
        lines[-1] += f" {run}" if lines[-1].endswith("Run:") else f"   {run}"
    else:
        lines += [f"# Run: {run}"]
    lines += [f"extends: {base or ('_aux' if kind == 'condense' else '_des')}.yaml"]
    for key, value in fields.items():
        inner = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else ""
        lines += [f"{key}: {{{inner}}}" if inner else f"{key}:{'' if str(value).startswith(chr(10)) else ' '}{value}"]
    lines += ["train:", *(f"  {key}: {value}" for key, value in train.items())]
    return "\n".join([*lines, f"out: runs/{out or path.replace('/', '-')}"]) + "\n"
