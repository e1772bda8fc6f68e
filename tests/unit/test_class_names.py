"""Classes go by their names: whatever the order of folders, of masks' values or of a model's outputs."""

import json
import shutil
import tarfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from comparisons import compare_fields
from learngene import Ancestry, Learngene, evaluate, finetune, load_descendant, save_descendant, scratch, segment
from learngene.data.class_match import numbered
from learngene.data.open_split import open_split
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError, LearngeneError
from learngene.vits.class_names import class_names, places
from pico import CLI, FAST, finetune_fields, pico_gene, pico_shape
from runs import condensed

VAL = {"a": 1, "b": 2, "c": 5}
"""Images for validation by class: who always answers b is right on 2 of 8."""

ORDERS = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]]
STILL: dict[str, Any] = {**FAST, "epochs": 1, "optimizer": "sgd", "lr": 1e-12, "show": False}
STILL["schedule"] = {"warmup_epochs": 0, "min_lr": 1e-12}
"""A training that moves nothing."""

CAFE = "caf\u00e9"


def pictures(root: Path, val: Mapping[str, int] = VAL, train: Sequence[str] | None = None) -> Path:
    for split, counts in (("train", dict.fromkeys(train or val, 8)), ("val", val)):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 9, 9)).save(root / split / name / f"{number}.png")
    return root


def constant(answer: str, names: list[str]) -> Any:
    """A model that always answers with the class of a name."""
    model = scratch(pico_shape(depth=1, num_classes=len(names)), class_names=names)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([float(name == answer) for name in names]))
    return model


@pytest.fixture(scope="module")
def abc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("sets") / "abc")


# -- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "known", "found"),
    [
        (["b", "a"], ["a", "b", "c"], [1, 0]),
        ([CAFE], ["tea", unicodedata.normalize("NFD", CAFE)], [1]),
        (["a", "x"], ["a", "b"], None),
        (["A"], ["a", "b"], None),
        (["a"], ["a", "a"], None),
        (["a", "a"], ["a", "b"], None),
        (["a", "a"], ["a", "a"], [0, 1]),
        ([], ["a"], []),
    ],
)
def test_a_name_stands_where_it_is_known_in_either_spelling(
    names: list[str], known: list[str], found: list[int] | None
) -> None:
    assert places(names, known) == found


@pytest.mark.parametrize(
    ("record", "cfg", "names"),
    [
        ({"class_names": ["x", "y"]}, {"label_names": ["a", "b"]}, ["x", "y"]),
        ({}, {"label_names": ["a", "b"]}, ["a", "b"]),
        ({}, {"label_names": {"1": "b", "0": "a"}}, ["a", "b"]),
        ({}, {"label_names": {"n02": "b", "n01": "a"}}, None),
        ({}, {"label_names": ["a", "b", "c"]}, None),  # of a head that was replaced
        ({"class_names": None}, {}, None),
        ({}, None, None),
    ],
)
def test_a_model_says_its_names_in_its_record_or_in_what_timm_read(
    record: dict[str, Any], cfg: dict[str, Any] | None, names: list[str] | None
) -> None:
    assert class_names(SimpleNamespace(learngene=record, pretrained_cfg=cfg, num_classes=2)) == names


# -- judging --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_a_constant_answer_scores_its_share_whatever_the_order(order: list[str], abc: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "abc.tar", "w") as archive:
        archive.add(abc / "val", "val")
    save_descendant(constant("b", order), tmp_path / "timm")
    (tmp_path / "timm" / "learngene.json").unlink()  # so that timm's own label_names are left
    for model in (constant("b", order), load_descendant(tmp_path / "timm")):
        for source in (abc, tmp_path / "abc.tar"):
            assert evaluate(model, str(source)).top1 == 25.0


@pytest.mark.parametrize(
    ("val", "names", "match", "top1"),
    [
        ({"a": 1, "c": 3}, ["a", "b", "c"], "name", 75.0),
        ({"a": 1, "c": 3}, ["c", "b", "a"], "name", 75.0),
        ({"a": 1, "c": 3}, ["a", "c", "b"], "place", 75.0),
        ({"a": 1, "c": 3}, ["a", "b", "c"], "place", 0.0),
        ({"c": 3}, ["a", "b", "c"], "name", 100.0),
        ({"x": 1, "y": 2, "z": 1}, ["a", "c", "b"], "place", 50.0),
    ],
)
def test_a_split_may_lack_classes_and_places_decide_where_that_is_said(
    val: dict[str, int], names: list[str], match: str, top1: float, tmp_path: Path
) -> None:
    data = {"source": str(pictures(tmp_path / "set", val)), "workers": 0, "match_classes": match}
    assert evaluate(constant("c", names), data).top1 == top1


