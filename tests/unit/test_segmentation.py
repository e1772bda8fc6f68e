"""Segmentation: images with masks in, and both into batches."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from learngene.data.batches import TrainBatches, eval_loader
from learngene.data.open_split import open_split
from learngene.data.splits import open_splits
from learngene.making.finetune import data_section
from learngene.recipe.sections import Augment, DataSpec, Train
from learngene.system.errors import DataError, LearngeneError
from masked import IGNORED, LAYOUTS, LIGHT, SHADES, make_masked, masked_data, pair


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    return make_masked(tmp_path / "masked")


# -- data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_images_with_their_masks(layout: str, tmp_path: Path) -> None:
    train, val = open_splits(masked_data(LAYOUTS[layout](tmp_path / "set")))
    assert (len(train), len(val)) == (12, 4)
    assert train.segmentation
    assert train.ignore_index == IGNORED
    assert train.class_names == val.class_names == ["0", "1", "2"]
    assert list(train.labels) == [0] * 12
    for images, split in ((train, "train"), (val, "val")):
        for index in range(len(images)):
            expected = pair(index, split)
            found = images.image(index)
            assert np.array_equal(images.mask(index, found.size), expected[1])
            assert abs(np.asarray(found).astype(int) - expected[0]).mean() < 12  # VOC's are JPEGs
    some = train.picked([5, 2])
    assert some.segmentation
    assert np.array_equal(some.mask(0, (12, 8)), pair(5, "train")[1])
    assert train.fingerprint() != some.fingerprint()


def test_several_sources_of_one_kind_are_one_set(tmp_path: Path) -> None:
    sources = [str(make_masked(tmp_path / name, train=count)) for name, count in (("a", 12), ("b", 3))]
    assert len(open_split(DataSpec(source=sources), "train")) == 15


def test_classes_are_the_sections_or_what_the_training_masks_have(masked: Path) -> None:
    names = ["sky", "road", "tree", "car"]
    assert open_split(masked_data(masked, mask_classes=names), "val").class_names == names
    assert open_split(masked_data(masked, mask_classes=5), "val").class_names == ["0", "1", "2", "3", "4"]
    assert open_split(masked_data(masked), "val").class_names == ["0", "1", "2"]
    assert open_split(masked_data(masked), "val", names).class_names == names
    assert open_split(masked_data(masked, ignore_index=2, mask_classes=256), "val").ignore_index == 2
    shutil.copytree(masked / "images" / "val", masked / "images" / "extra")
    shutil.copytree(masked / "masks" / "val", masked / "masks" / "extra")
    assert len(open_split(masked_data(masked, val_split="extra"), "val")) == 4


def grey(path: Path, values: object) -> None:
    Image.fromarray(np.array(values, np.uint8)).save(path)


def one_shade(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        grey(path, np.zeros((8, 12)))


def unlabelled(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        grey(path, np.full((8, 12), IGNORED))


def unjudged(root: Path, split: str) -> None:
    for path in (root / "masks" / split).glob("*.png"):
        grey(path, np.full((8, 12), IGNORED))


def gap(root: Path) -> None:
    grey(root / "masks/train/02.png", np.full((8, 12), 4))


def as_jpeg(root: Path) -> None:
    for path in (root / "masks" / "train").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "image without mask": (lambda root: (root / "masks/train/03.png").unlink(), {},
                           r"image images/train/03.png has no mask masks/train/03.png"),
    "mask without image": (lambda root: (root / "images/val/01.png").unlink(), {},
                           r"mask masks/val/01.png has no image images/val/01.jpg"),
    "other size": (lambda root: grey(root / "masks/train/02.png", np.zeros((12, 8))), {},
                   r"mask masks/train/02.png has 8 x 12 pixels, but its image has 12 x 8"),
    "value beyond": (
        lambda root: grey(root / "masks/val/02.png", np.full((8, 12), 7)),
        {},
        r"mask masks/val/02.png has value 7, but there are 3 classes \(0 to 2\); set data.mask_classes, or data.ign",
    ),
    "undecodable mask": (lambda root: (root / "masks/train/05.png").write_bytes(b"\x89PNG\r\n\x1a\n no"), {},
                         r"mask masks/train/05.png cannot be decoded"),
    "undecodable image": (lambda root: (root / "images/train/05.png").write_bytes(b"no"), {},
                          r"1 of 12 images cannot be decoded, the first is images/train/05.png"),
    "colours": (
        lambda root: Image.new("RGB", (12, 8), (9, 0, 0)).save(root / "masks/val/00.png"),
        {"mask_classes": 3},
        r"mask masks/val/00.png has colour 9 0 0; say what they mean with data.mask_values=\{9 0 0: NAME\}, null for",
    ),
    "jpeg masks": (as_jpeg, {}, r"mask masks/train/\d\d.jpg is a JPEG, which changes values; a mask is a PNG or ano"),
    "two of a name": (lambda root: shutil.copy(root / "images/train/00.png", root / "images/train/00.jpg"), {},
                      r"have the same name"),
    "no such split": (lambda root: None, {"val_split": "test"}, r"no split 'test'; found: train, val"),
    "no training masks": (lambda root: [shutil.rmtree(root / kind / "train") for kind in ("images", "masks")], {},
                          r"no split 'train'; found: val"),
    "training masks alone missing": (lambda root: shutil.rmtree(root / "masks/train"), {},
                                     r"image images/train/00.png has no mask masks/train/00.png$"),
    "one class": (one_shade, {}, r"all pixels .* have value 0, or the ignored 255; a segmenter needs two classes"),
    "nothing labelled": (unlabelled, {}, r"all pixels of the training masks have the ignored value 255"),
    "nothing labelled to learn": (
        lambda root: unjudged(root, "train"),
        {"mask_classes": 3},
        r"all pixels of the masks of split 'train' have the ignored value 255; set data.ignore_index to the value",
    ),
    "nothing labelled to judge": (
        lambda root: unjudged(root, "val"),
        {},
        r"all pixels of the masks of split 'val' have the ignored value 255; set data.ignore_index to the value",
    ),
    "another ignored value": (
        lambda root: None,
        {"ignore_index": 3},
        r"have value 255 but not 4, so .*; set data.ignore_index=255 if that means unlabelled \(it is 3\), or data.",
    ),
    "a gap": (gap, {}, r"the training masks have value 4 but not 3, so the number of classes cannot be told; set"),
    "a crop": (lambda root: None, {"crop_pct": 0.9}, r"masks are judged on the whole image; leave data.crop_pct out"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_masks_that_cannot_be_used_are_refused(
    spoil: Callable[[Path], object], fields: dict[str, Any], message: str, masked: Path
) -> None:
    spoil(masked)
    with pytest.raises(DataError, match=message) as error:
        open_splits(masked_data(masked, **fields))
    assert "\n" not in str(error.value)


def test_voc_lists_that_name_what_is_not_there_are_refused(tmp_path: Path) -> None:
    root = LAYOUTS["voc"](tmp_path / "voc")
    (root / "VOCdevkit/VOC2012/SegmentationClass/train_03.png").unlink()
    with pytest.raises(DataError, match=r"train.txt names train_03, but there is no mask SegmentationClass/train_03"):
        open_splits(masked_data(root))
    with pytest.raises(DataError, match=r"no split 'test'; found: train, val"):
        open_split(masked_data(root, val_split="test", mask_classes=3), "val")


def test_sources_of_different_kinds_and_needless_classes_are_refused(
    masked: Path, images: Path, tmp_path: Path
) -> None:
    for other, kind in ((images, "class folders"), (LAYOUTS["voc"](tmp_path / "v"), "VOC folders")):
        with pytest.raises(DataError, match=f"has image and mask folders and .* has {kind}; the sources of one set"):
            open_splits(DataSpec(source=[str(masked), str(other)]))
    with pytest.raises(DataError, match=r"has a class per image and no masks; leave data.mask_classes out"):
        open_splits(masked_data(images, mask_classes=3))
    for wrong in (1, 257, ["a"], ["a", "b", "a"]):
        with pytest.raises(LearngeneError, match="mask_classes"):
            data_section({"source": str(masked), "mask_classes": wrong})


def test_training_masks_are_needed_to_count_classes_only(masked: Path) -> None:
    for kind in ("images", "masks"):
        shutil.rmtree(masked / kind / "train")
    with pytest.raises(DataError, match=r"found: val; make .*; without training masks, say how many classes"):
        open_split(masked_data(masked), "val")
    with pytest.raises(DataError, match=r"no split 'train'; found: val; make"):
        open_split(masked_data(masked), "train")
    assert len(open_split(masked_data(masked, mask_classes=3), "val")) == 4


def test_values_that_do_not_occur_are_no_fault_where_they_are_ignored_or_the_classes_are_said(masked: Path) -> None:
    gap(masked)
    assert len(open_split(masked_data(masked, mask_classes=5), "train").class_names) == 5
    assert len(open_split(masked_data(masked, ignore_index=3, mask_classes=256), "train").class_names) == 256
    for path in (masked / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            values = np.array(mask)
        grey(path, np.where(values == IGNORED, 0, values + 1))
    assert open_split(masked_data(masked, ignore_index=4), "train").class_names == ["0", "1", "2", "3", "4", "5"]


def test_broken_pairs_can_be_left_out(masked: Path) -> None:
    (masked / "masks/train/05.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    train, _ = open_splits(masked_data(masked, skip_corrupt=True))
    assert train.corrupt == ["images/train/05.png"]
    assert np.array_equal(train.mask(5, (12, 8)), pair(6, "train")[1])


# -- batches ------------------------------------------------------------------------------------------


def batches(root: Path, **train: Any) -> TrainBatches:
    section = Train(**{**LIGHT, "augment": {"preset": "light", "scale": (0.3, 1.0), "color_jitter": 0.0}, **train})
    return TrainBatches(
        open_split(masked_data(root), "train"), masked_data(root, interpolation="nearest"), section, img_size=8
    )


def shown(images: Tensor) -> Tensor:
    """The classes that an image's shades say."""
    distances = (images[:, 0, ..., None] * 255 - torch.tensor(SHADES)).abs()
    return distances.argmin(-1)


