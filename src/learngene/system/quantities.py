"""Counts, sizes and times as people write and read them."""

from __future__ import annotations

import math

from learngene.system.errors import LearngeneError


def amount(text: str | float) -> float:
    """A count with an optional K, M, G or T, such as ``10M`` or ``2.5G``; a number stays one."""
    if not isinstance(text, str):
        return text
    scale = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1:].upper(), 1.0)
    try:
        number = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise LearngeneError(f"'{text}' is not a number such as 10M, 2.5G or 5000")
    return number


def short(number: float) -> str:
    """A count as ``amount`` reads it: ``0.2M``, ``2.5G``, ``500``."""
    for unit, scale in (("G", 1e9), ("M", 1e5), ("K", 1e3)):
        if number >= scale:
            return f"{number / {'M': 1e6}.get(unit, scale):.4g}{unit}"
    return f"{number:.4g}"


def size_in_words(size: int) -> str:
    """Bytes as people read them: ``512 B``, ``4.1 kB``, ``98.3 MB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def time_in_words(seconds: float) -> str:
    """Seconds as people read them: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 days 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (unit, scale), (smaller, part) in (
        (("days", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= scale + scale * (unit == "days"):
            rest = whole % scale // part
            return f"{whole // scale} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