@pytest.mark.parametrize(
    ("val", "match", "message"),
    [
        ({"a": 1, "ant": 1}, "name",
         r"other classes than data .*: 'ant' is none of a, b, c; if .* data.match_classes="),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "name", r"'d' is none of a, b, c"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "place", r"has 3 classes but .* has 4"),
    ],
)  # fmt: skip
def test_a_model_is_not_judged_on_classes_that_it_does_not_know(
    val: dict[str, int], match: str, message: str, tmp_path: Path
) -> None:
    data = {"source": str(pictures(tmp_path / "set", val)), "match_classes": match}
    with pytest.raises(DataError, match=message):
        evaluate(constant("b", ["a", "b", "c"]), data)


def test_a_model_without_names_is_judged_by_number(abc: Path, tmp_path: Path) -> None:
    model = constant("b", ["a", "b", "c"])
    model.learngene["class_names"] = None
    assert evaluate(model, str(abc)).top1 == 25.0
    with pytest.raises(DataError, match=r"the model has 3 classes but .* has 2"):
        evaluate(model, str(pictures(tmp_path / "two", {"a": 1, "b": 1})))


def test_commands_judge_by_name_and_say_how_not_to(abc: Path, tmp_path: Path, cli: CLI, refused: Any) -> None:
    save_descendant(constant("b", ["c", "b", "a"]), tmp_path / "des")
    assert "top-1 25.00 %" in cli("eval", tmp_path / "des", "--data", abc).out
    other = pictures(tmp_path / "other", {"x": 1, "y": 3, "z": 4})
    assert "'x' is none of c, b, a; if they are the same in the same" in refused(
        "eval", tmp_path / "des", "--data", other
    )
    assert "top-1 37.50 %" in cli("eval", tmp_path / "des", "--data", other, "--match-classes", "place").out


# -- splits ---------------------------------------------------------------------------------------------


def test_a_validation_split_may_lack_classes_but_not_have_more(tmp_path: Path) -> None:
    fewer = pictures(tmp_path / "fewer", {"a": 1, "c": 2}, train="abc")
    val = open_splits(DataSpec(source=str(fewer))).val
    assert (val.class_names, list(val.labels)) == (["a", "b", "c"], [0, 2, 2])
    assert val.counted() == "3 images (1 a, 0 b, 2 c)"
    more = pictures(tmp_path / "more", {"a": 1, "d": 2}, train="abc")
    with pytest.raises(DataError, match=r"a class is in the validation images only: 'd' is none of a, b, c$"):
        open_splits(DataSpec(source=str(more)))
    one = pictures(tmp_path / "one", {"a": 1}, train="a")
    with pytest.raises(DataError, match=r"the split 'train' has one class \(a\); a classifier needs two"):
        open_splits(DataSpec(source=str(one)))


@pytest.mark.parametrize("packed", [False, True])
def test_an_accent_is_one_letter_however_it_is_stored(packed: bool, tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", {CAFE: 2, "tea": 1})
    (root / "val" / CAFE).rename(root / "val" / unicodedata.normalize("NFD", CAFE))
    shutil.copytree(root / "train" / CAFE, root / "train" / unicodedata.normalize("NFD", CAFE))
    if packed:
        with tarfile.open(root := tmp_path / "set.tar", "w") as archive:
            archive.add(tmp_path / "set", ".")
    train, val = open_splits(DataSpec(source=str(root)))
    assert train.class_names == val.class_names == [CAFE, "tea"]
    assert (list(train.labels), list(val.labels)) == ([0] * 16 + [1] * 8, [0, 0, 1])
    apart = unicodedata.normalize("NFD", CAFE)
    assert evaluate(constant(apart, ["tea", apart]), str(root)).top1 == pytest.approx(200 / 3)


# -- training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_finetuning_keeps_a_head_of_the_same_classes(order: list[str], abc: Path) -> None:
    model = constant("b", order)
    assert finetune(model, data=str(abc), **STILL).final.top1 == 25.0
    assert class_names(model) == order


@pytest.mark.filterwarnings("always:the model's classes")
def test_a_head_of_other_classes_starts_afresh_and_that_is_said(tmp_path: Path, cli: CLI) -> None:
    save_descendant(constant("b", ["a", "b", "c"]), tmp_path / "des")
    data = pictures(tmp_path / "set", {"a": 1, "b": 1, "ant": 2})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(finetune_fields(tmp_path / "des", data, tmp_path / "run", train=STILL_FIELDS)))
    said = f"the model's classes (a, b, c) are not those of data {data} (a, ant, b), so its head starts afresh"
    for command in ("check", "finetune"):
        result = cli(command, recipe)
        assert (result.code, result.err.count(said)) == (0, 1), result
    tuned = load_descendant(tmp_path / "run" / "descendant")
    assert class_names(tuned) == ["a", "ant", "b"]
    assert tuned.head.weight.abs().sum() > 0
    model = load_descendant(tmp_path / "des")
    with pytest.warns(UserWarning, match="so its head starts afresh"):
        finetune(model, data=str(data), **STILL)
    assert class_names(model) == ["a", "ant", "b"]
    kept = load_descendant(tmp_path / "des")
    finetune(kept, data={"source": str(data), "match_classes": "place"}, **STILL)
    assert kept.head.weight.abs().sum() < 1e-6
    assert class_names(kept) == ["a", "ant", "b"]


