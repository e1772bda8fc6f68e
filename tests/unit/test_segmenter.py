"""Segmenters: models that give every pixel a class, their loss, score, runs and commands."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from comparisons import compare_fields, recipe_of, results
from learngene import (
    Ancestry,
    ViTShape,
    evaluate,
    export_onnx,
    finetune,
    load_descendant,
    save_descendant,
    scratch,
    segment,
)
from learngene.comparing.run import compare, prepare
from learngene.comparing.tables import as_csv, as_markdown
from learngene.data.open_split import open_split
from learngene.making.finetune import run, starting_model
from learngene.recipe.content_hash import hashed_content, later_defaults
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import merge
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.training.losses import segmentation_loss
from learngene.training.scores import SegmentationScore, score_from, task_score
from learngene.training.stage import set_drop_path
from learngene.vits.multiply_adds import multiply_adds
from learngene.vits.segmenter import Segmenter
from learngene.vits.segmenter_sizes import head_params, segmenter_macs, segmenter_params
from masked import IGNORED, LIGHT, make_masked, masked_data
from pico import CLI, batch, finetune_fields, pico_gene, pico_shape
from pools import pool
from runs import metrics, same, state


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    return make_masked(tmp_path / "masked")


def segmenter(classes: int = 3, seed: int = 0, **shape: Any) -> Segmenter:
    return segment(scratch(pico_shape(**shape), seed=seed), classes, seed=seed)


def recipe(model: object, root: Path, out: Path, **changes: Any) -> FinetuneRecipe:
    fields = finetune_fields(str(model), root, out, train=LIGHT)
    built = build_recipe({**fields, **changes})
    assert isinstance(built, FinetuneRecipe)
    return built


# -- the model ----------------------------------------------------------------------------------------


SHAPES: dict[str, dict[str, Any]] = {
    "aligned": {},
    "official": {"ending": "official"},
    "class token": {"class_token": True},
    "grey": {"in_chans": 1},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_segmenter_is_counted_saved_and_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    shape = pico_shape(**{**changes, "num_classes": 5})
    model, images = segmenter(5, **changes), batch(shape)
    logits = model(images)
    assert logits.shape == (2, 5, 8, 8)
    assert segmenter_params(shape) == sum(parameter.numel() for parameter in model.parameters())
    assert segmenter_macs(shape) == multiply_adds(model, shape.in_chans, 8)
    logits.square().mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
    save_descendant(model, tmp_path / "des")
    again = load_descendant(tmp_path / "des").eval()
    assert torch.equal(again(images), logits)
    assert same(state(again), state(model))
    assert again.learngene["head"] == "segmentation"
    save_descendant(again, tmp_path / "again")
    assert same(state(load_descendant(tmp_path / "again")), state(model))
    larger = load_descendant(tmp_path / "des", img_size=16).eval()
    assert larger(batch(shape.replace(img_size=16))).shape == (2, 5, 16, 16)
    again.set_input_size((16, 16))
    assert torch.equal(again(batch(shape.replace(img_size=16))), larger(batch(shape.replace(img_size=16))))
    save_descendant(again, tmp_path / "larger")
    assert torch.equal(
        load_descendant(tmp_path / "larger").eval()(images.repeat(1, 1, 2, 2)), larger(images.repeat(1, 1, 2, 2))
    )
    other = load_descendant(tmp_path / "des", num_classes=7)
    assert other(images).shape[1] == other.num_classes == 7


def test_the_head_comes_from_its_seed_and_the_rest_from_the_model() -> None:
    first, again, other = segmenter(seed=3), segmenter(seed=3), segment(scratch(pico_shape(), seed=3), 3, seed=4)
    assert same(state(first), state(again))
    differs = {name for name, value in state(first).items() if not torch.equal(value, state(other)[name])}
    assert differs == {"head.conv.weight", "head.classes.weight"}
    vit = scratch(pico_shape(), seed=3)
    tokens = vit.forward_features(batch(pico_shape()))
    assert torch.equal(first.backbone.forward_features(batch(pico_shape())), tokens)


def test_a_segmenter_is_what_timm_and_training_expect() -> None:
    model = segmenter(class_token=True)
    set_drop_path(model, 0.5)
    assert model.blocks[-1].drop_path1.drop_prob == 0.5
    assert model.no_weight_decay() >= {"backbone.pos_embed", "backbone.cls_token"}
    groups = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
    scale = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    assert scale[id(model.head.classes.weight)] == scale[id(model.head.conv.weight)] == 1.0
    assert scale[id(model.blocks[3].mlp.fc1.weight)] == scale[id(model.backbone.norm.weight)] == 0.5
    assert scale[id(model.blocks[0].mlp.fc1.weight)] == 0.5**4
    assert scale[id(model.backbone.pos_embed)] == 0.5**5
    model.reset_classifier(6)
    assert model.get_classifier().out_channels == model.num_classes == 6
    assert head_params(16, 6) == sum(value.numel() for value in model.head.parameters())
    for wrong in ({"num_classes": 0}, {"num_classes": 3, "global_pool": "avg"}):
        with pytest.raises(LearngeneError, match="a segmentation head has one class or more"):
            model.reset_classifier(**wrong)


def test_any_timm_vit_gets_a_head_and_other_models_are_refused(tmp_path: Path) -> None:
    named = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3)
    model, images = segment(named, 4), torch.randn(1, 3, 32, 32)
    save_descendant(model, tmp_path / "des")
    assert torch.equal(load_descendant(tmp_path / "des").eval()(images), model(images))
    for wrong, message in (
        (nn.Linear(2, 2), "Linear cannot have a segmentation head"),
        (model, "has a segmentation head already"),
    ):
        with pytest.raises(LearngeneError, match=message):
            segment(wrong, 3)
    for none in ("x", 3.0, None, ["a", "b"]):
        with pytest.raises(LearngeneError, match="num_classes must be how many classes a pixel has, for example"):
            segment(named, none)  # type: ignore[arg-type]
    with pytest.raises(LearngeneError, match="two classes or more"):
        segment(scratch(pico_shape()), 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, as timm resamples BEiT's tables
@pytest.mark.parametrize(
    "arch",
    ["vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224"],
)
def test_genes_of_other_architectures_give_segmenters(arch: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 8, "in_chans": 3}
    shape = ViTShape(**sizes, num_classes=3, arch=arch)
    model, images = segment(scratch(shape, seed=1), 4), torch.randn(2, 3, 8, 8)
    assert model(images).shape == (2, 4, 8, 8)
    assert not [name for name in model.state_dict() if "attn_pool" in name]
    save_descendant(model, tmp_path / "des")
    again = load_descendant(tmp_path / "des").eval()
    assert torch.equal(again(images), model(images))
    assert again.learngene["head"] == "segmentation"
    assert load_descendant(tmp_path / "des", img_size=16).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 16, 16)


def test_descendants_take_a_head_and_are_exported(tmp_path: Path) -> None:
    gene = pool()
    shape = gene.method.named_shape(gene.shape, "2+2")
    model = segment(gene.expand(shape), 4, seed=1, class_names=["a", "b", "c", "d"])
    assert segmenter_params(shape.replace(num_classes=4)) == sum(value.numel() for value in model.parameters())
    assert segmenter_macs(shape.replace(num_classes=4)) == multiply_adds(model, 3, 8)
    assert model.learngene["layers"]
    assert model.learngene["fresh"] == []
    assert model.learngene["class_names"] == ["a", "b", "c", "d"]
    save_descendant(model, tmp_path / "des")
    loaded = load_descendant(tmp_path / "des")
    assert torch.equal(loaded.eval()(batch(pico_shape())), model(batch(pico_shape())))
    assert export_onnx(loaded, tmp_path / "model.onnx") < 1e-4


# -- loss and score -----------------------------------------------------------------------------------


def test_the_loss_is_over_pixels_that_are_judged() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    masks[0, :2] = IGNORED
    judged = masks != IGNORED
    picked = logits.permute(0, 2, 3, 1)[judged].log_softmax(-1)
    expected = -picked[torch.arange(len(picked)), masks[judged].long()].mean()
    torch.testing.assert_close(segmentation_loss(logits, masks, IGNORED), expected)
    nothing = segmentation_loss(logits, torch.full_like(masks, IGNORED), IGNORED)
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert not logits.grad.any()


class _Fixed(nn.Module):
    """Says of every pixel what its first channel says."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(images[:, 0].long(), 4).permute(0, 3, 1, 2) * 5.0


