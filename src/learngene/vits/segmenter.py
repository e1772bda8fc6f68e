"""Segmenter: a timm Vision Transformer whose patch tokens give every pixel a class (SETR-naive).

The head is that of Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with
Transformers" (CVPR 2021), section 3.2: two 1 x 1 convolutions with batch normalisation and ReLU between them, then one
bilinear upsampling to the image's size. Here the width between the convolutions is the tokens' own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, create_model, generate_default_cfgs, get_model_args, register_model
from timm.models._input import update_model_input_size
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from learngene.system.errors import LearngeneError
from learngene.vits.descendant_folder import model_arguments
from learngene.vits.input_size import input_size
from learngene.vits.timm_models import TimmModel

__all__ = ["Segmenter", "segment"]

ARCHITECTURE = "learngene_segmenter"
KINDS = (VisionTransformer, Eva, Beit)
"""Classes of timm's whose patch tokens form a grid behind the last layer: also DINOv2, DINOv3, SigLIP, EVA-02, BEiT."""

KEEPS_POOL = ("", "avg", "token", "max", "avgmax")
"""Ways of pooling tokens that have no weights of their own; pixels need none of them."""


class SegmentationHead(nn.Module):
    """Patch tokens on their grid to logits of every patch; ``segmenter_sizes.py`` counts its parameters."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        """Makes the layers with PyTorch's start values.

        Args:
            embed_dim: Width of the tokens.
            num_classes: Classes of a pixel.
        """
        super().__init__()
        self.conv = nn.Conv2d(embed_dim, embed_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.classes = nn.Conv2d(embed_dim, num_classes, 1)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Start values: normal with standard deviation 0.02 as those of any new head here, and no bias."""
        nn.init.normal_(self.conv.weight, std=0.02, generator=generator)
        _init_classes(self.classes, generator)

    def forward(self, tokens: Float[Tensor, "batch width rows columns"]) -> Float[Tensor, "batch classes rows columns"]:
        """Logits of every patch."""
        out: Tensor = self.classes(F.relu(self.norm(self.conv(tokens))))
        return out