STILL_FIELDS = {key: value for key, value in STILL.items() if key != "show"}


# -- genes ----------------------------------------------------------------------------------------------


def constant_gene(answer: str, names: list[str]) -> Learngene:
    gene = pico_gene(num_classes=len(names))
    with torch.no_grad():
        gene.tensors()["head.weight"].zero_()
        gene.tensors()["head.bias"].copy_(torch.tensor([float(name == answer) for name in names]))
    gene.metadata = {"classes": names}
    return gene


@pytest.mark.parametrize("order", ORDERS)
def test_a_genes_head_is_carried_in_the_order_of_the_wanted_classes(
    order: list[str], abc: Path, tmp_path: Path, cli: CLI
) -> None:
    gene = constant_gene("b", order)
    assert evaluate(gene.expand(3), str(abc)).top1 == 25.0
    model = gene.expand(3, class_names=["a", "b", "c"])
    assert model.head.bias.tolist() == [0.0, 1.0, 0.0]
    gene.save(tmp_path / "gene.safetensors")
    recipe = tmp_path / "recipe.yaml"
    fields = finetune_fields(tmp_path / "gene.safetensors", abc, tmp_path / "run", train=STILL_FIELDS)
    recipe.write_text(yaml.safe_dump({**fields, "shape": {"depth": 3}}))
    assert "top-1 25.00 % untuned, 25.00 % fine-tuned" in cli("finetune", recipe).out


def test_a_genes_head_of_other_classes_is_dropped_and_a_wrong_number_refused() -> None:
    gene = constant_gene("b", ["a", "b", "c"])
    with pytest.warns(
        UserWarning, match=r"gene's classes \(a, b, c\) are not the wanted ones \(a, b, x\), so the head"
    ):
        model = gene.expand(3, class_names=["a", "b", "x"])
    assert {"head.weight", "head.bias"} <= set(model.learngene["fresh"])
    with pytest.raises(LearngeneError, match=r"class_names has 2 names, but the shape has 3 classes"):
        gene.expand(3, class_names=["a", "b"])


def test_condensing_numbers_the_images_as_the_teacher_does(abc: Path, tmp_path: Path) -> None:
    save_descendant(constant("b", ["c", "a", "b"]), tmp_path / "teacher")
    ancestry, train = Ancestry(tmp_path / "teacher"), {**FAST, "epochs": 1}
    assert condensed(None, abc, ancestry, train=train).metadata["classes"] == ["c", "a", "b"]
    other = pictures(tmp_path / "other", {"a": 1, "b": 1, "x": 1})
    with pytest.raises(LearngeneError, match=r"trained on other classes than the data has \(c, a, b against a, b, x\)"):
        condensed(None, other, ancestry, train=train)
    data = {"source": str(other), "workers": 0, "match_classes": "place"}
    assert condensed(None, other, ancestry, train=train, data=data).metadata["classes"] == ["a", "b", "x"]


