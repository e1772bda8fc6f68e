"""How images are prepared for a model: what a data section leaves open is the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learngene.recipe.sections import DataSpec

SMALL_IMAGE = 64
"""Side in pixels up to which evaluation does not crop."""

PREPROCESSING = ("mean", "std", "interpolation", "crop_pct")
"""What is recorded of how images were prepared, in timm's words."""


def fill_preprocessing(section: DataSpec, cfg: Mapping[str, Any]) -> DataSpec:
    """The section with mean and std taken from a model's preprocessing where it leaves them open."""
    return section.model_copy(update={key: getattr(section, key) or tuple(cfg[key]) for key in ("mean", "std")})


def preprocessing_record(section: DataSpec, img_size: int) -> dict[str, Any]:
    """What genes and descendants say of their preprocessing, from a section with mean and std."""
    return {
        "mean": list(section.mean or ()),
        "std": list(section.std or ()),
        "interpolation": section.interpolation,
        "crop_pct": crop_pct(section, img_size),
    }


def crop_pct(section: DataSpec, img_size: int) -> float:
    """The share of the image that evaluation looks at: DeiT's 0.875, but all of a small image, which has no border."""
    return section.crop_pct or (1.0 if img_size <= SMALL_IMAGE else 0.875)
