"""The bridge that a gene keeps: descendants in their teacher's space, and images named by texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import learngene
from learngene import Ancestry, LearngeneError, save_descendant, scratch, zero_shot
from learngene.genes.gene import Learngene
from learngene.making.condense import prepare
from learngene.making.features.kept_bridge import as_one_map
from learngene.making.features.student import Match
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.features import FeatureTarget
from learngene.recipe.loading import build_recipe
from learngene.training.feature_scales import Scale
from pico import CLI, FAST, batch, condense_fields, pico_gene, pico_shape
from runs import condensed

BARE = {**pico_shape().to_dict(), "num_classes": 0}
KEPT = {"bridge": "linear", "keep_bridge": True}
SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
TOWERS = {
    "siglip": ("vit_base_patch16_siglip_224", 0, 8),
    "clip": ("vit_base_patch16_clip_224", 5, 5),  # whose head is the projection
    "dinov2": ("vit_small_patch14_reg4_dinov2", 0, 8),
}
"""By kind of image tower: timm's architecture, its classes, and how wide its output is."""


def tower(kind: str = "siglip", **changes: Any) -> nn.Module:
    """A small image tower with random weights."""
    name, classes, _ = TOWERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name, pretrained=False, **{**SIZES, "num_classes": classes, **changes})
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def made(out: Path | None, images: Path, teacher: nn.Module, **changes: Any) -> Learngene:
    fields = {"distill": {"target": "features"}, "shape": BARE, "features": KEPT}
    return condensed(out, images, Ancestry(teacher), **{**fields, **changes})


def recipe(images: Path | str = "digits", **changes: Any) -> CondenseRecipe:
    fields = {"distill": {"target": "features"}, "shape": BARE, "features": KEPT}
    built = build_recipe(condense_fields("in memory", images, Path("unused"), **{**fields, **changes}))
    assert isinstance(built, CondenseRecipe)
    return built


# -- one linear map ----------------------------------------------------------------------------------------


def test_a_bridge_its_scale_and_the_teachers_head_are_one_map() -> None:
    match = Match.__new__(Match)
    nn.Module.__init__(match)
    linear, scale, head = nn.Linear(2, 2), Scale(2, "standardise"), nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        linear.bias.copy_(torch.tensor([1.0, -1.0]))
        scale.shift.copy_(torch.tensor([10.0, 20.0]))
        scale.stretch.copy_(torch.tensor([2.0, 4.0]))
        head.weight.fill_(1.0)
        head.bias.fill_(0.5)
    match._places = {"pooled": "0"}
    match.bridges, match.scales = nn.ModuleDict({"0": linear}), nn.ModuleDict({"0": scale})

    def at_ones(output: nn.Linear | None) -> list[float]:
        weight, bias = as_one_map(match, 2.0, output)
        return list((weight.sum(1) + bias).tolist())

    # (1, 1) becomes (4, 0), twice that (8, 0), over the stretch (4, 0), and with the shift (14, 20).
    assert at_ones(None) == pytest.approx([14, 20])
    assert at_ones(head) == pytest.approx([34.5])


def test_a_rotated_scale_is_undone() -> None:
    scale = Scale(4, "phi-s")
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    scale.see(features)
    scale.settle()
    torch.testing.assert_close(scale.undo(scale(features)), features, atol=1e-5, rtol=1e-5)


# -- genes and descendants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOWERS)
def test_a_descendant_gives_the_teachers_output(kind: str, images: Path, tmp_path: Path) -> None:
    teacher, width = tower(kind), TOWERS[kind][2]
    train = {**FAST, "epochs": 30, "lr": 1e-2, "eval_every": 30}
    gene = made(
        tmp_path / "run", images, teacher, features={**KEPT, "pooled_loss": "mse", "scale": "none"}, train=train
    )
    assert gene.metadata["bridge"] == {"teacher": gene.metadata["ancestry"], "width": width}
    model = learngene.load(tmp_path / "run.safetensors").expand(bridge=True)
    assert model.num_classes == width
    assert not model.learngene["fresh"]
    assert model.learngene["class_names"] is None
    pictures = batch(pico_shape(), 64) * 0.3
    with torch.no_grad():
        mine, theirs = model(pictures), teacher(pictures)
    assert nn.functional.cosine_similarity(mine, theirs).mean() > 0.9
    lengths = [float(each.norm(dim=1).mean()) for each in (mine, theirs)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.3)


