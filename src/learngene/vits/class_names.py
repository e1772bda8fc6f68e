"""Which class each output of a model stands for, and how the classes of images are found among them.

Names are compared letter by letter once both are in Unicode's composed form (NFC): file systems and archives of Macs
decompose accents, so that one folder has two spellings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from learngene.vits.stitched_shape import Shape

SHOWN = 3
"""Most names that a message lists."""


def composed(names: Sequence[Any]) -> list[str]:
    """Names in the one spelling in which they are compared."""
    return [unicodedata.normalize("NFC", str(name)) for name in names]


def class_names(model: Any) -> list[str] | None:
    """What the outputs of a model are called.

    Args:
        model: A timm model. A descendant says it in its ``learngene`` record; any other in ``label_names``, which timm
            reads from the folder or the hub.

    Returns:
        A name per output; None if nobody says them, or if there are not as many as outputs, as when the head was
        replaced since.
    """
    names = getattr(model, "learngene", {}).get("class_names")
    if not names:
        names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)] if all(str(key).isdigit() for key in names) else None
    return composed(names) if names and len(names) == model.num_classes else None


def places(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Where each name stands among known ones.

    Args:
        names: Of the classes of images.
        known: Of a model's outputs.

    Returns:
        An index into ``known`` per name; None if a name is not among them, or if a name that occurs twice leaves open
        which one is meant.
    """
    names, known = composed(names), composed(known)
    if names == known:
        return list(range(len(names)))
    index = {name: number for number, name in enumerate(known)}
    twice = len(index) < len(known) or len(set(names)) < len(names)
    return None if twice or not index.keys() >= set(names) else [index[name] for name in names]


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def carry_head(
    weights: dict[str, Tensor],
    shape: Shape,
    own: Sequence[str] | None,
    names: Sequence[str] | None,
    *,
    predicted: bool = False,
) -> bool:
    """Puts the rows of a gene's head into the order of the wanted classes, or drops the head if they are others.

    Args:
        weights: Of a model of the shape; changed in place.
        shape: The shape.
        own: The gene's classes, if it has a head for them and says what they are called.
        names: The wanted classes, if they have names.
        predicted: Whether the head was made for the shape and not stored, so that it is never dropped.

    Returns:
        Whether a head was dropped.
    """
    held = [name for name in shape.head_params() if name in weights]
    if own is None or names is None or not held:
        return False
    found = places(names, own)
    for name in held:
        if found is not None:
            weights[name] = weights[name][found]
        elif not predicted:
            del weights[name]
    return found is None and not predicted
