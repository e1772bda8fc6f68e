"""The section of a recipe that says how a pool is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from learngene.recipe.sections import Fraction, Positive, Section


class PoolSpec(Section):
    """How the rows of a pool are distilled, how its stitch layers start and how its paths are tuned."""

    points: list[Annotated[int, Field(ge=0, le=3)]] | None = Field(
        None,
        description="per row, narrow to wide: blocks at which it is distilled, 1 (the last), 2 or 3 (at thirds of the "
        "depth), or 0 (labels only). By default 3, and 1 for rows as wide as the ancestry (Learngene Pool, Table 4)",
    )
    terms: list[Literal["pred", "blk", "att"]] = Field(
        ["pred", "blk", "att"],
        min_length=1,
        description="of L_dis (equation 6): predictions, block outputs, attention outputs",
    )
    transform_bias: bool = Field(False, description="a bias in W and M, as the authors' code; the paper's are matrices")
    learn_equal_width: bool = Field(
        False, description="learn W and M also at equal width, as the authors' code; the paper's are the identity"
    )
    stitches: Literal["tm", "ls"] | None = Field(
        None,
        description="start of the stitch layers: tm (transformation matrices, transposed; the pool's default) or ls "
        "(least squares on features; SN-Net's)",
    )
    images: Positive = Field(100, description="training images for ls, as SN-Net")
    rows: dict[str, Any] = Field({}, description="train section of the rows: what differs from `train`")
    tune: dict[str, Any] | None = Field(
        {}, description="train section of the sampled paths: what differs from `train`; null leaves them untuned"
    )
    guide: Literal["none", "soft", "hard"] = Field(
        "none", description="distillation while paths are tuned; the paper finds it needless behind tm"
    )
    guide_weight: Fraction = Field(0.5, description="of the guide, the rest being labels; both authors' codes")
    guide_temperature: float = Field(1.0, gt=0, description="of a soft guide")
    kept: Path | None = Field(
        None, description="where trained rows are kept, to be shared by pools; by default in the run folder"
    )
