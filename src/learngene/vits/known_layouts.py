"""The layouts of timm's architectures that this process has met: told by gene files, or read off timm's models.

What a file tells serves planning, which imports no torch. It may be wrong, so it never stands in the way of what the
installed timm says, nor of what the next file tells.
"""

from __future__ import annotations

from learngene.system.errors import ShapeError
from learngene.vits.layout import Arguments, Layout

Key = tuple[str, Arguments]
"""Timm's name, and all of the model's arguments but depth and number of classes."""

_READ: dict[Key, Layout] = {}
_TOLD: dict[Key, Layout] = {}


def arch_layout(key: Key) -> Layout:
    """The layout of one of timm's architectures, as timm says, or else as the last gene file did.

    Raises:
        ShapeError: If timm has no such architecture, does not take the arguments, or its layers differ.
    """
    return _READ.get(key) or _TOLD.get(key) or timm_layout(key)


def timm_layout(key: Key) -> Layout:
    """The layout as the installed timm says, which imports torch; raises ``ShapeError`` as ``arch_layout``."""
    if key not in _READ:
        from learngene.vits.timm_layout import read_layout

        _READ[key] = read_layout(key[0], dict(key[1]))
    return _READ[key]


def tell_layout(key: Key, layout: Layout) -> None:
    """Takes over the layout that a gene file tells; ``ShapeError`` if timm is known to say otherwise."""
    _TOLD[key] = layout
    if key in _READ:
        refuse_other(key, layout)


def refuse_other(key: Key, layout: Layout) -> None:
    """Raises ``ShapeError`` unless a layout has the parameters that timm's own has."""
    if not layout.same_parameters(timm_layout(key)):
        raise ShapeError(f"shape: its layout is not that of timm's {key[0]}; the file or timm has changed")