# -- masks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks with a row of 0, one of 1 and two of 2, of which the last is not judged."""
    root = tmp_path_factory.mktemp("masked")
    mask = np.repeat(np.array([0, 1, 2, 255], np.uint8), 16).reshape(8, 8)
    for split in ("train", "val"):
        for number in range(8):
            for kind, pixels in (("images", np.stack([mask] * 3, -1)), ("masks", mask)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def constant_segmenter(answer: str, names: list[str]) -> Any:
    model = segment(scratch(pico_shape(depth=1)), len(names), class_names=names)
    with torch.no_grad():
        model.head.classes.weight.zero_()
        model.head.classes.bias.copy_(torch.tensor([float(name == answer) for name in names]))
    return model


def mask_data(root: Path, names: list[str] | int | None) -> DataSpec:
    return DataSpec(source=str(root), mask_classes=names, workers=0)


@pytest.mark.parametrize("order", [["sky", "road", "tree"], ["tree", "sky", "road"]])
def test_pixels_are_judged_by_name(order: list[str], masked: Path) -> None:
    data = mask_data(masked, ["sky", "road", "tree"])
    score = evaluate(constant_segmenter("road", order), data)
    # A third of the judged pixels is road, which is found; sky and tree are not.
    assert score.pixel_accuracy == pytest.approx(100 / 3)
    assert dict(zip(order, score.ious, strict=True)) == pytest.approx({"sky": 0.0, "road": 100 / 3, "tree": 0.0})
    model = constant_segmenter("road", order)
    assert finetune(model, data=data.model_dump(), **STILL).final.pixel_accuracy == pytest.approx(100 / 3)
    assert class_names(model) == order
    with pytest.raises(DataError, match=r"'car' is none of"):
        evaluate(model, mask_data(masked, ["sky", "road", "car"]))


def test_numbers_of_masks_are_no_names(masked: Path) -> None:
    named, unnamed = constant_segmenter("road", ["sky", "road", "tree"]), constant_segmenter("1", ["0", "1", "2"])
    assert finetune(named, data=mask_data(masked, None).model_dump(), **STILL).final.pixel_accuracy == pytest.approx(
        100 / 3
    )
    assert class_names(named) == ["sky", "road", "tree"]
    data = mask_data(masked, ["sky", "road", "tree"])
    assert finetune(unnamed, data=data.model_dump(), **STILL).final.pixel_accuracy == pytest.approx(100 / 3)
    assert class_names(unnamed) == ["sky", "road", "tree"]


def test_the_shares_of_pixels_follow_their_classes(masked: Path) -> None:
    data = mask_data(masked, ["sky", "road", "tree"])
    images = open_split(data, "train")
    other = numbered(images, constant_segmenter("road", ["car", "tree", "sky", "road"]), data)
    assert other.class_names == ["car", "tree", "sky", "road"]
    assert other.counted().endswith("; pixels: tree 25.0 %, sky 25.0 %, road 25.0 %, car 0.0 %, not judged 25.0 %")
    assert [int(value) for value in other.mask(0, (8, 8))[::2, 0]] == [2, 3, 1, 255]
    again = numbered(other, constant_segmenter("road", ["road", "tree", "car", "sky"]), data)
    assert [int(value) for value in again.mask(0, (8, 8))[::2, 0]] == [3, 0, 1, 255]
    values = {"0": None, "1": "road", "2": "tree", "255": "none"}
    zero = open_split(DataSpec(source=str(masked), mask_values=values), "train")
    assert zero.class_names == ["road", "tree", "none"]
    turned = numbered(zero, constant_segmenter("road", ["tree", "road", "none"]), data)
    assert turned.counted().endswith("tree 25.0 %, road 25.0 %, none 25.0 %, not judged 25.0 %")
    assert [int(value) for value in turned.mask(0, (8, 8))[::2, 0]] == [255, 1, 0, 2]


def test_a_classifiers_names_are_none_of_pixels() -> None:
    model = scratch(pico_shape(depth=1))
    model.pretrained_cfg["label_names"] = ["a", "b", "c"]
    assert class_names(segment(model, 3)) is None


def test_a_comparison_maps_a_genes_head_to_the_order_of_the_home_task(abc: Path, tmp_path: Path, cli: CLI) -> None:
    save_descendant(constant("b", ["c", "a", "b"]), tmp_path / "teacher")
    fields = compare_fields(tmp_path, abc)
    fields |= {"ancestries": {"vit": {"source": str(tmp_path / "teacher")}}, "shapes": {"d1": {"depth": 1}}}
    fields |= {
        "contenders": {"cut": {"method": "weight-selection", "ancestry": "vit"}},
        "budgets": {"0": {"epochs": 0}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    result = cli("compare", tmp_path / "recipe.yaml")
    assert result.code == 0, result
    (cell,) = (tmp_path / "out" / "cells").glob("*.json")
    assert json.loads(cell.read_text())["last"]["top1"] == 25.0
