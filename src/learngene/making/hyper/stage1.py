"""Stage 1: a hypernetwork learns to predict ViTs for one data set, under an ancestry's guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learngene.genes.ancestry import Ancestry, made_of
from learngene.making.hyper.meta import MetaBatch, meta_loss
from learngene.making.inputs import CondenseInputs, Planned, Taught
from learngene.methods.tal import Hypernetwork, hypernetwork_of
from learngene.recipe.hyper import Guidance, Stage1Hyper
from learngene.system.errors import LearngeneError
from learngene.training.losses import Parts
from learngene.training.stage import Stage
from learngene.training.teacher import Outputs, Teacher, teacher_of


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` unless shape, images and guide fit together, and its features where they are used."""
    inputs.refuse_other_size()  # an ancestry guides by its features, which know no classes
    ancestry, shape, hyper = inputs.ancestry, inputs.recipe.shape, inputs.recipe.hyper or Stage1Hyper()
    if ancestry is None:
        return
    method, guidance = hypernetwork_of(inputs.gene.method), hyper.guidance
    label = ancestry.identity["source"]
    patches = guidance.features == "channel-wise"
    zeros = torch.zeros(1, shape.in_chans, shape.img_size, shape.img_size, device=ancestry.device)
    try:
        found = ancestry.features(zeros, patches=patches)
    except (AssertionError, RuntimeError) as error:
        raise LearngeneError(
            f"ancestry {label} does not take images of {shape.img_size} px with {shape.in_chans} channels; change "
            f"shape.img_size or pass ancestry.model_args={{img_size: {shape.img_size}}} ({str(error).splitlines()[0]})"
        ) from None
    if patches and found.shape[1] != shape.grid_size**2:
        raise LearngeneError(
            f"ancestry {label} has {found.shape[1]} patches but the predicted ViTs have {shape.grid_size**2}; "
            "channel-wise guidance needs as many, features: pooled does not"
        )
    refuse_task_dim(ancestry, method)
    expansion, need = method.config.expansion, min(ancestry.width, method.config.max_shape)
    if method.decoder == "low-rank" and guidance.map == "predicted" and need > expansion:
        raise LearngeneError(
            f"ancestry {label} has {ancestry.width} features, but the decoder that predicts M has factors of "
            f"{expansion} rows; set settings.expansion={need} or more, or hyper.guidance.map=learned"
        )


def taught(inputs: CondenseInputs) -> list[Taught]:
    """What is trained, and its guide; see ``making.condense.Maker``."""
    guidance, ancestry = (inputs.recipe.hyper or Stage1Hyper()).guidance, inputs.ancestry
    return [Taught(inputs.recipe, (guide(ancestry, guidance),) if ancestry and guidance.alpha > 0 else ())]


def planned(inputs: CondenseInputs, *, keep: bool) -> Planned:
    """The stage in which the hypernetwork is trained in place; see ``making.condense.OneStage``."""
    recipe, gene, ancestry = inputs.recipe, inputs.gene, inputs.ancestry
    hyper = recipe.hyper or Stage1Hyper()
    guidance, teacher_width = hyper.guidance, ancestry.width if ancestry else 0
    meta = MetaBatch(gene, hyper, guidance=guidance, teacher_width=teacher_width, drop_path=recipe.train.drop_path)
    (part,) = taught(inputs)

    def objective(model: nn.Module, batch: Tensor, targets: Tensor, theirs: Sequence[Outputs]) -> Parts:
        features = next(iter(theirs[0].values())) if theirs else None
        return meta_loss(model(batch), targets, hyper, guidance, features)

    stage = Stage(
        f"train {gene.method.name}",
        meta,
        objective,
        gene.shape.img_size,
        gene.shape.in_chans,
        teachers=part.teachers,
        before_step=lambda _epoch, _step: meta.draw(),
        uses_all=False,
        made_of=made_of(ancestry, method=gene.method),
    )
    return stage, dict


def guide(ancestry: Ancestry, guidance: Guidance) -> Teacher:
    """An ancestry that teaches what its head reads of an image, or of every patch."""
    patches = guidance.features == "channel-wise"
    name = "patches" if patches else "pooled"
    return teacher_of(ancestry, [name], lambda images: {name: ancestry.features(images, patches=patches)})


def refuse_task_dim(ancestry: Ancestry, method: Hypernetwork) -> None:
    """Raises ``LearngeneError`` if the ancestry's features are not as wide as the task layers' inputs."""
    if method.task_aware and method.task_dim != ancestry.width:
        raise LearngeneError(
            f"ancestry {ancestry.identity['source']} has {ancestry.width} features, but the task layers take "
            f"{method.task_dim}; set settings.task_dim={ancestry.width} when the gene is made"
        )
