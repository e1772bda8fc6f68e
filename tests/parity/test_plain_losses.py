"""Losses against the formulas of the papers and of the authors' code, written out in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from learngene.methods import METHODS, method
from learngene.recipe.sections import Distill
from learngene.training.losses import classification_loss, distillation_loss, distillation_term

BATCH, CLASSES = 6, 5


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER, TARGETS = logits(1), logits(2), logits(3).softmax(-1)


def kl_official(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """DeiT's and so the authors' line: KL(teacher || student), tau^2, divided by batch x classes."""
    return F.kl_div(
        F.log_softmax(s / tau, dim=1), F.log_softmax(t / tau, dim=1), reduction="sum", log_target=True
    ) * (tau * tau) / s.numel()  # fmt: skip


def kl_tleg(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """Equation 5: KL(student, teacher), averaged over the batch."""
    p_s, p_t = (s / tau).softmax(-1), (t / tau).softmax(-1)
    return (p_s * (p_s.log() - p_t.log())).sum() / BATCH


def cross_entropy_sws(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """SWS's equation 2 and Learngene Pool's equation 3: soft cross-entropy."""
    return -((t / tau).softmax(-1) * (s / tau).softmax(-1).log()).sum() / BATCH


def mean_cross_entropy_pool(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """Learngene Pool's code: soft cross-entropy, averaged over batch and classes."""
    return cross_entropy_sws(s, t, tau) / CLASSES


PRESETS: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], float]] = {
    "tleg-official": (kl_official, 1.0),
    "sws-official": (kl_official, 1.0),
    "tleg-paper": (kl_tleg, 0.5),
    "sws-paper": (cross_entropy_sws, 0.5),
    "pool": (cross_entropy_sws, 0.9),
    "pool-official": (mean_cross_entropy_pool, 0.9),
    "lets-official": (kl_official, 1.0),
}


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_formula(preset: str, tau: float) -> None:
    term, alpha = PRESETS[preset]
    spec = Distill(preset=preset, temperature=tau)
    labels = -(TARGETS * F.log_softmax(STUDENT, -1)).sum(-1).mean()
    expected = (1 - alpha) * labels + alpha * term(STUDENT, TEACHER, tau)
    torch.testing.assert_close(distillation_term(STUDENT, TEACHER, spec), term(STUDENT, TEACHER, tau))
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, TARGETS, spec)["loss"], expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_teacher_against_labels(alpha: float) -> None:
    spec = Distill(preset="tleg-paper", alpha=alpha)
    expected = (1 - alpha) * classification_loss(STUDENT, TARGETS) + alpha * kl_tleg(STUDENT, TEACHER, 1.0)
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, TARGETS, spec)["loss"], expected)


def test_the_published_alpha_uses_no_labels_at_all() -> None:
    loss = distillation_loss(STUDENT, TEACHER, torch.full_like(TARGETS, float("nan")), Distill())["loss"]
    assert loss.isfinite()
    assert torch.equal(loss, distillation_loss(STUDENT, TEACHER, TARGETS, Distill())["loss"])


def test_the_preset_without_teacher_is_plain_cross_entropy() -> None:
    expected = F.cross_entropy(STUDENT, TARGETS)
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, TARGETS, Distill(preset="none"))["loss"], expected)


def test_classification_is_pytorchs_soft_target_cross_entropy() -> None:
    torch.testing.assert_close(classification_loss(STUDENT, TARGETS), F.cross_entropy(STUDENT, TARGETS))


def test_divergence_and_cross_entropy_have_the_same_gradient() -> None:
    """They differ by the teacher's entropy, so only the printed value changes."""
    found = []
    for divergence in ("teacher-student", "cross-entropy"):
        student = STUDENT.clone().requires_grad_()
        distillation_term(student, TEACHER, Distill(divergence=divergence)).backward()
        found.append(student.grad)
    torch.testing.assert_close(*found)


def test_a_student_that_agrees_has_no_distance() -> None:
    for divergence in ("teacher-student", "student-teacher"):
        assert distillation_term(TEACHER, TEACHER, Distill(divergence=divergence)).abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_computed_in_full_precision(dtype: torch.dtype) -> None:
    """The old official division by batch x classes makes numbers too small for half precision."""
    loss = distillation_loss(STUDENT.to(dtype), TEACHER.to(dtype), TARGETS, Distill())["loss"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, distillation_loss(STUDENT, TEACHER, TARGETS, Distill())["loss"], rtol=0.05, atol=1e-3
    )


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("tleg-official", (1.0, 1.0, "teacher-student", True, "numel")),
        ("sws-official", (1.0, 1.0, "teacher-student", True, "numel")),
        ("tleg-paper", (0.5, 1.0, "student-teacher", False, "batch")),
        ("sws-paper", (0.5, 1.0, "cross-entropy", False, "batch")),
        ("pool", (0.9, 1.0, "cross-entropy", False, "batch")),
        ("wave", (0.5, 1.0, "teacher-student", False, "batch")),
        ("pool-official", (0.9, 1.0, "cross-entropy", False, "numel")),
        ("lets-official", (1.0, 1.0, "teacher-student", True, "numel")),
        (None, (1.0, 1.0, "teacher-student", True, "numel")),
    ],
)
def test_the_presets_say_what_the_papers_and_the_code_do(preset: str | None, expected: tuple[Any, ...]) -> None:
    spec = Distill(preset=preset)
    assert (spec.alpha, spec.temperature, spec.divergence, spec.tau_squared, spec.reduction) == expected


def test_every_method_names_a_preset() -> None:
    taught = {"tleg": "tleg-official", "sws": "sws-official", "distilled": "tleg-official", "pool": "pool"}
    taught |= {"nested-slices": "tleg-official", "fine": "tleg-official", "wave": "wave", "any-size": "wave"}
    taught |= {"chebyshev": "wave", "sweet": "wave", "lets": "lets-official"}
    assert {name: method(name).distillation for name in METHODS} == {**dict.fromkeys(METHODS, "none"), **taught}
    assert {method(name).distillation for name in METHODS} <= set(Distill.presets)


def test_a_preset_can_be_changed_in_part() -> None:
    spec = Distill(preset="tleg-paper", alpha=0.9)
    assert (spec.alpha, spec.divergence) == (0.9, "student-teacher")


def test_hard_distillation_is_cross_entropy_with_the_teachers_first_guess() -> None:
    """By hand: logits (2, 0) against class 1 cost ln(1 + e^2) = 2.126928, at any temperature and reduction."""
    student, teacher, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    for changes in ({}, {"temperature": 4.0}, {"reduction": "batch"}, {"tau_squared": False}):
        spec = Distill(divergence="hard", alpha=0.25, **changes)
        parts = distillation_loss(student, teacher, labels, spec)
        assert float(parts["distill"]) == pytest.approx(2.126928)
        assert float(parts["loss"]) == pytest.approx(0.25 * 2.126928 + 0.75 * 0.126928)  # ln(1 + e^-2) = 0.126928
