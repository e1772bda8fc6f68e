"""Fresh values of a parameter, by its timm name: what the papers' auxiliary models and new heads start from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


def init_value(name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
    """Draws the start value of one parameter as timm does for a Vision Transformer.

    Linear weights and position embeddings: normal with std 0.02, biases 0, norm weights 1,
    patch convolution: PyTorch's default, class token: std 1e-6.

    Args:
        name: The parameter's name; only its ending matters, so ``B.norm1.weight`` is a norm weight.
        shapes: The shapes of all parameters by name; a convolution's bias depends on the shape of its weight.
        generator: Source of randomness; the caller seeds it.

    Returns:
        A float32 tensor on the CPU.
    """
    value = torch.empty(shapes[name])
    module, _, kind = name.rpartition(".")
    if module.endswith("patch_embed.proj"):
        bound = 1.0 / math.sqrt(math.prod(shapes[f"{module}.weight"][1:]))
        return value.uniform_(-bound, bound, generator=generator)
    if kind == "bias":
        return value.zero_()
    if "norm" in module.rpartition(".")[2]:
        return value.fill_(1.0)
    if kind == "cls_token":
        return value.normal_(std=1e-6, generator=generator)
    # timm truncates at 2, a hundred standard deviations: that never happens, and looking for it takes as long again.
    return value.normal_(std=0.02, generator=generator)


def fresh_parameters(shape: Shape, names: Collection[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Start values of some parameters of a model."""
    if not isinstance(shape, ViTShape) or not shape.arch:
        sizes = shape.all_params()
        return {name: init_value(name, sizes, generator) for name in names}
    inside = any(name.startswith("blocks.") for name in names)
    values = timm_values(shape if inside else shape.replace(depth=1), generator) if names else {}
    return {name: values[name] for name in names}


def timm_values(shape: ViTShape, generator: torch.Generator) -> dict[str, Tensor]:
    """All start values of another architecture than the plain ViT: timm's own."""
    from learngene.vits.timm_layout import start_values

    seed = int(torch.randint(2**31, (), generator=generator))
    return start_values(shape.arch, shape.timm_kwargs(), seed)
