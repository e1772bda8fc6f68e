"""Meta-batches: ViTs of several shapes, predicted by a hypernetwork and run on the same images.

Both stages train on them. What differs is that an ancestry may guide stage 1 (TAL, equations 4 to 6), and that stage 2
says for which task they are predicted.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from learngene.genes.gene import Learngene
from learngene.making.hyper.guidance import guidance_term, penalty
from learngene.methods.tal import hypernetwork_of
from learngene.methods.tal.predict import predict, predict_matrix
from learngene.methods.tal.ranges import sample_size
from learngene.recipe.hyper import Guidance, Hyper
from learngene.training.losses import Parts, classification_loss
from learngene.training.stage import set_drop_path
from learngene.vits.recomputing import recomputed
from learngene.vits.shape import ViTShape

Predicted = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""Of one ViT: logits, features, M, and the penalty on its weights."""


class _Reading(nn.Module):
    """A ViT that gives features and logits of one pass."""

    def __init__(self, vit: nn.Module, channel_wise: bool) -> None:
        super().__init__()
        self.vit, self.channel_wise = vit, channel_wise

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vit: Any = self.vit
        tokens = vit.forward_features(images)
        features = (
            tokens[:, vit.num_prefix_tokens :] if self.channel_wise else vit.forward_head(tokens, pre_logits=True)
        )
        return vit.forward_head(tokens), features


class MetaBatch(nn.Module):
    """A hypernetwork, evaluated at some shapes for some task.

    Attributes:
        gene: The hypernetwork.
        hyper: How it is trained.
        shapes: What to predict in training; in evaluation it is the gene's own shape.
        task: The embedding to predict for; None leaves the task layers out.
        num_classes: Of the task.
        guidance: How an ancestry guides, for which M is made; None if none does.
        teacher_width: The ancestry's features.
        drop_path: Stochastic depth of the predicted ViTs' last layer.
    """

    def __init__(
        self,
        gene: Learngene,
        hyper: Hyper,
        *,
        guidance: Guidance | None = None,
        teacher_width: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.gene, self.method, self.hyper = gene, hypernetwork_of(gene.method), hyper
        self.shapes: list[ViTShape] = [gene.shape]
        self.task: Tensor | None = None
        self.num_classes = gene.shape.num_classes
        self.drop_path = drop_path
        self._readings: dict[ViTShape, _Reading] = {}
        self.guidance = guidance if guidance and guidance.alpha > 0 and teacher_width else None
        self.teacher_width = teacher_width
        hid, kind = self.method.config.hid, self.guidance and self.guidance.map
        if kind == "predicted":
            # M has no node in the graph, so it has a vector of its own, which the decoder reads like a node's.
            self.map_vector = nn.Parameter(torch.zeros(hid).normal_(std=hid**-0.5, generator=_generator(0)))
        if kind == "learned":
            widths = {width for width, _ in gene.method.widths(gene.shape)}
            self.maps = nn.ParameterDict({str(width): _drawn(teacher_width, width) for width in sorted(widths)})

    def draw(self) -> None:
        """Draws the shapes of a step by torch's generator, which the loop has seeded for it."""
        source = random.Random(int(torch.randint(2**31, ())))
        sizes = [sample_size(self.method.architectures, source) for _ in range(self.hyper.meta_batch)]
        base = self.gene.shape.replace(num_classes=self.num_classes)
        self.shapes = [base.replace(depth=d, embed_dim=w, num_heads=h) for d, w, h in sizes]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """In training what each predicted ViT gives, in evaluation the logits at the gene's own shape."""
        if not self.training:
            shape = self.gene.shape.replace(num_classes=self.num_classes)
            return self._run(shape, self._predict([shape])[0], images)[0]
        return [
            (*self._run(shape, weights, images), self._map(shape.embed_dim), penalty(list(weights.values())))
            for shape, weights in zip(self.shapes, self._predict(self.shapes), strict=True)
        ]

    def _predict(self, shapes: list[ViTShape]) -> list[dict[str, Tensor]]:
        tasks = None if self.task is None else self.task.expand(len(shapes), -1)
        return predict(self.method.config, self.gene.tensors(), shapes, tasks)

    def _run(self, shape: ViTShape, weights: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        if shape not in self._readings:
            vit = shape.skeleton()
            set_drop_path(vit, self.drop_path)
            channel_wise = self.guidance is not None and self.guidance.features == "channel-wise"
            self._readings[shape] = _Reading(vit, channel_wise)
        reading = self._readings[shape].train(self.training)
        named = {f"vit.{name}": value for name, value in weights.items()}
        blocks: Any = reading.vit.blocks
        with recomputed(blocks, self.gene.recompute):
            logits, features = functional_call(reading, named, (images,), strict=True)
        return logits, features

    def _map(self, width: int) -> Tensor | None:
        """M of equation 4, (ancestry's width, ViT's width)."""
        if self.guidance is None:
            return None
        tensors = self.gene.tensors()
        if self.guidance.map == "predicted":
            return predict_matrix(self.method.config, tensors, self.map_vector, self.teacher_width, width)
        if self.guidance.map == "learned":
            return self.maps[str(width)]
        device = tensors["class_position"].device
        bound = width**-0.5  # PyTorch's default for a linear layer
        return torch.empty(self.teacher_width, width).uniform_(-bound, bound).to(device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(rows: int, width: int) -> Tensor:
    """A matrix M to be learned, which starts like PyTorch's linear layers."""
    return nn.init.kaiming_uniform_(torch.empty(rows, width), a=5**0.5, generator=_generator(width))


def meta_loss(
    predicted: list[Predicted],
    targets: Tensor,
    hyper: Hyper,
    guidance: Guidance | None = None,
    teacher: Tensor | None = None,
) -> Parts:
    """The mean over a meta-batch of (1 - alpha) L_cls + alpha L_aux and the penalty (equations 1, 5, 6).

    Args:
        predicted: Of every ViT.
        targets: Soft targets.
        hyper: The weight of the penalty.
        guidance: How the ancestry guides.
        teacher: The ancestry's features of the same images; None for labels alone.
    """
    terms: dict[str, list[Tensor]] = {"loss": [], "labels": [], "guide": [], "penalty": []}
    for logits, features, matrix, norms in predicted:
        loss = classification_loss(logits, targets)
        terms["labels"].append(loss)
        if guidance is not None and teacher is not None and matrix is not None:
            mapped = F.linear(features, matrix.to(features.dtype))
            guide = guidance_term(mapped, teacher, targets.shape[-1], guidance)
            terms["guide"].append(guide)
            loss = (1 - guidance.alpha) * loss + guidance.alpha * guide
        if hyper.penalty:
            terms["penalty"].append(norms)
        terms["loss"].append(loss + hyper.penalty * norms)
    return {name: torch.stack(values).mean() for name, values in terms.items() if values}
