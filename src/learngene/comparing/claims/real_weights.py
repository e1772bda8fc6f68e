"""TLEG's Figure 1 on a real model: what ``benchmarks/real_weights.py`` measured, held against the claim."""

from __future__ import annotations

import json
from collections.abc import Collection
from statistics import fmean
from typing import Any

from learngene.system.errors import LearngeneError
from learngene.system.files import find_folder
from learngene.vits.linearity import MATRICES

NORMS = ("norm1.weight", "norm2.weight")


def real_first_component() -> tuple[bool, str]:
    """The rule of the test on models of our own: R squared of 0.7 or more, averaged over the matrices."""
    found = _measured()
    fit, chance = found["linearity"], found["independent"]["line"]
    return fit >= 0.7, f"{fit:.2f}, {chance:.2f} by chance"


def real_matrices() -> tuple[bool, str]:
    """A line explains twice what it explains of independent layers, averaged over the matrices."""
    return _twice(MATRICES)


def real_norms() -> tuple[bool, str]:
    """The same of the norms' weights."""
    return _twice(NORMS)


def _twice(names: Collection[str]) -> tuple[bool, str]:
    found = _measured()
    shares = {key: fmean(found["tensors"][name][key] for name in names) for key in ("mean", "line", "cubic")}
    cosine, chance = max(found["tensors"][name]["cosine"] for name in names), found["independent"]
    figures = (
        f"{shares['line']:.2f} of the differences, {chance['line']:.2f} by chance; four Chebyshev terms "
        f"{shares['cubic']:.2f}, {chance['cubic']:.2f} by chance; the mean layer has {shares['mean']:.2f} of the sum "
        f"of squares, {chance['mean']:.2f} by chance; the largest cosine of two layers is {cosine:.3f}"
    )
    return shares["line"] >= 2 * chance["line"], figures


def _measured() -> dict[str, Any]:
    """The first model of the committed measurement."""
    path = find_folder("claims").parent / "results" / "real_weights.json"
    try:
        found: dict[str, Any] = next(iter(json.loads(path.read_text())["models"].values()))
    except (OSError, ValueError, KeyError, StopIteration):
        raise LearngeneError(f"{path}: no measurement of weights; benchmarks/real_weights.py makes it") from None
    return found
