"""What stage 1 of a hypernetwork minimises, written out: guidance by an ancestry, and the penalty on weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from hyper import hyper_gene, token_shape
from learngene import Ancestry
from learngene.making.hyper.guidance import guidance_term, penalty
from learngene.making.hyper.meta import MetaBatch, meta_loss
from learngene.methods.tal.predict import predict_matrix
from learngene.recipe.hyper import Guidance, Stage1Hyper
from pico import batch

SPECS: dict[str, dict[str, Any]] = {
    "default": {},
    "code": {"preset": "code"},
    "paper": {"preset": "paper"},
    "paper, pooled": {"preset": "paper", "features": "pooled"},
    "code, patches": {"preset": "code", "features": "channel-wise"},
    "odd": {"temperature": 0.7, "direction": "student-teacher", "normalise": "logits", "tau_squared": False},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_guidance_is_the_divergence_written_out(spec: dict[str, Any]) -> None:
    guidance = Guidance(**spec)
    shape = (3, 4, 6) if guidance.features == "channel-wise" else (3, 6)
    student, teacher = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    total = 0.0
    for image in range(3):
        # Pooled: one distribution over channels. Channel-wise: for every channel one over patches, and their mean.
        columns = [()] if len(shape) == 2 else [(slice(None), channel) for channel in range(6)]
        for column in columns:
            s, t = (x[image][column].div(guidance.temperature).exp() for x in (student, teacher))
            s, t = s / s.sum(), t / t.sum()
            p, q = (t, s) if guidance.direction == "teacher-student" else (s, t)
            total += (p * (p / q).log()).sum().item() / len(columns)
    total *= guidance.temperature**2 if guidance.tau_squared else 1
    total /= 3 * (10 if guidance.normalise == "logits" else 1)
    assert guidance_term(student, teacher, 10, guidance).item() == pytest.approx(total, rel=1e-5)
    assert guidance_term(teacher, teacher, 10, guidance).item() == pytest.approx(0, abs=1e-6)


def test_the_presets_are_what_paper_and_code_say() -> None:
    fields = ("alpha", "temperature", "tau_squared", "direction", "features", "normalise", "map")
    found = {name: tuple(getattr(Guidance(preset=name), field) for field in fields) for name in Guidance.presets}
    assert found == {
        "default": (0.2, 3.0, True, "teacher-student", "pooled", "batch", "predicted"),
        "code": (0.2, 3.0, True, "teacher-student", "pooled", "logits", "random"),
        "paper": (0.2, 1.0, False, "student-teacher", "channel-wise", "batch", "predicted"),
        "none": (0.0, 3.0, True, "teacher-student", "pooled", "batch", "predicted"),
    }
    assert Guidance(preset="code", alpha=0.5).normalise == "logits"


def test_the_penalty_is_the_sum_of_norms() -> None:
    weights = [torch.randn(size) for size in ((3, 4), (5,), (2, 3, 4, 4))]
    expected = sum(float(value.square().sum().sqrt()) for value in weights)
    assert penalty(weights).item() == pytest.approx(expected, rel=1e-6)


def meta(ancestry_folder: Path, **hyper: Any) -> tuple[MetaBatch, Ancestry, Stage1Hyper]:
    spec, ancestry = Stage1Hyper.model_validate(hyper), Ancestry(ancestry_folder)
    made = MetaBatch(hyper_gene("tal"), spec, guidance=spec.guidance, teacher_width=ancestry.width).train()
    made.draw()
    return made, ancestry, spec


@pytest.mark.parametrize("kind", ["predicted", "learned", "random"])
@pytest.mark.parametrize("features", ["pooled", "channel-wise"])
def test_the_objective_by_hand(kind: str, features: str, ancestry_folder: Path) -> None:
    """(1 - alpha) cross-entropy + alpha guidance behind M + penalty, mean over the ViTs of a meta-batch."""
    made, ancestry, spec = meta(
        ancestry_folder, meta_batch=3, penalty=0.01, guidance={"alpha": 0.3, "map": kind, "features": features}
    )
    images, patches = batch(token_shape(), 4), features == "channel-wise"
    targets = torch.eye(3)[[0, 1, 2, 1]]
    teacher = ancestry.features(images, patches=patches)
    torch.manual_seed(5)
    parts = meta_loss(made(images), targets, spec, spec.guidance, teacher)
    found = parts["loss"]
    torch.manual_seed(5)
    losses = []
    for shape in made.shapes:
        weights = made.gene.weights(shape)
        model = shape.skeleton()
        model.load_state_dict(weights, assign=True)
        tokens = model.eval().forward_features(images)
        read = tokens[:, 1:] if patches else tokens[:, 0]
        if kind == "predicted":
            matrix = predict_matrix(made.method.config, made.gene.tensors(), made.map_vector, 16, shape.embed_dim)
        elif kind == "learned":
            matrix = made.maps[str(shape.embed_dim)]
        else:
            matrix = torch.empty(16, shape.embed_dim).uniform_(-(shape.embed_dim**-0.5), shape.embed_dim**-0.5)
        guide = guidance_term(read @ matrix.T, teacher, 3, spec.guidance)
        norms = sum(value.norm() for value in weights.values())
        losses.append(0.7 * F.cross_entropy(model(images), targets) + 0.3 * guide + 0.01 * norms)
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    together = 0.7 * parts["labels"] + 0.3 * parts["guide"] + 0.01 * parts["penalty"]
    assert found.item() == pytest.approx(together.item(), rel=1e-5)


def test_what_m_is_made_of(ancestry_folder: Path) -> None:
    images = batch(token_shape(), 2)
    for kind, extra in (("predicted", {"map_vector"}), ("learned", {"maps.16", "maps.24"}), ("random", set())):
        made, _, _ = meta(ancestry_folder, guidance={"map": kind})
        assert {name for name, _ in made.named_parameters() if not name.startswith("gene.")} == extra
        one, other = (made(images)[0][2] for _ in range(2))
        assert one.shape == (16, made.shapes[0].embed_dim)
        assert torch.equal(one, other) is (kind != "random")
        assert one.requires_grad is (kind != "random")


def test_without_alpha_nothing_guides(ancestry_folder: Path) -> None:
    made, ancestry, spec = meta(ancestry_folder, penalty=0.0, guidance={"alpha": 0.0})
    images, targets = batch(token_shape(), 3), torch.eye(3)
    found = made(images)
    assert [entry[2] for entry in found] == [None]
    assert not [name for name, _ in made.named_parameters() if not name.startswith("gene.")]
    expected = F.cross_entropy(found[0][0], targets)
    torch.testing.assert_close(
        meta_loss(found, targets, spec, spec.guidance, ancestry.features(images))["loss"], expected
    )


def test_guidance_reaches_the_decoder_and_m(ancestry_folder: Path) -> None:
    made, ancestry, spec = meta(ancestry_folder, penalty=0.0, guidance={"alpha": 1.0})
    images = batch(token_shape(), 3)
    meta_loss(made(images), torch.eye(3), spec, spec.guidance, ancestry.features(images))["loss"].backward()
    for value in (made.map_vector, made.gene.tensors()["decoder.fc1.weight"], made.gene.tensors()["encoder.types"]):
        assert value.grad is not None
        assert value.grad.any()