def test_mean_iou_is_that_of_a_hand_computation() -> None:
    said = torch.tensor([[[0, 0, 1, 1]], [[2, 0, 0, 1]]])
    true = torch.tensor([[[0, 1, 1, 1]], [[2, 2, 9, 1]]], dtype=torch.uint8)
    loader = [(said[i : i + 1, None].float(), true[i : i + 1]) for i in range(2)]
    score = task_score(_Fixed(), loader, 9)
    assert isinstance(score, SegmentationScore)
    # Class 0: 1 of {0, 1, 5}; class 1: 3 of {1, 2, 3, 7}; class 2: 1 of {4, 5}; class 3 is nowhere; pixel 6 is ignored.
    assert score.ious == (pytest.approx(100 / 3), pytest.approx(75), pytest.approx(50), None)
    assert score.miou == score.main == pytest.approx((100 / 3 + 75 + 50) / 3)
    assert score.pixel_accuracy == pytest.approx(100 * 5 / 7)
    wrong, right = math.log(3 + math.exp(5)), math.log(3 + math.exp(5)) - 5
    assert score.loss == pytest.approx((5 * right + 2 * wrong) / 7)
    assert score.images == 2
    doubled = task_score(_Fixed(), loader, 9, reduce=lambda tensor, reduction: tensor * 2)
    assert isinstance(doubled, SegmentationScore)
    assert (doubled.ious, doubled.images) == (score.ious, 4)
    assert score_from(json.loads(json.dumps(vars(score)))) == score
    nothing = task_score(_Fixed(), [(said[:1, None].float(), torch.full_like(true[:1], 9))], 9)
    assert (nothing.main, nothing.loss) == (0, 0)


