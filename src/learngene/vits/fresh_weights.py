"""Fresh values of a parameter, by its timm name: what the papers' auxiliary models and new heads start from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from learngene.system.errors import ShapeError, nearest
from learngene.vits.shape import MODULE_PARAMS, ViTShape
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


def kept_parameters(shape: Shape, layers: Collection[int] | None, modules: Collection[str] | None) -> set[str]:
    """The parameters to fill: all outside the layers, and those layers and modules that were asked for."""
    layers = range(1, shape.depth + 1) if layers is None else layers
    modules = tuple(MODULE_PARAMS) if modules is None else modules
    for layer in layers:
        if not 1 <= layer <= shape.depth:
            raise ShapeError(f"expand: layer {layer} does not exist; layers count from 1 to {shape.depth}")
    for module in modules:
        if module not in MODULE_PARAMS:
            raise ShapeError(f"expand: unknown module '{module}'{nearest(module, MODULE_PARAMS)}")
    names = shape.parts[0].module_params()
    inside = {f"blocks.{layer - 1}.{name}" for layer in layers for module in modules for name in names[module]}
    inside |= {f"blocks.{layer - 1}.stitch.{kind}" for layer in layers for kind in ("weight", "bias")}
    return {name for name in shape.all_params() if name in inside or not name.startswith("blocks.")}
