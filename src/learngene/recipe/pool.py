"""The section of a recipe that says how a pool is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from learngene.methods.stitching import StitchedRows
from learngene.recipe.sections import Above0, Fraction, Positive, Section
from learngene.system.errors import RecipeError


class PoolSpec(Section):
    """How the rows of a pool are distilled, how its stitch layers start and how its paths are tuned."""

    points: list[Annotated[int, Field(ge=0, le=3)]] | None = Field(
        None,
        description="per row, narrow to wide: blocks at which it is distilled, 1 (the last), 2 or 3 (at thirds of the "
        "depth), or 0 (labels only). By default 3, and 1 for rows as wide as the ancestry (Learngene Pool, Table 4)",
    )
    terms: Annotated[list[Literal["pred", "blk", "att"]], Field(min_length=1)] = Field(
        ["pred", "blk", "att"], description="of L_dis (equation 6): predictions, block outputs, attention outputs"
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
    guide_temperature: Above0 = Field(1.0, description="of a soft guide")
    guide_reduction: Literal["batch", "numel"] = Field(
        "batch", description="of a soft guide: the batch's mean, or divided by batch x classes as both authors' codes"
    )
    guide_scale: Above0 = Field(1.0, description="times the guide; Learngene Pool's code 100 with numel, SN-Net's 1")
    kept: Path | None = Field(None, description="where rows are kept, to be shared by pools; else in the run folder")

    def refuse(self, kind: StitchedRows, *, ancestry: bool, anchors: int) -> None:
        """Raises ``RecipeError`` if it says too much or too little for a method's rows, teacher and anchors."""
        rows = len(kind.rows)
        if self.guide != "none" and not ancestry:
            raise RecipeError(f"ancestry is missing: pool.guide {self.guide} needs a teacher")
        if kind.name == "sn-net":
            if anchors != rows:
                raise RecipeError(f"anchors: settings.rows has {rows} rows, so give {rows} pretrained ViTs as anchors")
            for name in ("points", "terms", "transform_bias", "learn_equal_width", "rows", "kept"):
                if getattr(self, name) != getattr(PoolSpec(), name):
                    raise RecipeError(f"pool.{name} means nothing for sn-net, whose rows are not trained; leave it out")
            if self.stitches == "tm":
                raise RecipeError("pool.stitches: tm needs rows that were distilled here, not anchors; use ls")
            return
        if anchors:
            raise RecipeError("anchors: the rows of a pool are distilled from its ancestry; leave anchors out")
        if self.points is not None and len(self.points) != rows:
            raise RecipeError(f"pool.points: one number per row is needed, {rows} in all, not {len(self.points)}")
        if not ancestry and (self.points is None or any(self.points)):
            raise RecipeError("ancestry is missing: rows are distilled from it, unless pool.points are all 0")