# -- runs ---------------------------------------------------------------------------------------------


def test_training_finds_the_classes(tmp_path: Path) -> None:
    masked = make_masked(tmp_path / "square", size=(8, 8))
    model = segment(scratch(pico_shape(embed_dim=32, patch_size=2), seed=0), 3)
    data = {"source": str(masked), "workers": 0}
    before = evaluate(model, data)
    result = finetune(
        model,
        data=data,
        out=tmp_path / "run",
        show=False,
        **{**LIGHT, "epochs": 25, "batch_size": 4, "augment": {"preset": "none"}},
    )
    assert isinstance(result.final, SegmentationScore)
    assert result.final.miou > max(60, before.main + 20)
    assert result.best >= result.final.main
    assert evaluate(load_descendant(tmp_path / "run/descendant"), data) == result.final
    record = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert record["best_miou"] == result.best
    assert record["final"]["ious"] == list(result.final.ious)
    assert set(record["history"][0]) >= {"miou", "pixel_accuracy", "ious", "val_loss"}
    assert model.learngene["finetuned"]["accuracy"]["miou"] == result.final.miou


def test_a_stopped_run_goes_on_to_the_same_bits(masked: Path, tmp_path: Path, stop_at: Callable[..., None]) -> None:
    train = {**LIGHT, "batch_size": 4, "drop_path": 0.1, "ema_decay": 0.9, "micro_batch": 2}
    first, second = (
        recipe("scratch", masked, tmp_path / name, shape=pico_shape().to_dict(), train=train) for name in "ab"
    )
    whole = run(first, show=False)
    stop_at(signal.SIGINT, epoch=1)
    with pytest.raises(InterruptedRun):
        run(second, show=False)
    parts = run(second, show=False)
    assert same(state(parts.model), state(whole.model))
    assert parts.result.final == whole.result.final
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert same(state(run(second, show=False).model), state(whole.model))


