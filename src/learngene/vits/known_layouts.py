"""The layouts of timm's architectures that this process has met."""

from __future__ import annotations

from learngene.system.errors import ShapeError
from learngene.vits.layout import Arguments, Layout

_KNOWN: dict[tuple[str, Arguments], Layout] = {}
"""Layouts of timm's architectures by name and arguments, in this process."""


def arch_layout(arch: str, arguments: Arguments) -> Layout:
    """The layout of one of timm's architectures: remembered, or else read off timm's model, which imports torch.

    Args:
        arch: Timm's name.
        arguments: All of the model's arguments but depth and number of classes.

    Raises:
        ShapeError: If timm has no such architecture, does not take the arguments, or its layers differ.
    """
    if (arch, arguments) not in _KNOWN:
        from learngene.vits.timm_layout import read_layout

        _KNOWN[arch, arguments] = read_layout(arch, dict(arguments))
    return _KNOWN[arch, arguments]


def remember_layout(arch: str, arguments: Arguments, layout: Layout) -> None:
    """Takes over the layout that a gene file tells.

    Raises:
        ShapeError: If another one is known already.
    """
    if _KNOWN.setdefault((arch, arguments), layout) != layout:
        raise ShapeError(f"shape: its layout is not that of timm's {arch}; the file or timm has changed")
