"""Pictures as small PNG files: every plot of the library is written here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from learngene.system.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = 128
"""Of the palette: plots have few, and a palette makes their files a third as large."""


def save_png(figure: Figure, path: Path) -> None:
    """Draws a figure and writes it with a palette.

    Args:
        figure: A matplotlib figure with an Agg canvas.
        path: PNG file to write.
    """
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    image = Image.open(drawn).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    write_file(path, lambda temporary: image.save(temporary, format="png", optimize=True))
