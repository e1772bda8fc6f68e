"""Parts of recipes that concern graph hypernetworks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from learngene.recipe.sections import Above0, AtLeast0, Fraction, Positive, Section
from learngene.system.errors import RecipeError


class Guidance(Section):
    """How the ancestry's features guide predicted ViTs in stage 1 (TAL, equations 4 and 6)."""

    presets: ClassVar = {
        "default": {},
        "code": {"normalise": "logits", "map": "random"},
        "paper": {"direction": "student-teacher", "temperature": 1.0, "tau_squared": False}
        | {"features": "channel-wise"},
        "none": {"alpha": 0.0},
    }
    preset: str | None = Field(
        None, description="default, paper (the printed equations), code (the authors'), none (labels alone: LoGAH)"
    )
    alpha: Fraction = Field(0.2, description="weight of guidance, 1 - alpha of labels; the code's, the paper is silent")
    temperature: Above0 = Field(3.0, description="the code's; the paper has none")
    tau_squared: bool = Field(True, description="multiply by temperature squared, as the code")
    direction: Literal["teacher-student", "student-teacher"] = Field(
        "teacher-student", description="KL(teacher || student), the code's and the usual one; the paper has the other"
    )
    features: Literal["pooled", "channel-wise"] = Field(
        "pooled",
        description="pooled: what the head reads (the class token), softmax over its channels, as the code; "
        "channel-wise: softmax over the patches for every channel, as the work that the paper cites",
    )
    normalise: Literal["batch", "logits"] = Field(
        "batch", description="divide the sum by the batch, or as the code by batch x classes, which all but removes it"
    )
    map: Literal["predicted", "learned", "random"] = Field(
        "predicted",
        description="M, from the ViT's width to the ancestry's: predicted with the other weights (the paper), one "
        "learned matrix per width, or a new random one at every step (the code)",
    )


class Hyper(Section):
    """How a hypernetwork is trained, in both stages."""

    meta_batch: Positive = Field(1, description="ViTs predicted per step, each on the same images; 1 in all commands")
    penalty: AtLeast0 = Field(3e-5, description="weight of the sum of all predicted tensors' norms in the loss")


class Stage1Hyper(Hyper):
    """How it is trained in stage 1, where an ancestry may guide."""

    guidance: Guidance = Guidance()

    def refuse(self, *, ancestry: bool) -> None:
        """Raises ``RecipeError`` if a guide is missing, or given and of no use."""
        if self.guidance.alpha > 0 and not ancestry:
            raise RecipeError("ancestry is missing: it guides, unless hyper.guidance.preset is none")
        if self.guidance.alpha == 0 and ancestry:
            raise RecipeError("ancestry: guides nothing with hyper.guidance.preset none; leave it out")


def stage1_hyper(given: Any, *, task_aware: bool) -> Any:
    """Fields of a section of stage 1, with the guidance that a method has if nothing is said: TAL's, or none."""
    if not isinstance(given, Mapping | None):
        return given
    return {"guidance": {"preset": "default" if task_aware else "none"}, **(given or {})}
