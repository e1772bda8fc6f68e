"""Features of a Vision Transformer: what its blocks and attention modules put out, from one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from learngene.system.errors import LearngeneError


@dataclass
class Features:
    """Outputs at some blocks, in their order; each of shape (batch, tokens, width).

    Attributes:
        blocks: Behind the second residual sum of a block: B in equation 4.
        attentions: Behind the attention's output projection, before the residual sum: A in equation 5.
    """

    blocks: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def watched(model: nn.Module, numbers: Sequence[int]) -> Iterator[Features]:
    """Collects the features of a model's next forward pass.

    Args:
        model: A timm Vision Transformer.
        numbers: Its blocks, counted from 1, in rising order.
    """
    blocks: Any = model.blocks if numbers else ()  # any classifier, if no block is read
    with (
        _outputs([blocks[number - 1] for number in numbers]) as outputs,
        _outputs([blocks[number - 1].attn for number in numbers]) as attentions,
    ):
        yield Features(outputs, attentions)


@contextlib.contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what modules put out in the next forward pass."""
    found: list[Tensor] = []
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(lambda _module, _inputs, output: found.append(output)))
        yield found


@contextlib.contextmanager
def watched_blocks(model: nn.Module, numbers: Sequence[int], label: str) -> Iterator[list[Tensor]]:
    """Collects what some blocks of a model's next forward pass put out; they need no attention module to read.

    Args:
        model: A model with a sequence of blocks, if there are numbers.
        numbers: Its blocks, counted from 1, in rising order.
        label: What error messages call it.
    """
    blocks = list(getattr(model, "blocks", ())) if numbers else []
    if numbers and numbers[-1] > len(blocks):
        raise LearngeneError(f"features.blocks: {label} has {len(blocks)} blocks, but block {numbers[-1]} is compared")
    with _outputs([blocks[number - 1] for number in numbers]) as found:
        yield found


def stream(row: nn.Module, images: Tensor) -> list[Tensor]:
    """Tokens that enter every block of a Vision Transformer, and those that leave its last one."""
    found: list[Tensor] = []
    blocks: list[nn.Module] = list(row.blocks)  # type: ignore[arg-type]
    with contextlib.ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0])))
        hooks.enter_context(blocks[-1].register_forward_hook(lambda _module, _inputs, output: found.append(output)))
        row(images)
    return found


def refuse_unreadable(model: nn.Module, label: str) -> None:
    """Raises ``LearngeneError`` unless every block of a model has an attention module whose output can be read."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        raise LearngeneError(
            f"ancestry {label}: block features can only be read from a Vision Transformer made of plain blocks, and "
            f"{type(model).__name__} has no sequence of blocks; set pool.terms=[pred] and pool.stitches=ls to distil "
            "its predictions alone"
        )
    for number, block in enumerate(blocks, start=1):
        if not isinstance(getattr(block, "attn", None), nn.Module):
            raise LearngeneError(
                f"ancestry {label}: block {number}, a {type(block).__name__}, has no attention module to read; use an "
                "ancestry of plain blocks, or pool.terms=[pred]"
            )


@torch.no_grad()
def feature_widths(
    model: nn.Module, label: str, numbers: Sequence[int], size: tuple[int, int, int], tokens: int
) -> list[int]:
    """Width of a model's features at some blocks, found by a pass of an empty image.

    Args:
        model: The ancestry's model.
        label: What error messages call it.
        numbers: Blocks counted from 1.
        size: Channels, height and width of an image.
        tokens: As many as the auxiliary model has.

    Raises:
        LearngeneError: If a block's or its attention's output is not one tensor of (batch, tokens, width), or its
            tokens are not those of the auxiliary model.
    """
    refuse_unreadable(model, label)
    with watched(model, numbers) as found:
        model(torch.zeros(1, *size, device=next(model.parameters()).device))
    widths = []
    for number, output, attention in zip(numbers, found.blocks, found.attentions, strict=True):
        for what, value in (("output", output), ("attention's output", attention)):
            if not isinstance(value, Tensor) or value.ndim != 3:
                form = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise LearngeneError(
                    f"ancestry {label}: the {what} of block {number} is {form}, not (batch, tokens, width); use an "
                    "ancestry of plain blocks, or pool.terms=[pred]"
                )
        if output.shape[1] != tokens:
            raise LearngeneError(
                f"ancestry {label}: block {number} has {output.shape[1]} tokens but the auxiliary models have "
                f"{tokens}; give shape the ancestry's patch_size, img_size and class_token"
            )
        widths.append(output.shape[-1])
    return widths
