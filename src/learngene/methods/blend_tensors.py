"""Linear combinations of tensors for all layers at once, with a gradient in one pass per layer; see ``blend``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Blend(torch.autograd.Function):
    """``out[i] = sum over k of coefficients[i][k] * sources[k]``.

    Autograd would write a scaled copy of every layer's gradient before adding it; accumulating in place halves the
    memory traffic, which is what the linear constraint costs in a training step.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Sequence[Sequence[float]], *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.coefficients = coefficients
        out = []
        for row in coefficients:
            value = sources[0] if row[0] == 1.0 else sources[0] * row[0]
            for source, coefficient in zip(sources[1:], row[1:], strict=True):
                value = torch.add(value, source, alpha=coefficient)
            out.append(value)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = []
        for column in zip(*ctx.coefficients, strict=True):
            total = gradients[0] * column[0]
            for coefficient, gradient in zip(column[1:], gradients[1:], strict=True):
                total.add_(gradient, alpha=coefficient)
            sums.append(total)
        return None, *sums


def blend_tensors(coefficients: Sequence[Sequence[float]], sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``blend`` of torch's tensors, differentiable in the sources."""
    out: tuple[Tensor, ...] = _Blend.apply(coefficients, *sources)
    return out
