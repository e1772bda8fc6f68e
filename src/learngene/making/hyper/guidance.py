"""The ancestry's guidance of predicted ViTs (TAL, equations 4 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor

from learngene.recipe.hyper import Guidance

Scalar = Float[Tensor, ""]


def guidance_term(
    student: Float[Tensor, "batch ..."], teacher: Float[Tensor, "batch ..."], classes: int, spec: Guidance
) -> Scalar:
    """L_aux of equation 4.

    Args:
        student: The predicted ViT's features behind M: (batch, features), or (batch, patches, features).
        teacher: The ancestry's.
        classes: Of the data, by which the code divides.
        spec: Direction, temperature, factor and normalisation.
    """
    # Of pooled features the distribution is over channels; channel-wise there is one over patches for every channel.
    log_student, log_teacher = (F.log_softmax(x.float() / spec.temperature, dim=1) for x in (student, teacher))
    if spec.direction == "student-teacher":
        log_student, log_teacher = log_teacher, log_student
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    if student.ndim == 3:
        total = total / student.shape[2]
    if spec.tau_squared:
        total = total * spec.temperature**2
    return total / (len(student) * (classes if spec.normalise == "logits" else 1))


def penalty(weights: list[Tensor]) -> Scalar:
    """Predicted-parameter regularisation: the sum of all tensors' norms, not squared, as GHN-3's code has it."""
    return torch.stack(torch._foreach_norm(weights)).sum()
