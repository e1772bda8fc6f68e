"""The papers' losses: soft-target cross-entropy, soft and hard distillation.

TLEG: L = (1 - lambda) CE + lambda KL (equations 5 and 6). SWS: L = (1 - alpha) L_cls + alpha L_d (equations 2 to 4).
The papers and the authors' code differ in divergence, temperature factor and reduction; ``sections.Distill`` names
both and every setting is explicit here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Integer
from torch import Tensor

from learngene.data.images import ImageSet
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import Distill

Logits = Float[Tensor, "batch classes"]
Scalar = Float[Tensor, ""]
Parts = dict[str, Tensor]
"""``loss``, which is minimised, and by name the terms it is made of, before they are weighted."""


def mean_parts(several: Iterable[Parts]) -> Parts:
    """The mean of several losses, part by part; of one it is that loss itself."""
    first, *others = several
    return (
        first if not others else {k: torch.stack([v, *(each[k] for each in others)]).mean() for k, v in first.items()}
    )


def classification_loss(logits: Logits, targets: Logits) -> Scalar:
    """Cross-entropy against soft targets, averaged over the batch (TLEG's CE term, SWS equation 3)."""
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def segmentation_loss(
    logits: Float[Tensor, "batch classes height width"], masks: Integer[Tensor, "batch height width"], ignore_index: int
) -> Scalar:
    """Cross-entropy averaged over the pixels that are judged; 0 if there are none.

    Args:
        logits: Of every pixel.
        masks: The class of every pixel.
        ignore_index: The value of pixels that are not judged.
    """
    total = F.cross_entropy(logits.float(), masks.long(), ignore_index=ignore_index, reduction="sum")
    return total / (masks != ignore_index).sum().clamp(min=1)


def task_loss(images: ImageSet) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a classifier, or of a segmenter, over logits and what ``TrainBatches.mix`` gives as targets.

    Args:
        images: What is trained on, which decides.
    """
    ignored = images.ignore_index
    if ignored is None:
        return classification_loss
    return lambda logits, masks: segmentation_loss(logits, masks, ignored)


def distillation_term(student: Logits, teacher: Logits, spec: Distill) -> Scalar:
    """The distance of the student's softened predictions from the teacher's (TLEG equation 5, SWS equation 2).

    Args:
        student: Logits of the auxiliary model.
        teacher: Logits of the ancestry model for the same images.
        spec: Divergence, temperature, factor and reduction.

    Returns:
        A scalar in nats; with ``numel`` reduction it is smaller by the number of classes. ``hard`` takes the teacher's
        first guess for the label, at no temperature, and is always the mean of the batch (DeiT, equation 3).
    """
    if spec.divergence == "hard":
        return F.cross_entropy(student.float(), teacher.argmax(dim=-1))
    log_student = F.log_softmax(student.float() / spec.temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / spec.temperature, dim=-1)
    if spec.divergence == "teacher-student":
        total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    elif spec.divergence == "student-teacher":
        total = F.kl_div(log_teacher, log_student, reduction="sum", log_target=True)
    else:
        total = -(log_teacher.exp() * log_student).sum()
    if spec.tau_squared:
        total = total * spec.temperature**2
    return total / (student.numel() if spec.reduction == "numel" else student.shape[0])


def distillation_loss(student: Logits, teacher: Logits, targets: Logits, spec: Distill) -> Parts:
    """The mixture of labels and teacher (TLEG equation 6, SWS equation 4); alpha 1 uses no labels at all."""
    distill = distillation_term(student, teacher, spec)
    if spec.alpha == 1:
        return {"loss": distill, "distill": distill}
    labels = classification_loss(student, targets)
    loss = spec.alpha * distill + (1 - spec.alpha) * labels
    return {"loss": loss, "labels": labels} | ({"distill": distill} if spec.alpha else {})


def guided_loss(student: Logits, teacher: Logits, targets: Logits, spec: PoolSpec) -> Parts:
    """The loss of a pool's sampled path under a teacher: labels and ``guide_weight`` of the guide.

    A hard guide is cross-entropy with the teacher's first guess (SN-Net); a soft one is KL(teacher || student) at
    ``guide_temperature``, times its square and ``guide_scale`` (Learngene Pool, Algorithm 1, line 13).
    """
    divergence = "hard" if spec.guide == "hard" else "teacher-student"
    how = Distill(divergence=divergence, temperature=spec.guide_temperature, reduction=spec.guide_reduction)
    guide = distillation_term(student, teacher, how) * spec.guide_scale
    labels = classification_loss(student, targets)
    loss = (1 - spec.guide_weight) * labels + spec.guide_weight * guide
    return {"loss": loss, "labels": labels, "guide": guide}