def _init_classes(layer: nn.Conv2d, generator: torch.Generator | None = None) -> None:
    nn.init.normal_(layer.weight, std=0.02, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class Segmenter(nn.Module):
    """A Vision Transformer without its classifier, and a head that gives every pixel a class.

    Attributes:
        backbone: The timm model.
        head: The head.
        num_classes: Classes of a pixel.
        num_features: Width of the tokens.
        pretrained_cfg: What timm keeps of any model: preprocessing, and the name it is rebuilt by.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    learngene: dict[str, Any]

    def __init__(self, backbone: TimmModel, num_classes: int) -> None:
        """Puts a head with PyTorch's start values on a timm Vision Transformer without classifier."""
        super().__init__()
        self.backbone = backbone
        self.num_classes, self.num_features = num_classes, int(backbone.num_features)
        self.head = SegmentationHead(self.num_features, num_classes)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Logits of every pixel of normalised images."""
        size = images.shape[-2:]
        grid = self.backbone.patch_embed.dynamic_feat_size(size)
        # Where a model pools before its last norm, that norm has to act on every token here.
        tokens = self.backbone.fc_norm(self.backbone.forward_features(images))
        tokens = tokens[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        return F.interpolate(self.head(tokens), size=size, mode="bilinear", align_corners=False)

    @property
    def blocks(self) -> nn.Sequential:
        """The layers."""
        blocks: nn.Sequential = self.backbone.blocks
        return blocks

    # -- what timm asks of a model -------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last convolution."""
        return self.head.classes

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the head a new last convolution, initialised from torch's generator; nothing can be pooled."""
        if num_classes < 1 or global_pool is not None:
            raise LearngeneError("a segmentation head has one class or more, and no pooling; take model.backbone")
        old = self.head.classes.weight
        classes = nn.Conv2d(self.num_features, num_classes, 1, device=old.device, dtype=old.dtype)
        _init_classes(classes)
        self.head.classes, self.num_classes = classes, num_classes

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers shall not decay, as those of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameter belongs to which layer, for timm's ``layer_decay``."""
        return {
            "stem": r"^backbone\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)",
            # 99999 is timm's mark for the layer before; what matches nothing, as the head does, comes last.
            "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.(?:norm|fc_norm)\.", (99999,))],
        }

    @property
    def in_chans(self) -> int:
        """Channels of the images, which timm asks of any model."""
        return int(self.backbone.patch_embed.proj.in_channels)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Takes images of another side, or height and width, in pixels; position embeddings are resampled."""
        size: tuple[int, int] = to_2tuple(img_size)
        self.backbone.set_input_size(img_size=size)
        update_model_input_size(self, size)
        self.pretrained_cfg = self.default_cfg = {**self.pretrained_cfg, "input_size": (self.in_chans, *size)}

    def timm_arguments(self) -> dict[str, Any]:
        """Arguments that make timm rebuild it: the backbone's name and its own arguments, and the classes."""
        arguments = get_model_args(self.backbone, {**model_arguments(self.backbone), "num_classes": 0})
        for name in ("num_classes", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            arguments.pop(name, None)
        return {
            "backbone": self.backbone.pretrained_cfg["architecture"],
            "backbone_args": arguments,
            "num_classes": self.num_classes,
        }


def segment(
    model: TimmModel, num_classes: int, *, seed: int = 0, class_names: Sequence[str] | None = None
) -> Segmenter:
    """Turns a classifier into a model that gives every pixel a class.

    Args:
        model: A timm Vision Transformer of one of ``KINDS``, for example an expanded gene or a loaded descendant. It is
            taken over; its classifier is dropped, and an attention pool, which pixels have no use for.
        num_classes: Classes of a pixel.
        seed: Of the new head.
        class_names: Their names, which travel with the model.

    Returns:
        The model in evaluation mode, with the preprocessing and the ``learngene`` record of the classifier.

    Raises:
        LearngeneError: If it is no Vision Transformer of timm, or has a segmentation head already, or the number of
            classes is none.
    """
    if isinstance(model, Segmenter):
        raise LearngeneError("the model has a segmentation head already; reset_classifier gives it other classes")
    if not isinstance(model, KINDS):
        name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
        raise LearngeneError(
            f"{name} cannot have a segmentation head, which needs patch tokens on a grid; use a ViT, DeiT, DINOv2, "
            f"DINOv3, SigLIP, EVA-02 or BEiT ({', '.join(kind.__name__ for kind in KINDS)} in timm)"
        )
    if not isinstance(num_classes, Integral):
        raise LearngeneError(f"num_classes must be how many classes a pixel has, for example 21, not {num_classes!r}")
    if num_classes < 2:
        raise LearngeneError(f"a segmentation head needs two classes or more, not {num_classes}")
    record = copy.deepcopy(getattr(model, "learngene", {}))
    size = input_size(model)[1:]
    cfg = {**model.pretrained_cfg, "input_size": input_size(model)}
    pooled = model.global_pool in KEEPS_POOL
    model.reset_classifier(0, None if pooled else "")
    if "shape" in record:
        record["shape"] |= {"num_classes": 0, "img_size": size[0]}
        if not pooled:
            record["shape"]["arch_args"] = {**record["shape"].get("arch_args", {}), "global_pool": ""}
        gone = ("head.", "attn_pool.")
        record["fresh"] = [name for name in record.get("fresh", []) if not name.startswith(gone)]
        model.learngene = record
    out = Segmenter(model, num_classes)
    out.head.init_weights(torch.Generator().manual_seed(seed))
    out.head.to(next(model.parameters()).device)
    out.pretrained_cfg = out.default_cfg = {**cfg, **OWN_CFG, "architecture": ARCHITECTURE, "num_classes": num_classes}
    out.pretrained_cfg.pop("label_names", None)  # of classes of images, as those of the record, which are replaced
    out.learngene = {**record, "head": "segmentation", "class_names": list(class_names) if class_names else None}
    return out.eval()


OWN_CFG = {
    "first_conv": "backbone.patch_embed.proj",
    "classifier": "head.classes",
    "fixed_input_size": True,
    "crop_pct": 1.0,
}
"""What timm has to know of any segmenter, whatever its backbone."""

default_cfgs = generate_default_cfgs(
    {
        ARCHITECTURE: {
            "input_size": (3, 224, 224),
            "num_classes": 21,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            **OWN_CFG,
        }
    }
)


def _build(
    backbone: str = "vit_base_patch16_224",
    backbone_args: Mapping[str, Any] | None = None,
    num_classes: int = 21,
    img_size: int | Sequence[int] | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
) -> Segmenter:
    given = {"img_size": img_size, "in_chans": in_chans, "drop_path_rate": drop_path_rate or None}
    changes = {name: value for name, value in given.items() if value is not None}
    vit = create_model(backbone, pretrained=False, **{**(backbone_args or {}), **changes}, num_classes=0)
    out = Segmenter(vit, num_classes)
    out.head.init_weights()
    return out


def _filter_state(state: dict[str, Tensor], model: Segmenter) -> dict[str, Tensor]:
    """Lets timm resample the backbone's position embeddings for another image size."""
    head = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name not in head}
    filtered = _filter_of(model.backbone)(backbone, model.backbone)
    return head | {f"backbone.{name}": value for name, value in filtered.items()}


def _filter_of(backbone: TimmModel) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """Timm's own filter of weights for a kind of model, which stands in the module of its class."""
    kind = next(kind for kind in KINDS if isinstance(backbone, kind))
    filtering: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
    filtering = sys.modules[kind.__module__].checkpoint_filter_fn
    return filtering


@register_model
def learngene_segmenter(pretrained: bool = False, **kwargs: Any) -> Segmenter:
    """A Vision Transformer that gives every pixel a class; ``backbone`` and ``backbone_args`` say which."""
    model: Segmenter = build_model_with_cfg(
        _build,
        ARCHITECTURE,
        pretrained,
        pretrained_filter_fn=_filter_state,
        kwargs_filter=("global_pool",),
        **kwargs,
    )
    return model