@pytest.mark.parametrize("scale", ["none", "standardise"])
def test_the_stored_map_is_the_learnt_one_with_its_scale_undone(scale: str, images: Path, tmp_path: Path) -> None:
    gene = made(tmp_path / "run", images, tower(), features={**KEPT, "pooled_loss": "mse", "scale": scale})
    learnt = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["module"]
    stretch, shift = (learnt[f"matches.0.scales.0.{name}"] for name in ("stretch", "shift"))
    stored = load_file(tmp_path / "run.safetensors")
    torch.testing.assert_close(stored["bridge.weight"], learnt["matches.0.bridges.0.weight"] / stretch[:, None])
    torch.testing.assert_close(stored["bridge.bias"], learnt["matches.0.bridges.0.bias"] / stretch + shift)
    assert (scale == "none") == bool((stretch == 1).all())
    model = gene.expand(2, bridge=True)
    torch.testing.assert_close(model.head.weight, stored["bridge.weight"])
    model.head.weight.data.zero_()
    assert gene.bridge["bridge.weight"].any()  # no memory is shared


def test_a_loss_without_lengths_leaves_them_to_a_last_pass(images: Path, tmp_path: Path) -> None:
    made(tmp_path / "run", images, tower(), features={**KEPT, "scale": "none"})  # cosine
    learnt = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["module"]
    stored = load_file(tmp_path / "run.safetensors")
    ratios = stored["bridge.weight"] / learnt["matches.0.bridges.0.weight"]
    torch.testing.assert_close(ratios, torch.full_like(ratios, float(ratios[0, 0])), rtol=1e-4, atol=1e-4)
    assert abs(float(ratios[0, 0]) - 1) > 0.01


def test_the_bridge_is_that_of_the_teacher_that_asks(images: Path, tmp_path: Path) -> None:
    save_descendant(scratch(pico_shape(num_classes=0, embed_dim=24, depth=1), seed=1), tmp_path / "other")
    other = {"source": str(tmp_path / "other"), "features": KEPT}
    gene = made(None, images, tower(), features={"preset": "cosine"}, teachers=[other])
    assert gene.metadata["bridge"]["teacher"]["source"] == "other"
    assert gene.expand(bridge=True).num_classes == 24
    with pytest.raises(LearngeneError, match="a gene keeps the bridge to one teacher"):
        recipe(teachers=[other])
    assert not recipe(teachers=[{"source": "x"}]).feature_targets()[1].keep_bridge


def test_architectures_keep_bridges_too(images: Path) -> None:
    shape = {"arch": "vit_base_patch16_siglip_224", **SIZES, "embed_dim": 16, "num_classes": 0}
    gene = made(None, images, tower(), shape=shape)
    assert gene.expand(3, bridge=True)(batch(pico_shape())).shape == (2, 8)


def test_genes_without_a_bridge_are_as_they_were(images: Path, tmp_path: Path) -> None:
    made(tmp_path / "run", images, tower(), features={})
    stored = load_file(tmp_path / "run.safetensors")
    assert not any(name.startswith("bridge") for name in stored)
    assert "bridge" not in learngene.load(tmp_path / "run.safetensors").metadata
    plain = FeatureTarget().model_dump()
    del plain["keep_bridge"]
    assert short_hash(FeatureTarget()) == short_hash(plain)


def test_a_damaged_bridge_is_refused(images: Path, tmp_path: Path) -> None:
    gene = made(None, images, tower())
    gene.save(tmp_path / "whole.safetensors")
    for wrong, message in [
        ({"width": 8}, "'bridge' must say its teacher and its width"),
        ({**gene.metadata["bridge"], "width": 9}, r"tensor 'bridge.bias' has shape \(8,\), but should have \(9,\)"),
    ]:
        gene.metadata["bridge"] = wrong
        with pytest.raises(LearngeneError, match=message):
            gene.save(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"keep_bridge": True}}, "a bridge of norm-linear is not; set features.bridge=linear"),
        ({"features": {"keep_bridge": True, "bridge": "mlp"}}, "a bridge of mlp is not"),
        ({"features": {**KEPT, "tokens": ["patches"]}}, "keeps the bridge of pooled, which tokens have not"),
        (
            {
                "method": "pool",
                "settings": {"rows": [[8, 4, 2], [16, 4, 2]]},
                "shape": pico_shape().to_dict(),
                "distill": {"target": "features", "alpha": 0.5},
            },
            "every row of a pool has a bridge of its own",
        ),
    ],
)
def test_a_bridge_that_no_head_can_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        recipe(**changes)


def test_heads_that_are_no_linear_map_are_refused(images: Path) -> None:
    ending = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False, **SIZES, num_classes=3)
    with pytest.raises(LearngeneError, match=r"the head of .* is no linear map of one vector"):
        prepare(recipe(images), Ancestry(ending))
    shape = {"arch": "deit_tiny_distilled_patch16_224", **SIZES, "embed_dim": 16, "num_classes": 0}
    with pytest.raises(LearngeneError, match=r"is head.weight, head.bias, head_dist.weight, head_dist.bias, not one"):
        prepare(recipe(images, shape=shape), Ancestry(tower()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bridge": True}, "the gene has none; condense it with features.keep_bridge=true"),
        ({"bridge": True, "num_classes": 4}, "has none"),
    ],
)
def test_expanding_without_a_bridge_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        pico_gene().expand(2, **arguments)


