"""The scale of a teacher's features: statistics of a first pass, and what they turn a feature into.

A few large dimensions of a foundation model would rule every distance. Either each dimension gets variance 1 by itself
(Theia, UNIC), or all get it by one common scale behind a rotation (PHI-S, arXiv 2410.01680), which keeps the geometry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEAST = 1e-6
"""A dimension whose deviation is a smaller share of the largest is constant, and stays so."""


class Scale(nn.Module):
    """What a teacher's features are turned into before they are compared: ``(x - shift) turned, times stretch``."""

    shift: Tensor
    turn: Tensor | None
    stretch: Tensor

    def __init__(self, width: int, kind: str) -> None:
        """Makes a scale that changes nothing until it has ``seen`` features and is ``settled``.

        Args:
            width: Of a feature.
            kind: ``none``, ``standardise`` or ``phi-s``.
        """
        super().__init__()
        self.kind = kind
        self._seen: Any = None
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("stretch", torch.ones(width))
        self.register_buffer("turn", torch.eye(width) if kind == "phi-s" else None)

    def forward(self, features: Tensor) -> Tensor:
        """Features in their new scale; the last dimension is the width."""
        if self.kind == "none":
            return features
        out = features.float() - self.shift
        return (out if self.turn is None else out @ self.turn.T) * self.stretch

    def undo(self, features: Tensor) -> Tensor:
        """Features in the teacher's own scale, from those that ``forward`` gives."""
        if self.kind == "none":
            return features
        out = features / self.stretch.to(features)
        return (out if self.turn is None else out @ self.turn.to(features)) + self.shift.to(features)

    @torch.no_grad()
    def see(self, features: Tensor) -> None:
        """Adds features, (..., width), to the statistics, which are sums in float64."""
        rows = features.reshape(-1, len(self.shift)).double().cpu()
        squares = rows.T @ rows if self.kind == "phi-s" else rows.square().sum(0)
        new = len(rows), rows.sum(0), squares
        self._seen = new if self._seen is None else tuple(a + b for a, b in zip(self._seen, new, strict=True))

    @torch.no_grad()
    def settle(self) -> None:
        """Scales by all that was seen."""
        if self._seen is None or self.kind == "none":
            return
        (count, total, squares), self._seen, width = self._seen, None, len(self.shift)
        mean = total / count
        self.shift.copy_(mean)
        if self.turn is None:
            deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
            self.stretch.copy_(torch.where(deviation > LEAST * deviation.max(), 1 / deviation, 1.0))
            return
        values, vectors = torch.linalg.eigh(squares / count - mean.outer(mean))
        values = values.clamp(min=0)
        self.turn.copy_(torch.from_numpy(even_rotation(width)) @ vectors.T)
        self.stretch.fill_(float(values.mean().rsqrt()) if values.mean() > 0 else 1.0)


def even_rotation(order: int) -> np.ndarray:
    """A rotation that spreads every axis evenly over all: a Hadamard matrix over the root of its order.

    Sylvester's doubling of Paley's first construction gives most widths of models (384, 768, 1024, 1280). Where neither
    does, a rotation drawn from a fixed seed comes near.
    """
    doubled = 1
    while order % doubled == 0:
        core = order // doubled
        if (matrix := _paley(core)) is not None:
            while len(matrix) < order:
                matrix = np.block([[matrix, matrix], [matrix, -matrix]])
            out: np.ndarray = matrix / np.sqrt(order)
            return out
        doubled *= 2
    turned, signs = np.linalg.qr(np.random.default_rng(0).standard_normal((order, order)))
    return turned * np.sign(np.diag(signs))


def _paley(order: int) -> np.ndarray | None:
    """A Hadamard matrix of an order of 1, 2 or a prime of the form 4 n + 3 and 1; None for others."""
    prime = order - 1
    if order <= 2:
        return np.array([[1.0]]) if order == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if prime % 4 != 3 or any(prime % divisor == 0 for divisor in range(2, int(prime**0.5) + 1)):
        return None
    residues = {value * value % prime for value in range(1, prime)}
    character = np.array([0.0] + [1.0 if value in residues else -1.0 for value in range(1, prime)])
    places = np.arange(prime)
    inner = character[(places[:, None] - places[None, :]) % prime]
    skew = np.block([[np.zeros((1, 1)), np.ones((1, prime))], [-np.ones((prime, 1)), inner]])
    return skew + np.eye(order)
