"""Distilling one row of a pool from the ancestry (Learngene Pool, equations 3 to 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn

from learngene.genes.ancestry import Ancestry
from learngene.making.block_features import Features, watched
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import Distill
from learngene.training.losses import Parts, classification_loss, distillation_loss
from learngene.training.stage import Objective
from learngene.training.teacher import Outputs, Teacher, teacher_of

Images = Float[Tensor, "batch channels height width"]
Logits = Float[Tensor, "batch classes"]
Distances = Float[Tensor, " blocks"]

BLOCK, ATTENTION = "block", "attention"
"""What a teacher's outputs at its blocks are called, before the number of the block."""


class RowDistillation(nn.Module):
    """An auxiliary model with the transformation matrices W and M of every block at which it is distilled.

    Attributes:
        student: The auxiliary model, a plain timm ViT.
        numbers: Its distilled blocks, counted from 1.
        W: Per distilled block, from the ancestry's width to the student's (equation 4); identity at equal width.
        M: The same for attention outputs (equation 5).
    """

    def __init__(
        self, student: nn.Module, width: int, numbers: Sequence[int], ancestry_widths: Sequence[int], spec: PoolSpec
    ) -> None:
        """Draws the matrices from torch's generator, as ``nn.Linear`` does; ``width`` is that of the student."""
        super().__init__()
        self.student, self.numbers = student, list(numbers)

        def matrices(term: str) -> nn.ModuleList:
            used = ancestry_widths if term in spec.terms else ()
            return nn.ModuleList(
                nn.Identity()
                if before == width and not spec.learn_equal_width
                else nn.Linear(before, width, bias=spec.transform_bias)
                for before in used
            )

        self.W, self.M = matrices("blk"), matrices("att")

    def forward(self, images: Images, ancestry: Features | None = None) -> Logits | tuple[Logits, Distances, Distances]:
        """Logits; given the ancestry's features of the same images, also every block's term of L_blk and of L_att."""
        if ancestry is None:
            logits: Tensor = self.student(images)
            return logits
        with watched(self.student, self.numbers) as mine:
            logits = self.student(images)
        blocks = _distances(self.W, ancestry.blocks, mine.blocks)
        attentions = _distances(self.M, ancestry.attentions, mine.attentions)
        none = logits.new_zeros(0)
        return logits, torch.stack(blocks) if blocks else none, torch.stack(attentions) if attentions else none

    def matrix(self) -> Tensor | None:
        """The mean of the block matrices W, (width, ancestry width); None where they are the identity."""
        weights = [module.weight for module in self.W if isinstance(module, nn.Linear)]
        return torch.stack(weights).mean(0).detach() if weights else None

    def no_weight_decay(self) -> set[str]:
        """The student's position embedding and class token."""
        return {"student.pos_embed", "student.cls_token"}


def _distances(matrices: nn.ModuleList, ancestry: Sequence[Tensor], mine: Sequence[Tensor]) -> list[Tensor]:
    """MSE(ancestry W, mine) per block; the mean over all elements, in float32 whatever the autocast."""
    return [F.mse_loss(mine[point].float(), matrix(ancestry[point]).float()) for point, matrix in enumerate(matrices)]


def row_teacher(ancestry: Ancestry, numbers: Sequence[int], spec: PoolSpec) -> Teacher:
    """An ancestry that teaches a row what ``spec.terms`` name: predictions, and its blocks, counted from 1."""
    kinds = [kind for kind, term in ((BLOCK, "blk"), (ATTENTION, "att")) if term in spec.terms]
    numbers = numbers if kinds else ()

    def read(images: Tensor) -> Outputs:
        with watched(ancestry.model, numbers) as theirs:
            logits = ancestry(images)
        found = {BLOCK: theirs.blocks, ATTENTION: theirs.attentions}
        features = {f"{kind} {n}": value for kind in kinds for n, value in zip(numbers, found[kind], strict=True)}
        return ({"logits": logits} if "pred" in spec.terms else {}) | features

    names = [*(["logits"] if "pred" in spec.terms else []), *(f"{kind} {n}" for kind in kinds for n in numbers)]
    return teacher_of(ancestry, names, read)


def row_objective(spec: PoolSpec, distill: Distill) -> Objective:
    """The loss of a row, equation 8: labels and distillation, weighed by ``distill.alpha`` on the latter.

    The pool section says which terms make up L_dis (equation 6), the distill section what L_pred is (equation 3).
    Without a teacher a row learns from labels alone.
    """
    alpha = distill.alpha

    def objective(model: nn.Module, images: Tensor, targets: Tensor, theirs: Sequence[Outputs]) -> Parts:
        if not theirs:
            return {"loss": classification_loss(model(images), targets)}
        (teacher,) = theirs
        read = [[value for name, value in teacher.items() if name.startswith(kind)] for kind in (BLOCK, ATTENTION)]
        logits, blocks, attentions = model(images, Features(*read))
        if "pred" in spec.terms:
            parts = distillation_loss(logits, teacher["logits"], targets, distill)
        else:
            labels = classification_loss(logits, targets)
            parts = {"loss": (1 - alpha) * labels, "labels": labels}
        parts["loss"] = parts["loss"] + alpha * torch.cat([blocks, attentions]).sum()
        return parts | {name: of.sum() for name, of in (("blocks", blocks), ("attention", attentions)) if len(of)}

    return objective