def test_a_bridge_has_no_classes_and_one_width(images: Path) -> None:
    gene = made(None, images, tower())
    with pytest.raises(LearngeneError, match="has no classes; leave them out"):
        gene.expand(2, bridge=True, num_classes=4)
    with pytest.raises(LearngeneError, match="leads from width 16, so it fits no descendant of width 8"):
        gene.expand(gene.shape.replace(embed_dim=8), bridge=True)


# -- texts -------------------------------------------------------------------------------------------------


def constant(output: list[float]) -> nn.Module:
    """A model that gives every image the same output."""
    model = scratch(pico_shape(num_classes=len(output), depth=1))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor(output))
    return model


def texts(path: Path, rows: list[list[float]] | Tensor, names: Any = None) -> Path:
    metadata = None if names is None else {"classes": json.dumps(names)}
    save_file({"texts": torch.as_tensor(rows)}, path, metadata)
    return path


def test_an_image_is_of_the_class_of_the_nearest_text(images: Path, tmp_path: Path) -> None:
    rows = [[0.0, 5.0], [3.0, 0.0], [-1.0, 0.0]]
    file = texts(tmp_path / "texts.safetensors", rows, ["green", "red", "blue"])
    found = zero_shot(constant([2.0, 0.0]), str(images), file)  # cosines 0, 1, -1: always red
    assert (found.top1, found.top5, found.images) == (pytest.approx(100 / 3), 100.0, 12)
    assert found.loss == pytest.approx((0 + 100 + 200) / 3, rel=1e-5)
    # Without names rows are in the data's order: blue, green, red.
    assert zero_shot(constant([2.0, 1.9]), str(images), torch.tensor(rows)).top1 == pytest.approx(100 / 3)
    only = tmp_path / "only"
    (only / "val").mkdir(parents=True)
    for name in ("red", "blue"):
        (only / "val" / name).symlink_to(images / "val" / name)
    assert zero_shot(constant([2.0, 0.0]), str(only), file).top1 == 50.0
    assert zero_shot(constant([2.0, 1.0]), str(only), file).top1 == 50.0


def test_a_whole_walk_on_the_command_line(cli: CLI, images: Path, tmp_path: Path) -> None:
    teacher = tower()
    save_descendant(teacher, tmp_path / "teacher")
    fields = condense_fields(tmp_path / "teacher", images, tmp_path / "run", distill={"target": "features"})
    (tmp_path / "recipe.yaml").write_text(json.dumps({**fields, "shape": BARE, "features": KEPT}))
    assert cli("condense", tmp_path / "recipe.yaml").code == 0
    gene, model = tmp_path / "run.safetensors", tmp_path / "model"
    assert "bridge" in cli("info", gene).out
    done = cli("expand", gene, "--depth", 2, "--bridge", "--out", model)
    assert done.code == 0, done.err
    assert "8 classes" in done.out
    assert f"learngene eval {model} --data DATA --text-features" in done.out
    file = texts(tmp_path / "texts.safetensors", torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    shown = cli("eval", model, "--data", images, "--text-features", file)
    assert "zero-shot top-1" in shown.out, shown.err
    assert "top-5" not in shown.out
    scores = json.loads(cli("eval", gene, "--data", images, "--depth", 2, "--text-features", file, "--json").out)
    assert scores == json.loads(cli("eval", model, "--data", images, "--text-features", file, "--json").out)
    assert cli("eval", tmp_path / "teacher", "--data", images, "--text-features", file).code == 0
    stock = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    pictures = batch(pico_shape())
    torch.testing.assert_close(stock(pictures), learngene.load_descendant(model).eval()(pictures))
    both = cli("expand", gene, "--bridge", "--num-classes", 3, "--out", model)
    assert (both.code, "leave --num-classes out" in both.err) == (2, True)
    mixed = cli("eval", model, "--data", images, "--text-features", file, "--knn")
    assert (mixed.code, "leave --knn" in mixed.err) == (2, True)


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([[1.0, 0.0]] * 3, ["red", "green"], "must be a JSON list of 3 names, one per row"),
        ([[1.0, 0.0]] * 3, ["red", "green", "pink"], "has not the classes of .*'blue' is none of red, green, pink"),
        ([[1.0, 0.0]] * 2, None, "has 2 texts but .* 3 classes"),
        ([[1.0, 0.0, 0.0]] * 3, None, r"has texts of 3 numbers, but the model's output of an image is \(2,\)"),
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], None, "a row is zero or not finite"),
        ([1.0, 2.0], None, r"must hold one tensor of numbers with a row per class, not \(2,\)"),
    ],
)
def test_texts_that_do_not_fit_are_refused(rows: Any, names: Any, message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        zero_shot(constant([1.0, 0.0]), str(images), texts(tmp_path / "texts.safetensors", rows, names))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_safetensors_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("no")
    for file in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(LearngeneError, match="cannot be read as safetensors"):
            zero_shot(constant([1.0, 0.0]), str(images), tmp_path / file)