def test_the_data_decides_the_head(masked: Path, images: Path, tmp_path: Path) -> None:
    train = open_split(masked_data(masked), "train")
    gene, folder, done = tmp_path / "g.safetensors", tmp_path / "des", tmp_path / "seg"
    pico_gene().save(gene)
    save_descendant(pico_gene().expand(2), folder)
    save_descendant(segmenter(), done)
    for source, fields in ((gene, {"shape": {"depth": 2}}), (folder, {})):
        made = recipe(source, masked, tmp_path / "out", **fields)
        model = starting_model(made, train)
        assert isinstance(model, Segmenter)
        assert model.learngene["class_names"] == ["0", "1", "2"]
        assert same(state(model.backbone.blocks), state(load_descendant(folder).blocks))
        wide = recipe(source, masked, tmp_path / "out", **fields, data={"source": str(masked), "img_size": 16})
        assert starting_model(wide, train)(torch.randn(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert same(state(starting_model(recipe(done, masked, tmp_path / "out"), train)), state(segmenter()))
    more = open_split(masked_data(masked, mask_classes=5), "train")
    assert starting_model(recipe(done, masked, tmp_path / "out"), more).num_classes == 5
    resized = recipe(done, masked, tmp_path / "out", data={"source": str(masked), "img_size": 16})
    assert starting_model(resized, train)(torch.randn(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    named = recipe("vit_tiny_patch16_224", masked, tmp_path / "out", pretrained=False,
                   model_args={"img_size": 32, "depth": 1})  # fmt: skip
    assert isinstance(starting_model(named, train), Segmenter)
    with pytest.raises(LearngeneError, match=r"has a segmentation head, but .* has no masks"):
        starting_model(recipe(done, images, tmp_path / "out"), open_split(masked_data(images), "train"))


def test_other_tasks_are_refused(masked: Path, images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match=r"has a segmentation head, but .* has no masks"):
        evaluate(segmenter(), str(images))
    with pytest.raises(LearngeneError, match=r"is a classifier, but .* has masks; .*learngene expand --segment"):
        evaluate(scratch(pico_shape()), str(masked))
    with pytest.raises(LearngeneError, match=r"is a classifier, but .*: in Python with learngene.segment\(model, 3\),"):
        finetune(scratch(pico_shape()), data=str(masked), show=False, **LIGHT)
    with pytest.raises(LearngeneError, match="the model has 4 classes but"):
        evaluate(segmenter(4), {"source": str(masked), "mask_classes": 3})
    save_descendant(segmenter(), tmp_path / "seg")
    with pytest.raises(LearngeneError, match="has a segmentation head; distillation needs a classifier"):
        Ancestry(tmp_path / "seg").refuse_mismatch(pico_shape(), 3, masked_data(images))


def test_condensing_and_ranking_need_classes_of_images(
    masked: Path, ancestry_folder: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    from pico import condense_fields

    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(condense_fields(ancestry_folder, masked, tmp_path / "out")))
    assert "has masks, but condensing needs images with a class each" in refused("condense", path)
    arguments = ("--method", "weight-subcloning", "--out", tmp_path / "g.safetensors")
    assert "ranking neurons needs" in refused("extract", ancestry_folder, *arguments, "--data", masked)


def test_new_entries_at_their_defaults_change_no_key_and_no_run(masked: Path, tmp_path: Path) -> None:
    assert not {"mask_classes", "ignore_index"} & hashed_content(masked_data(masked)).keys()
    assert hashed_content(masked_data(masked, ignore_index=11))["ignore_index"] == 11
    made = recipe("scratch", masked, tmp_path / "run", shape=pico_shape().to_dict())
    assert later_defaults(made) >= {"data.mask_classes", "data.ignore_index"}
    run(made, show=False)
    text = (tmp_path / "run/recipe.yaml").read_text()
    old = "".join(line for line in text.splitlines(True) if "ignore_index" not in line and "mask_classes" not in line)
    assert old != text
    (tmp_path / "run/recipe.yaml").write_text(old)  # as a version wrote it that knew of no masks
    run(made, show=False)
    changed = made.model_copy(update={"data": made.data.model_copy(update={"ignore_index": 7})})
    with pytest.raises(LearngeneError, match=r"data.ignore_index"):
        run(changed, show=False)


# -- commands -----------------------------------------------------------------------------------------


def test_the_commands_from_gene_to_scores(masked: Path, tmp_path: Path, cli: CLI, refused: Callable[..., str]) -> None:
    gene, des = tmp_path / "g.safetensors", tmp_path / "des"
    pico_gene().save(gene)
    assert "--num-classes" in refused("expand", gene, "--segment", "--out", des)
    result = cli("expand", gene, "--depth", "2", "--segment", "--num-classes", "3", "--out", des)
    assert result.code == 0, result.err
    assert "3 classes for every pixel" in result.out
    made = tmp_path / "r.yaml"
    made.write_text(json.dumps(finetune_fields(des, masked, tmp_path / "run", train=LIGHT)))
    result = cli("check", made)
    assert result.code == 0, result.err
    assert "12 training and 4 validation images, 3 classes of pixels" in result.out
    result = cli("check", made, "train.augment.mixup=0.8")
    assert (result.code, "preset=light" in result.err) == (2, True)
    result = cli("finetune", made, "data.mask_classes=[sky,road,tree]")
    assert result.code == 0, result.err
    assert "mean IoU" in result.out
    tuned = tmp_path / "run/descendant"
    result = cli("eval", tuned, "--data", masked)
    assert result.code == 0, result.err
    assert "mean IoU" in result.out.splitlines()[0]
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["sky", "road", "tree"]
    other = ("eval", tuned, "--data", masked, "--mask-classes", "a,b,c")
    assert "'a' is none of sky, road, tree; if they are the same in the same order" in refused(*other)
    content = json.loads(cli(*other, "data.match_classes=place", "--json").out)
    assert content["classes"] == ["sky", "road", "tree"]
    assert (content["images"], set(content)) == (4, {"miou", "pixel_accuracy", "ious", "loss", "images", "classes"})
    assert "value 255, but there are 3 classes" in refused("eval", tuned, "--data", masked, "--ignore-index", "2")
    assert cli("picture", tuned, "--out", tmp_path / "layers.png").code == 0


def test_a_comparison_tunes_on_masks_and_condenses_on_classes(masked: Path, images: Path, tmp_path: Path) -> None:
    tasks = {"pixels": masked_data(masked, mean=None, std=None).model_dump(mode="json", exclude_none=True)}
    fields = compare_fields(tmp_path, images, tasks=tasks, tune=LIGHT)
    shapes = {"shapes": {"d2": {"depth": 2}}, "run": {"seeds": [0], "shapes": ["d2"]}}
    found = compare(recipe_of(merge(fields, shapes)), say=lambda text: None)
    assert not found.failed
    assert not found.missing
    rows = {(row.contender, row.task, row.budget): row for row in found.rows}
    assert len(rows) == 8
    shape = pico_shape(depth=2)
    pixels, home = rows["tleg", "pixels", "one"], rows["tleg", "home", "one"]
    assert (pixels.params, pixels.macs) == (segmenter_params(shape), segmenter_macs(shape))
    assert (home.params, home.macs) == (shape.params(), shape.macs())
    assert (pixels.metric, home.metric) == ("mean IoU", "top-1")
    assert (pixels.untuned_top5, pixels.last_top5, pixels.times_chance, pixels.crop_pct) == (0, 0, 0, 1)
    assert pixels.tune_macs == 8 * 3 * segmenter_macs(shape)
    stored = [content for content in results(tmp_path / "out").values() if content["task"] == "pixels"]
    assert {content["last"]["miou"] for content in stored} == {
        row.last_top1 for row in found.rows if row.task == "pixels"
    }
    assert all(len(content["last"]["ious"]) == 3 for content in stored)
    assert {content["data"]["source"][0] for content in stored} == {"masked"}
    assert "| pixels (mean IoU) | one | d2 | tleg |" in as_markdown(found.rows)
    (line,) = [line for line in as_csv(found.rows).splitlines() if ",tleg,tleg,d2,pixels,one," in line]
    assert line.split(",")[3:5] == ["", ""]
    again = compare(recipe_of(merge(fields, shapes)), say=lambda text: pytest.fail(text))
    assert again.rows == found.rows


def test_a_comparison_says_what_masks_cannot_do(masked: Path, images: Path, tmp_path: Path) -> None:
    home = recipe_of(compare_fields(tmp_path, masked))
    with pytest.raises(LearngeneError, match=r"task home: .* has masks, but the home task.* needs images with a class"):
        prepare(home)
    tasks = {"pixels": {"source": str(masked), "workers": 0}}
    mixed = compare_fields(tmp_path, images, tasks=tasks, tune={"augment": {"preset": "light", "mixup": 0.8}})
    with pytest.raises(LearngeneError, match=r"tleg on pixels: .*masks cannot follow train.augment.mixup=0.8"):
        prepare(recipe_of(mixed))
    sizes = {"home": {"images": 24, "classes": 3}, "pixels": {"images": 12, "classes": 3}}
    declared = recipe_of(compare_fields(tmp_path, images, tasks=tasks, tune=LIGHT, sizes=sizes))
    with pytest.raises(LearngeneError, match=r"has masks, but sizes.pixels declares masks: false"):
        prepare(declared)
