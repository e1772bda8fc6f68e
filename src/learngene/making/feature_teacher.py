"""A teacher of features: at the size at which its grid is the student's, with its own normalisation."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene.genes.ancestry import Ancestry
from learngene.making.block_features import watched_blocks
from learngene.recipe.features import FeatureTarget
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError
from learngene.training.teacher import Outputs, Teacher
from learngene.vits.input_size import input_size, resize
from learngene.vits.shape import ViTShape

Features = Outputs
"""By kind: ``pooled`` or ``class`` of (batch, width); ``patches`` and ``block N`` of (batch, patches, width)."""


@dataclass(frozen=True)
class Tokens:
    """What a model makes of images: the vector that its head reads, and the tokens behind its last layer."""

    pooled: Tensor
    last: Tensor


class FeatureTeacher(nn.Module):
    """An ancestry that is asked for features, frozen and in evaluation mode.

    Attributes:
        model: The timm model, at the size of its images.
        label: What messages call it.
        widths: Width of the features of every kind.
        grid: Patches along a side of its map; None if no patches are compared.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, ancestry: Ancestry, spec: FeatureTarget, shape: ViTShape, data: DataSpec) -> None:
        """Brings the teacher to its size and looks at its features of an empty image.

        Args:
            ancestry: The teacher; it stays as it is.
            spec: Which features.
            shape: The auxiliary shape.
            data: How the student's images are normalised; mean and std set.

        Raises:
            LearngeneError: If the teacher has no such features, or its map is not the student's.
        """
        super().__init__()
        self.label, self.spec = f"ancestry {ancestry.identity['source']}", spec
        self._load: Callable[[], FeatureTeacher] | None = None
        if not ancestry.has_weights:
            self._load = lambda: FeatureTeacher(ancestry.with_weights(), spec, shape, data)
        if getattr(ancestry.model, "learngene", {}).get("head") == "segmentation":
            raise LearngeneError(f"{self.label} has a segmentation head; give a classifier, or a model without a head")
        chans, *own = input_size(ancestry.model)
        if shape.in_chans not in (1, chans):
            raise LearngeneError(
                f"{self.label} takes images with {chans} channels, but the auxiliary shape has {shape.in_chans}; set "
                "shape.in_chans, or pass ancestry.model_args={in_chans: " + f"{shape.in_chans}}}"
            )
        self.size = self._size(ancestry.model, own[0], shape)
        self.model = self._resized(ancestry.model, own, chans, shape)
        theirs, mine = ancestry.preprocessing, {"mean": data.mean or (), "std": data.std or ()}
        normalised = {key: list(theirs[key]) for key in ("mean", "std")}
        self._decided_by = {"sha256": ancestry.identity["sha256"], "img_size": self.size, **normalised}
        mean, std = (torch.tensor(theirs[key]).view(-1, 1, 1) for key in ("mean", "std"))
        own_mean, own_std = (torch.tensor(mine[key]).view(-1, 1, 1) for key in ("mean", "std"))
        self.register_buffer("factor", own_std / std)
        self.register_buffer("offset", (own_mean - mean) / std)
        self.eval().requires_grad_(False)
        device = ancestry.device
        try:
            found = self(torch.zeros(1, chans, shape.img_size, shape.img_size, device=device))
        except LearngeneError:
            raise
        except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise LearngeneError(f"{self.label}: its features cannot be read at {self.size} px ({reason})") from None
        self.widths = {kind: value.shape[-1] for kind, value in found.items()}
        self.grid = next((math.isqrt(value.shape[1]) for value in found.values() if value.ndim == 3), None)
        if self.grid not in (None, shape.grid_size) and spec.resize == "none":
            raise LearngeneError(
                f"{self.label} has {self.grid} x {self.grid} patches at {self.size} px, but the auxiliary shape "
                f"{shape.grid_size} x {shape.grid_size}; {self._ways_out(shape, self.grid)}"
            )

    def train(self, mode: bool = True) -> FeatureTeacher:
        """Stays in evaluation mode, as every teacher."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of images that are normalised, cropped and mixed for the student."""
        images = images * self.factor.to(images.device) + self.offset.to(images.device)
        if images.shape[-1] != self.size:
            side = (self.size, self.size)
            images = F.interpolate(images, side, mode="bicubic", antialias=True, align_corners=False)
        numbers = [theirs for theirs, _ in self.spec.blocks]
        with watched_blocks(self.model, numbers, self.label) as blocks:
            tokens = self.model.forward_features(images)
        out: Features = {}
        if "pooled" in self.spec.tokens:
            out["pooled"] = self.model.forward_head(tokens, pre_logits=True)
            if out["pooled"].ndim != 2:
                raise ValueError(f"its head reads {tuple(out['pooled'].shape)}, not one vector per image")
        if "class" in self.spec.tokens:
            if getattr(self.model, "cls_token", None) is None:
                raise ValueError("it has no class token; use pooled")
            out["class"] = tokens[:, 0]
        if "patches" in self.spec.tokens:
            out["patches"] = patches_of(self.model, tokens)
        return out | {
            f"block {number}": patches_of(self.model, block) for number, block in zip(numbers, blocks, strict=True)
        }

    def with_weights(self) -> FeatureTeacher:
        """Itself, with the ancestry's weights from now on."""
        if self._load is not None:
            self.model, self._load = self._load().model, None
        return self

    def described(self) -> Teacher:
        """The teacher as the training loop knows it."""
        return Teacher(tuple(self.widths), self._decided_by, self.with_weights, lambda: self._load is not None)

    # -- the size of its images ------------------------------------------------------------------------

    def _size(self, model: Any, own: int, shape: ViTShape) -> int:
        """Side of its images in pixels: as the recipe says, else that at which both grids are the same."""
        if self.spec.img_size is not None:
            return self.spec.img_size
        side = patch_side(model)
        if self.spec.grids and self.spec.resize == "bilinear":
            return own
        flat = hasattr(model, "num_prefix_tokens")  # other models take about any size, and pooled has no grid
        return side * shape.grid_size if side and (self.spec.grids or flat) else shape.img_size

    def _resized(self, model: Any, own: list[int], chans: int, shape: ViTShape) -> Any:
        """The model, or a copy that takes images of the size; where no grid matters, a fixed size will do."""
        if own == [self.size, self.size]:
            return model
        out = copy.deepcopy(model)
        try:
            resize(out, self.size)
        except LearngeneError as error:
            if not self.spec.grids and self.spec.img_size is None:
                self.size = own[0]
                return model
            reason = (str(error).partition(": ")[2] or str(error)).removesuffix("; leave data.img_size out")
            text = f"{self.label} does not take images of {self.size} px: {reason}"
            if self.spec.grids:
                with torch.no_grad():
                    tokens = model.forward_features(torch.zeros(1, chans, *own, device=next(model.parameters()).device))
                text += f"; {self._ways_out(shape, math.isqrt(patches_of(model, tokens).shape[1]))}"
            raise LearngeneError(text) from None
        return out

    def _ways_out(self, shape: ViTShape, grid: int) -> str:
        """Which sizes would fit, in words."""
        ways = [f"set shape.img_size={grid * shape.patch_size}"]
        patches = [side for side in range(1, shape.img_size + 1) if side * grid == shape.img_size]
        ways += [f"shape.patch_size={side}" for side in patches if side != shape.patch_size]
        return ", ".join([*ways, "features.img_size"]) + " or features.resize=bilinear"