def test_an_image_and_its_mask_are_cropped_and_flipped_together(masked: Path) -> None:
    made, seen = batches(masked), set()
    for epoch in range(4):
        for ((images, masks),) in made.epoch(epoch):
            assert (images.dtype, masks.dtype, masks.shape) == (torch.float32, torch.uint8, (8, 8, 8))
            judged = masks != IGNORED
            assert torch.equal(shown(images)[judged], masks.long()[judged])
            seen.update(mask.numpy().tobytes() for mask in masks)
            mixed = made.mix(images, masks, epoch, 0)
            assert mixed[0] is images
            assert mixed[1] is masks
    assert len(seen) > 24  # other views in every epoch


def test_resized_masks_stay_on_their_images(tmp_path: Path) -> None:
    root = make_masked(tmp_path / "large", size=(60, 40))
    val = open_split(masked_data(root), "val")
    for images, masks in eval_loader(val, masked_data(root, interpolation="nearest"), img_size=8):
        judged = masks != IGNORED
        assert torch.equal(shown(images)[judged], masks.long()[judged])
        assert judged.any()


def test_batches_are_the_same_from_any_step_and_in_parts(masked: Path) -> None:
    whole = [parts[0] for parts in batches(masked, batch_size=4).epoch(1)]
    later = [parts[0] for parts in batches(masked, batch_size=4).epoch(1, first_step=2)]
    assert torch.equal(later[0][0], whole[2][0])
    assert torch.equal(later[0][1], whole[2][1])
    (parts,) = list(batches(masked, batch_size=12, micro_batch=3).epoch(1))
    assert [len(masks) for _, masks in parts] == [3] * 4


def test_colours_change_the_image_alone(masked: Path) -> None:
    plain = batches(masked, augment={"preset": "none"})
    jittered = batches(masked, augment={"preset": "none", "color_jitter": 0.4})
    for ((before, masks),), ((after, same_masks),) in zip(plain.epoch(0), jittered.epoch(0), strict=True):
        assert torch.equal(masks, same_masks)
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "erasing", "rand_augment", "smoothing"])
def test_what_masks_cannot_follow_is_refused(name: str, masked: Path) -> None:
    on = {name: getattr(Augment(), name)}
    with pytest.raises(DataError, match=rf"masks cannot follow train.augment.{name}=.*train.augment.preset=light"):
        batches(masked, augment={"preset": "light", **on})


def test_digits_are_no_segmentation() -> None:
    assert not open_split(DataSpec(source="digits"), "val").segmentation
