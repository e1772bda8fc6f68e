"""The bridge that a gene keeps: what was learnt towards a teacher, led on to that teacher's own output.

A teacher's output is what its forward pass gives: what its head reads or, where it has a head, what that makes of it,
such as the joint space of a CLIP, whose projection timm keeps as the head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from learngene.genes.bridge import PREFIX, refuse_heads
from learngene.making.feature_teacher import Features, FeatureTeacher
from learngene.making.features.student import FeatureStudent, Match
from learngene.making.inputs import CondenseInputs
from learngene.recipe.features import FeatureTarget
from learngene.system.errors import LearngeneError
from learngene.training.loop import make_accelerator
from learngene.training.scores import autocast
from learngene.vits.input_size import input_size

LENGTHS = ("smooth-l1", "mix", "mse")
"""Losses that teach a vector's length besides its direction."""


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` if a bridge shall be kept that no head can express."""
    for spec, teacher in zip(inputs.recipe.feature_targets(), inputs.feature_teachers, strict=True):
        if spec.keep_bridge:
            refuse_heads(inputs.recipe.shape)
            output_layer(teacher)


def teaches_length(spec: FeatureTarget) -> bool:
    """Whether the loss of pooled features teaches their length, too."""
    return spec.pooled_loss in LENGTHS


def keep_bridge(
    student: FeatureStudent, inputs: CondenseInputs, first_pass: Callable[[int], Iterable[tuple[Tensor, Features]]]
) -> dict[str, Any]:
    """Gives the gene the tensors of its bridge, if one shall be kept.

    Args:
        student: The trained gene with its matches.
        inputs: Its teachers; the gene.
        first_pass: Images and what a teacher, by its number, says of them, which tells lengths where the loss did not.

    Returns:
        What the gene's metadata says of it.
    """
    targets = inputs.recipe.feature_targets()
    number = next((number for number, spec in enumerate(targets) if spec.keep_bridge), None)
    if number is None:
        return {}
    teacher, match = inputs.feature_teachers[number], student.matches[number]
    assert isinstance(match, Match)
    length = 1.0
    if not teaches_length(match.spec):
        length = _length(student, number, inputs.recipe.train.precision, first_pass(number))
    weight, bias = as_one_map(match, length, output_layer(teacher))
    inputs.gene.bridge = {f"{PREFIX}weight": weight, f"{PREFIX}bias": bias}
    ancestry = [inputs.ancestry, *inputs.teachers][number]
    assert ancestry is not None
    return {"bridge": {"teacher": ancestry.identity, "width": len(bias)}}


@torch.no_grad()
def as_one_map(match: Match, length: float, output: nn.Linear | None) -> tuple[Tensor, Tensor]:
    """Weight and bias from the student's pooled vector to the teacher's output, computed in double precision.

    Args:
        match: The learnt bridges, and the scale that is undone.
        length: What the bridge's vectors are multiplied by first.
        output: The teacher's own head, if it has one.
    """
    linear, scale = (copy.deepcopy(part).double() if part is not None else None for part in match.of_pooled())
    assert isinstance(linear, nn.Linear)
    points = torch.cat([torch.zeros(1, linear.in_features), torch.eye(linear.in_features)]).double()
    out = length * linear(points)
    if scale is not None:
        out = scale.undo(out)  # type: ignore[operator]
    if output is not None:
        out = copy.deepcopy(output).double()(out)
    return (out[1:] - out[0]).T.float().contiguous(), out[0].float()


def output_layer(teacher: FeatureTeacher) -> nn.Linear | None:
    """The head that leads from a teacher's pooled vector to its output; None if it has none.

    Raises:
        LearngeneError: If that is no linear map.
    """
    if not getattr(teacher.model, "num_classes", 0):
        return None
    model = teacher.with_weights().model
    head = model.get_classifier()
    device = next(model.parameters()).device
    with torch.no_grad():
        tokens = model.forward_features(torch.zeros(1, *input_size(model), device=device))
        if isinstance(head, nn.Linear):
            mine, own = head(model.forward_head(tokens, pre_logits=True)), model.forward_head(tokens)
            if mine.shape == own.shape and torch.allclose(mine, own, atol=1e-5, rtol=1e-4):
                return head
    raise LearngeneError(
        f"features.keep_bridge: the head of {teacher.label} is no linear map of one vector, so no head of a descendant "
        "can give its output; leave the head out with model_args={num_classes: 0}"
    )


@torch.no_grad()
def _length(student: FeatureStudent, number: int, precision: str, batches: Iterable[tuple[Tensor, Features]]) -> float:
    """By least squares, what the bridge's vectors are multiplied by to be as long as the teacher's scaled ones."""
    device, match = make_accelerator().device, student.matches[number]
    assert isinstance(match, Match)
    training = student.training
    student.to(device).eval()
    products = squares = 0.0
    for batch, said in batches:
        with autocast(device.type, precision):
            mine = student(batch.to(device), True)[2][number]["pooled"].double()
            theirs = match.scaled(said)["pooled"].double()
        products, squares = products + float((mine * theirs).sum()), squares + float(mine.square().sum())
    student.to("cpu").train(training)
    return products / squares if products > 0 else 1.0