def for_student(preprocessing: Mapping[str, Any], in_chans: int) -> dict[str, Any]:
    """How a student's images are normalised if nobody says: as its teacher's; grey ones with the colours' mean."""
    out = dict(preprocessing)
    for key in ("mean", "std"):
        values = tuple(out[key])
        out[key] = (statistics.fmean(values),) if in_chans == 1 else values
    return out


def patch_side(model: Any) -> int | None:
    """Pixels along the side of what one vector of a model's last map stands for; None if it does not say."""
    if hasattr(model, "num_prefix_tokens"):
        embed = getattr(model, "patch_embed", None)
        grid, patch = getattr(embed, "grid_size", None), getattr(embed, "patch_size", None)
        if grid:  # of a hybrid, patches are those of a map of its convolutions
            return input_size(model)[1] // int(grid[0])
        return int(patch[0] if isinstance(patch, (tuple, list)) else patch) if patch else None
    levels = getattr(model, "feature_info", None)
    try:
        return int(levels[-1]["reduction"]) if levels else None
    except (TypeError, KeyError, IndexError):
        return None


def patches_of(model: Any, tokens: Tensor) -> Tensor:
    """One vector per patch, (batch, patches, width), row by row: without class and register tokens.

    Args:
        model: A timm model.
        tokens: What its last layer, or one of its blocks, put out: tokens, or a map with channels first or last.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
        raise ValueError("it has no patch tokens; use features.tokens=[pooled]")
    if tokens.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        tokens = tokens if channels_last else tokens.permute(0, 2, 3, 1)
        if tokens.shape[1] != tokens.shape[2]:
            raise ValueError(f"its map of {tokens.shape[1]} x {tokens.shape[2]} is not square")
        return tokens.flatten(1, 2)
    patches = tokens[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    if math.isqrt(patches.shape[1]) ** 2 != patches.shape[1]:
        raise ValueError(f"its {patches.shape[1]} patches make no square map; use features.tokens=[pooled]")
    return patches
