"""What of a teacher's features a gene learns, and how they are compared: no classes are needed.

Presets name where a combination is from; the losses stand in ``training.feature_losses``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from learngene.recipe.sections import Above0, AncestrySpec, Distinct, Positive, Section
from learngene.system.errors import RecipeError

Tokens = Literal["pooled", "class", "patches"]
Distance = Literal["cosine", "smooth-l1", "mix", "mse"]
PooledLoss = Distance | Literal["queue-kl"]
PatchLoss = Distance | Literal["self-similarity"]
Blocks = Annotated[tuple[Positive, Positive], Field(description="a block of the teacher and one of the student")]


def _blocks_rise(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for side, whose in enumerate(("teacher", "auxiliary model")):
        numbers = [pair[side] for pair in pairs]
        if numbers != sorted(set(numbers)):
            raise RecipeError(f"blocks of the {whose}, {numbers}, must rise; give each block once")
    return pairs


class FeatureTarget(Section):
    """How the features of one teacher are matched."""

    presets: ClassVar = {
        "cosine": {},
        "proteus": {"pooled_loss": "mse", "patch_loss": "mse", "scale": "none", "bridge": "norm-linear"},
        "theia": {"pooled_loss": "mix", "patch_loss": "mix"},
        "radio": {"patch_loss": "mix", "scale": "none", "bridge": "mlp", "resize": "bilinear"},
        "lightly-v1": {"tokens": ["pooled"], "pooled_loss": "queue-kl", "bridge": "linear"},
        "lightly-v3": {"pooled_loss": "queue-kl", "patch_loss": "self-similarity", "bridge": "linear"},
    }
    preset: str | None = Field(
        None,
        description="cosine (the defaults below), proteus, theia, radio, lightly-v1, lightly-v3: losses, scale and "
        "bridge as in the works of these names",
    )
    tokens: Distinct[Tokens] = Field(
        ["pooled", "patches"],
        description="pooled: what the teacher's head reads; class: its class token, whatever its head reads; patches: "
        "one vector per patch. Register tokens are never a target",
    )
    pooled_loss: PooledLoss = Field("cosine", description="of pooled and class; mix is 0.9 cosine + 0.1 smooth L1")
    patch_loss: PatchLoss = Field("cosine", description="of patches; mix is 0.9 cosine + 0.1 smooth L1")
    patch_weight: Above0 = Field(1.0, description="of patches beside pooled or class")
    weight: Above0 = Field(1.0, description="of this teacher beside others")
    scale: Literal["none", "standardise", "phi-s"] = Field(
        "standardise",
        description="of the teacher's features before cosine, smooth L1, mix and mse, so that a few large dimensions "
        "do not rule: per dimension (Theia, UNIC) or one scale behind a rotation (PHI-S); statistics of a first pass",
    )
    scale_images: Annotated[int, Field(ge=2)] = Field(2048, description="most training images of that first pass")
    bridge: Literal["linear", "norm-linear", "mlp"] = Field(
        "norm-linear",
        description="from the student's width to the teacher's; learnt, and no part of the gene but for keep_bridge",
    )
    keep_bridge: bool = Field(
        False,
        description="keep the bridge of pooled in the gene, for descendants whose head gives this teacher's output, "
        "such as those that text features are compared with; of one teacher, with bridge=linear",
    )
    hidden: Positive | None = Field(None, description="width inside an mlp; the teacher's by default")
    temperature: Above0 = Field(0.07, description="of queue-kl and self-similarity, as lightly-train")
    queue: Positive | None = Field(
        None,
        description="queue-kl: features of how many latest images; by default half the training images, at most 8192",
    )
    blocks: Annotated[list[Blocks], AfterValidator(_blocks_rise)] = Field(
        [],
        description="further patch tokens: pairs of a block of the teacher and one of the auxiliary model, from 1",
    )
    img_size: Positive | None = Field(
        None, description="side in pixels of the teacher's images; by default that at which its grid is the student's"
    )
    resize: Literal["none", "bilinear"] = Field(
        "none", description="bilinear: the student's map is resized to the teacher's grid, at the teacher's own size"
    )

    @model_validator(mode="after")
    def _consistent(self) -> FeatureTarget:
        if {"pooled", "class"} <= set(self.tokens):
            raise RecipeError("tokens: pooled and class are both compared with what the gene's head reads; use one")
        if self.queue is not None and not (self.pooled_loss == "queue-kl" and {"pooled", "class"} & set(self.tokens)):
            raise RecipeError("queue: only pooled_loss=queue-kl has one; leave it out")
        if self.keep_bridge and "pooled" not in self.tokens:
            raise RecipeError("keep_bridge: keeps the bridge of pooled, which tokens have not; add it")
        if self.keep_bridge and self.bridge != "linear":
            raise RecipeError(
                f"keep_bridge: a head of timm's is one linear map, and a bridge of {self.bridge} is not; set "
                "features.bridge=linear"
            )
        return self

    @property
    def grids(self) -> bool:
        """Whether patch tokens are compared."""
        return "patches" in self.tokens or bool(self.blocks)


class TeacherSpec(AncestrySpec):
    """A further teacher of features."""

    features: dict[str, Any] = Field({}, description="what differs from the recipe's features for this teacher")
