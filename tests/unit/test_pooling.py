"""How pools are trained, part by part: distilled rows and sampled paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene import Ancestry, ElasticViT
from learngene.data.splits import open_splits
from learngene.making.block_features import feature_widths, refuse_unreadable, watched
from learngene.making.pool.distil import RowDistillation, row_objective, row_teacher
from learngene.making.pool.make import path_stage
from learngene.making.pool.rows import distilled_blocks
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import DataSpec, Distill, Train
from learngene.system.errors import LearngeneError
from learngene.training.loop import train
from learngene.training.losses import Parts, guided_loss
from learngene.training.stage import Stage
from learngene.training.student import Student
from learngene.training.teacher import Outputs
from pico import FAST, batch, pico_shape
from pools import by_hand, pool, shapes, vit
from runs import state

# -- which blocks, and their features ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "points", "blocks"),
    [
        (6, 3, [2, 4, 6]),
        (9, 3, [3, 6, 9]),
        (12, 3, [4, 8, 12]),
        (12, 2, [8, 12]),
        (6, 2, [4, 6]),
        (6, 1, [6]),
        (1, 1, [1]),
        (2, 1, [2]),
        (3, 3, [1, 2, 3]),
        (4, 3, [1, 3, 4]),
        (5, 3, [2, 3, 5]),
        (7, 3, [2, 5, 7]),
        (6, 0, []),
        (1, 0, []),
    ],
)
def test_blocks_are_distilled_at_thirds_of_the_depth(depth: int, points: int, blocks: list[int]) -> None:
    assert distilled_blocks(depth, points) == blocks


@pytest.mark.parametrize(("depth", "points"), [(2, 3), (2, 2), (1, 2)])
def test_a_model_without_levels_cannot_be_distilled_at_them(depth: int, points: int) -> None:
    with pytest.raises(LearngeneError, match=f"{points} points need 3 blocks or more, not {depth}; use 1 point"):
        distilled_blocks(depth, points)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("numbers", [[1], [2, 4], [1, 2, 3, 4], []], ids=str)
def test_features_are_those_of_a_forward_pass_by_hand(class_token: bool, numbers: list[int]) -> None:
    model = vit(0, class_token=class_token)
    images = batch(pico_shape(), 3)
    with watched(model, numbers) as found:
        logits = model(images)
    blocks, attentions, expected = by_hand(model, images)
    for mine, theirs in ((found.blocks, blocks), (found.attentions, attentions)):
        assert len(mine) == len(numbers)
        for value, number in zip(mine, numbers, strict=True):
            torch.testing.assert_close(value, theirs[number - 1])
    torch.testing.assert_close(logits, expected)
    assert torch.equal(model(images), logits)
    assert len(found.blocks) == len(numbers)  # nothing is collected after the first pass


def test_features_of_a_stitched_path_have_its_widths() -> None:
    gene = pool()
    model, images = gene.expand("2+1"), batch(gene.shape)
    with watched(model, [1, 2, 3]) as found:
        model(images)
    blocks, attentions, _ = by_hand(model, images)
    for mine, theirs in zip((*found.blocks, *found.attentions), (*blocks, *attentions), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert feature_widths(model, "path", [1, 2, 3], (3, 8, 8), 4) == [16, 16, 32]


class Odd(nn.Module):
    """A model whose blocks put out something else than tokens."""

    def __init__(self, output: Any, attention: Any = None) -> None:
        super().__init__()
        self.output, self.attention = output, attention

        class Says(nn.Module):
            def __init__(self, what: Any) -> None:
                super().__init__()
                self.what = what

            def forward(self, _: Any) -> Any:
                return self.what

        class Block(Says):
            def __init__(self, what: Any, attention: Any) -> None:
                super().__init__(what)
                self.attn = Says(attention)

            def forward(self, x: Any) -> Any:
                self.attn(x)
                return self.what

        self.weight = nn.Parameter(torch.zeros(1))
        self.blocks = nn.Sequential(Block(output, attention))

    def forward(self, images: Tensor) -> Any:
        return self.blocks(images)


TOKENS = torch.zeros(1, 4, 16)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Odd(torch.zeros(1, 2, 2, 16), TOKENS), r"output of block 1 is shape \(1, 2, 2, 16\), not \(batch"),
        (lambda: Odd((TOKENS, TOKENS), TOKENS), "the output of block 1 is tuple, not"),
        (lambda: Odd(TOKENS, (TOKENS, None)), "the attention's output of block 1 is tuple, not"),
        (lambda: Odd(torch.zeros(1, 5, 16), TOKENS), "block 1 has 5 tokens but the auxiliary models have 4; give"),
        (lambda: timm.create_model("resnet10t"), "ResNet has no sequence of blocks; set pool.terms=.pred. and pool.st"),
        (lambda: timm.create_model("mixer_s32_224", img_size=32), "block 1, a MixerBlock, has no attention module"),
    ],
)  # fmt: skip
def test_an_ancestry_whose_blocks_cannot_be_read_is_refused(model: Any, message: str) -> None:
    with pytest.raises(LearngeneError, match="ancestry odd: .*" + message):
        feature_widths(model(), "odd", [1], (3, 8, 8), 4)


def test_plain_blocks_can_be_read() -> None:
    refuse_unreadable(vit(0), "vit")
    refuse_unreadable(pool().expand("2+1"), "path")
    with pytest.raises(LearngeneError, match="has no sequence of blocks"):
        refuse_unreadable(timm.create_model("levit_128s"), "levit")


# -- the loss of a row, equations 3 to 8 -------------------------------------------------------------------

ROWS: dict[str, dict[str, Any]] = {
    "dense": {},
    "points 2": {"points": 2},
    "points 1": {"points": 1},
    "points 0": {"points": 0},
    "equal width": {"width": 32, "points": 1},
    "equal width, learned": {"width": 32, "pool": {"learn_equal_width": True}},
    "bias": {"pool": {"transform_bias": True}},
    "predictions": {"pool": {"terms": ["pred"]}},
    "blocks": {"pool": {"terms": ["blk"]}},
    "attention": {"pool": {"terms": ["att"]}},
    "blocks and attention": {"pool": {"terms": ["att", "blk"]}},
    "predictions and blocks": {"pool": {"terms": ["pred", "blk"]}},
    "alpha 0": {"distill": {"alpha": 0.0}},
    "alpha 1": {"distill": {"alpha": 1.0}},
    "alpha 0.9, temperature 3": {"distill": {"alpha": 0.9, "temperature": 3.0}},
    "over classes too": {"distill": {"reduction": "numel", "temperature": 2.0}},
    "class token": {"shape": {"class_token": True}},
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS)
def test_the_loss_of_a_row_is_equations_3_to_8(case: dict[str, Any]) -> None:
    width, points, shape = case.get("width", 16), case.get("points", 3), case.get("shape", {})
    spec = PoolSpec(**case.get("pool", {}))
    distill = Distill(**{"preset": "pool", "alpha": 0.7, **case.get("distill", {})})
    teacher = vit(1, embed_dim=32, num_heads=4, depth=6, **shape)
    student = vit(2, embed_dim=width, num_heads=width // 8, depth=3, **shape)
    mine, theirs = distilled_blocks(3, points), distilled_blocks(6, points)
    torch.manual_seed(5)
    module = RowDistillation(student, width, mine, [32] * points, spec)
    images = batch(pico_shape(), 5)
    targets = torch.softmax(torch.randn(5, 3, generator=torch.Generator().manual_seed(7)), dim=-1)
    said = [row_teacher(Ancestry(teacher), theirs, spec).load()(images)] if points else []
    parts = row_objective(spec, distill)(module, images, targets, said)
    found = parts["loss"]

    blocks, attentions, logits = by_hand(student, images)
    with torch.no_grad():
        their_blocks, their_attentions, their_logits = by_hand(teacher, images)
    labels = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    tau, alpha = distill.temperature, distill.alpha
    soft = -((their_logits / tau).softmax(-1) * (logits / tau).log_softmax(-1)).sum()
    pred = soft / (5 * 3 if distill.reduction == "numel" else 5)

    def mapped(matrix: Any, features: Tensor) -> Tensor:
        if isinstance(matrix, nn.Identity):
            return features
        return features @ matrix.weight.T + (matrix.bias if matrix.bias is not None else 0)

    blk = sum(((mapped(module.W[p], their_blocks[theirs[p] - 1]) - blocks[mine[p] - 1]) ** 2).mean()
              for p in range(points if "blk" in spec.terms else 0))  # fmt: skip
    att = sum(((mapped(module.M[p], their_attentions[theirs[p] - 1]) - attentions[mine[p] - 1]) ** 2).mean()
              for p in range(points if "att" in spec.terms else 0))  # fmt: skip
    expected = (1 - alpha) * labels + alpha * ((pred if "pred" in spec.terms else 0) + blk + att)
    torch.testing.assert_close(found, expected if points else labels)
    if points:
        values = {"labels": labels, "distill": pred, "blocks": blk, "attention": att}
        used = {name for name, term in (("blocks", "blk"), ("attention", "att")) if term in spec.terms}
        used |= {"distill"} if "pred" in spec.terms and alpha > 0 else set()
        used |= {"labels"} if "pred" not in spec.terms or alpha < 1 else set()
        assert parts.keys() == {"loss", *used}
        for name in parts.keys() - {"loss"}:
            torch.testing.assert_close(parts[name], values[name])


def test_matrices_are_learned_where_widths_differ() -> None:
    plain, spec = vit(0), PoolSpec()
    learned = RowDistillation(plain, 16, [1, 2, 4], [32, 32, 32], spec)
    assert [tuple(module.weight.shape) for module in (*learned.W, *learned.M)] == [(16, 32)] * 6
    assert all(module.bias is None for module in (*learned.W, *learned.M))
    assert len({id(p) for p in learned.parameters()}) == len(list(plain.parameters())) + 6
    equal = RowDistillation(plain, 16, [4], [16], spec)
    assert all(isinstance(module, nn.Identity) for module in (*equal.W, *equal.M))
    assert equal.matrix() is None
    asked = RowDistillation(plain, 16, [4], [16], PoolSpec(learn_equal_width=True, transform_bias=True))
    assert {name for name, _ in asked.named_parameters() if not name.startswith("student.")} == {
        f"{matrix}.0.{part}" for matrix in "WM" for part in ("weight", "bias")
    }
    assert asked.no_weight_decay() == {"student.pos_embed", "student.cls_token"}


def test_gradients_reach_student_and_matrices_and_not_the_ancestry() -> None:
    teacher, student = Ancestry(vit(1, embed_dim=32, num_heads=4, depth=6)), vit(2, depth=3)
    module = RowDistillation(student, 16, [1, 2, 3], [32] * 3, PoolSpec())
    objective, images = row_objective(PoolSpec(), Distill(preset="pool")), batch(pico_shape(), 4)
    said = [row_teacher(teacher, [2, 4, 6], PoolSpec()).load()(images)]
    objective(module, images, F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float(), said)["loss"].backward()
    assert [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()] == []
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_row_gives_logits_to_whoever_only_scores_it() -> None:
    student = vit(2, depth=3)
    module = RowDistillation(student, 16, [3], [32], PoolSpec())
    images = batch(pico_shape())
    assert torch.equal(module(images), student(images))


def test_a_guide_at_the_scale_of_the_authors_code() -> None:
    """By hand: KL((1/2, 1/2) || (4/5, 1/5)) is 0.223144 nats; over batch x classes, times 100, 11.1572."""
    student, teacher = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    spec = PoolSpec(guide="soft", guide_weight=1.0, guide_reduction="numel", guide_scale=100.0)
    loss = guided_loss(student, teacher, torch.tensor([[1.0, 0.0]]), spec)["loss"]
    assert float(loss) == pytest.approx(11.15718, abs=1e-4)


@pytest.mark.parametrize("guide", ["soft", "hard"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_guide_is_plain_distillation(guide: Any, weight: float, temperature: float) -> None:
    student, teacher, targets = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 2))
    targets = targets.softmax(-1)
    spec = PoolSpec(guide=guide, guide_weight=weight, guide_temperature=temperature)
    labels = F.cross_entropy(student, targets)
    if guide == "hard":
        term = F.cross_entropy(student, teacher.argmax(-1))
    else:
        mine, theirs = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
        term = temperature**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)
    torch.testing.assert_close(
        guided_loss(student, teacher, targets, spec)["loss"], (1 - weight) * labels + weight * term
    )


# -- sampled paths -----------------------------------------------------------------------------------------


def sampled(stage: Stage, images: Path, steps: list[Any], **train_fields: Any) -> None:
    """Trains a stage of paths and notes the path of every training step."""
    elastic, objective = stage.module, stage.objective
    assert isinstance(elastic, ElasticViT)

    def noting(model: nn.Module, pixels: Tensor, targets: Tensor, theirs: Sequence[Outputs]) -> Parts:
        steps.append(elastic.shape)
        return objective(model, pixels, targets, theirs)

    stage.objective = noting
    data = DataSpec(source=str(images), workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    train([Student(stage, Train(**{**FAST, **train_fields}))], *open_splits(data), data, show=False)


def test_every_path_is_drawn_with_the_same_probability() -> None:
    elastic = ElasticViT(pool())
    draw = path_stage(elastic, None, PoolSpec()).before_step
    assert draw is not None
    torch.manual_seed(0)
    counts = dict.fromkeys(shapes(elastic.gene), 0)
    for _ in range(2700):
        draw(0, 0)
        counts[elastic.shape] += 1
    assert len(counts) == 9
    # Chi square of 8 degrees of freedom: 26.1 is passed once in a thousand times.
    assert sum((count - 300) ** 2 / 300 for count in counts.values()) < 26.1


def test_paths_are_drawn_by_seed_epoch_and_step(images: Path) -> None:
    def drawn(seed: int, caller: int, **fields: Any) -> list[Any]:
        torch.manual_seed(caller)
        steps: list[Any] = []
        sampled(path_stage(ElasticViT(pool()), None, PoolSpec()), images, steps, seed=seed, epochs=4, **fields)
        return steps

    first = drawn(0, 1)
    assert len(first) == 12
    assert len(set(first)) > 4
    assert first == drawn(0, 2) == drawn(0, 3, lr=1e-5)
    assert first != drawn(1, 1)
    assert first[:3] != first[3:6]
    # One path for a whole step, however many parts its batch has.
    assert drawn(0, 1, micro_batch=4) == [path for path in first for _ in range(2)]


def test_a_step_changes_only_what_its_path_uses(images: Path) -> None:
    """Even with weight decay, and with moments of Adam from steps before."""
    elastic = ElasticViT(pool())
    gene, stage = elastic.gene, path_stage(elastic, None, PoolSpec())
    draw, used, checked = stage.before_step, set[str](), []
    assert draw is not None
    before = state(gene)

    def check(epoch: int, step: int) -> None:
        nonlocal before
        after = state(gene)
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed <= used
        assert len(changed) >= 0.9 * len(used)
        checked.append(len(changed))
        draw(epoch, step)
        before = after
        weights = gene.weights(elastic.shape).values()
        used.clear()
        used.update(key for key, value in gene.tensors().items() if any(value is weight for weight in weights))

    stage.before_step = check
    sampled(stage, images, [], epochs=5, weight_decay=0.5, optimizer="adamw")
    assert len(checked) == 15
    assert checked[0] == 0
    assert all(checked[1:])


def test_paths_are_scored_on_the_widest_row(images: Path) -> None:
    elastic = ElasticViT(pool())
    stage = path_stage(elastic, None, PoolSpec())
    elastic.set_path("2+1")
    assert stage.before_scoring is not None
    stage.before_scoring()
    assert elastic.shape == elastic.gene.shape
    assert not stage.uses_all


def test_a_guide_sees_every_batch(images: Path) -> None:
    ancestry, seen = Ancestry(vit(1)), []
    ancestry.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    for guide, calls in (("none", 0), ("soft", 3), ("hard", 3)):
        seen.clear()
        sampled(path_stage(ElasticViT(pool()), ancestry, PoolSpec(guide=guide)), images, [], epochs=1)
        assert seen == [8] * calls
