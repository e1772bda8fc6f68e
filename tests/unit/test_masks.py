"""Masks as people have them: 0 and 255, a few values, colours, palettes, of turned images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.splits import open_splits
from learngene.making.finetune import finetune, open_for, scratch
from learngene.recipe.content_hash import short_hash
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError, LearngeneError
from learngene.vits.segmenter import segment
from learngene.vits.shape import ViTShape
from masked import LIGHT, masked_data

CLASSES = np.array([[0, 1, 1], [0, 0, 2]], np.uint8)
"""Three pixels wide: three of class 0, two of class 1, one of class 2."""


def written(root: Path, mask: Callable[[np.ndarray], Image.Image], classes: np.ndarray = CLASSES, **image: Any) -> Path:
    """Two images of each split, all with the same mask."""
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            for name in ("0.png", "1.png"):
                made = mask(classes) if kind == "masks" else Image.new("RGB", classes.shape[::-1])
                made.save(root / kind / split / name, **(image if kind == "images" else {}))
    return root


def greys(*values: int, mode: str = "L") -> Callable[[np.ndarray], Image.Image]:
    dtype = np.uint16 if mode == "I;16" else np.uint8
    return lambda mask: Image.fromarray(np.array(values, dtype)[mask])


def colours(*values: tuple[int, ...]) -> Callable[[np.ndarray], Image.Image]:
    return lambda mask: Image.fromarray(np.array(values, np.uint8)[mask])


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask, "L").copy()
    image.putpalette([0, 0, 0, 128, 64, 128, 0, 0, 142])
    return image


def seen(images: ImageSet) -> list[list[int]]:
    values: list[list[int]] = images.pair(0)[1].tolist()
    return values


ROAD = {"0 0 0": "ground", "128 64 128": "road", "#00008e": "car"}
IN_ORDER, CODED = [[0, 1, 1], [0, 0, 2]], [[2, 1, 1], [2, 2, 0]]
READ: dict[str, tuple[Callable[[np.ndarray], Image.Image], dict[str, Any], list[str], list[list[int]]]] = {
    "few values": (greys(0, 128, 200), {"mask_values": {0: "a", 128: "b", 200: "c"}}, ["a", "b", "c"], IN_ORDER),
    "two values of one class": (greys(0, 128, 200), {"mask_values": {0: "a", 128: "b", 200: "b"}}, ["a", "b"],
                                [[0, 1, 1], [0, 0, 1]]),
    "one not judged": (greys(0, 128, 200), {"mask_values": {0: "a", 128: "b", 200: None}}, ["a", "b"],
                       [[0, 1, 1], [0, 0, 255]]),
    "255 beside other values": (greys(0, 1, 255), {}, ["0", "1"], [[0, 1, 1], [0, 0, 255]]),
    "255 beside said values": (greys(7, 9, 255), {"mask_values": {7: "a", 9: "b"}}, ["a", "b"],
                               [[0, 1, 1], [0, 0, 255]]),
    "by number": (greys(5, 128, 200), {"mask_values": {5: 2, 128: 1, 200: 0}}, ["0", "1", "2"], CODED),
    "an order of one's own": (greys(0, 128, 200),
                              {"mask_values": {0: "a", 128: "b", 200: "c"}, "mask_classes": ["c", "b", "a"]},
                              ["c", "b", "a"], CODED),
    "colours": (colours((0, 0, 0), (128, 64, 128), (0, 0, 142)), {"mask_values": ROAD}, ["ground", "car", "road"],
                [[0, 2, 2], [0, 0, 1]]),
    "palette by number": (palette, {}, ["0", "1", "2"], IN_ORDER),
    "palette by colour": (palette, {"mask_values": ROAD}, ["ground", "car", "road"], [[0, 2, 2], [0, 0, 1]]),
    "grey saved as RGB": (colours((0,) * 3, (1,) * 3, (2,) * 3), {}, ["0", "1", "2"], IN_ORDER),
    "grey saved as opaque RGBA": (colours((0, 0, 0, 255), (1, 1, 1, 255), (2, 2, 2, 255)), {}, ["0", "1", "2"],
                                  IN_ORDER),
    "16 bits": (greys(0, 1000, 60000, mode="I;16"), {"mask_values": {0: "a", 1000: "b", 60000: "c"}}, ["a", "b", "c"],
                IN_ORDER),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "fields", "names", "expected"), READ.values(), ids=READ)
def test_values_and_colours_mean_classes(mask: Any, fields: Any, names: Any, expected: Any, tmp_path: Path) -> None:
    train, val = open_splits(masked_data(written(tmp_path / "set", mask), **fields))
    assert train.class_names == val.class_names == names
    assert seen(train) == seen(val) == expected


TWO = np.array([[0, 1, 1], [0, 0, 0]], np.uint8)


@pytest.mark.parametrize("mask", [greys(0, 255), colours((0,) * 3, (255,) * 3)], ids=["grey", "RGB"])
def test_0_and_255_alone_are_ground_and_object(mask: Any, tmp_path: Path) -> None:
    root = written(tmp_path / "set", mask, TWO)
    assert open_split(masked_data(root), "train").class_names == ["0", "255"]
    train, val = open_splits(masked_data(root, mask_classes=["ground", "object"]))
    assert seen(train) == seen(val) == TWO.tolist()
    assert train.counted() == "2 images of 2 classes of pixels; pixels: ground 66.7 %, object 33.3 %"


def test_one_judged_class_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path / "set", greys(0, 255), TWO)
    for fields in ({"mask_classes": 3}, {"mask_values": {0: "a", 255: None}, "mask_classes": ["a", "b"]}):
        with pytest.raises(
            DataError, match=r"all pixels of the training masks are of class '.*a segmenter needs two cl"
        ):
            open_splits(masked_data(root, **fields))


REFUSED: dict[str, tuple[Callable[[np.ndarray], Image.Image], dict[str, Any], str]] = {
    "values without a meaning": (greys(0, 128, 200), {},
                                 r"; or say what they mean with data.mask_values=\{0: NAME, 128: NAME"),
    "colours without a meaning": (
        colours((0, 0, 0), (128, 64, 128), (0, 0, 142)),
        {},
        r"colours; say what they mean with data.mask_values=\{0 0 0: NAME, 0 0 142: NAME, 128 64 128: NAME\}",
    ),
    "an unknown value": (greys(0, 128, 200), {"mask_values": {0: "a", 128: "b"}},
                         r"has value 200, which data.mask_val"),
    "an unknown colour": (colours((0, 0, 0), (1, 2, 3), (9, 9, 8)), {"mask_values": {"0 0 0": "a", "1 2 3": "b"}},
                          r"has colour 9 9 8, which data.mask_values does not name"),
    "transparent": (colours((0, 0, 0, 0), (1, 1, 1, 255), (2, 2, 2, 255)), {},
                    r"has pixels of mode RGBA with transparency;"),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_masks_without_a_meaning_are_refused(mask: Any, fields: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_splits(masked_data(written(tmp_path / "set", mask), **fields))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "mask_values is empty"),
        ({"red": "a", 1: "b"}, "'red' is no pixel value"),
        ({True: "a", 2: "b"}, "True is no pixel value"),
        ({0: False, 255: True}, "the class of 0 is False; give a name, in quotes if YAML"),
        ({70000: "a", 1: "b"}, "'70000' is no pixel value"),
        ({"1": "a", 1: "b"}, "gives '1' twice"),
        ({0: "a", 1: "a"}, "1 classes; a segmenter needs 2"),
        ({0: "a", 1: 1}, "by name or by number"),
        ({0: 0, 1: -1}, "class -1 of 1 is negative"),
    ],
)
def test_meanings_that_mean_nothing_are_refused(values: dict[Any, Any], message: str) -> None:
    with pytest.raises((LearngeneError, ValueError), match=message):
        DataSpec(source="x", mask_values=values)


def test_keys_stay_at_the_defaults_and_do_not_depend_on_the_order_of_values() -> None:
    assert short_hash(DataSpec(source="x")) == short_hash(
        DataSpec(source="x", mask_values=None, background=(255,) * 3, pixel_range=None, max_pixels=178_956_970)
    )
    one, two = ({"mask_values": values} for values in ({0: "a", 255: "b"}, {"255": "b", "0": "a"}))
    assert short_hash(DataSpec(source="x", **one)) == short_hash(DataSpec(source="x", **two))


# -- orientation: 6 is stored turned to the left, so that (3 wide, 2 high) is seen as (2 wide, 3 high) ---


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


TURNED = [[0, 0], [0, 1], [2, 1]]
"""``CLASSES`` turned by a quarter to the right."""


def masks_are(root: Path, mask: np.ndarray, **options: Any) -> Path:
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(mask).save(path, **options)
    return root


def test_a_mask_lies_on_its_turned_image_as_its_size_or_its_own_exif_says(tmp_path: Path) -> None:
    root = written(tmp_path / "set", greys(0, 1, 2), exif=exif(6))
    assert open_split(masked_data(root), "train").image(0).size == (2, 3)
    assert seen(open_split(masked_data(root), "train")) == TURNED  # as large as the image is stored
    masks_are(root, np.array(TURNED, np.uint8))
    assert seen(open_split(masked_data(root), "train")) == TURNED  # as large as it is seen
    masks_are(root, CLASSES, exif=exif(6))
    assert seen(open_split(masked_data(root), "train")) == TURNED
    masks_are(root, CLASSES, exif=exif(1))
    with pytest.raises(DataError, match="has 3 x 2 pixels, but its image has 2 x 3"):
        open_split(masked_data(root), "train")


def test_where_the_size_does_not_tell_the_recipe_must(tmp_path: Path) -> None:
    root = written(tmp_path / "set", greys(0, 1, 2), exif=exif(3))
    with pytest.raises(
        DataError, match=r"states no EXIF orientation, but its image is stored turned \(orientation 3\)"
    ):
        open_split(masked_data(root), "train")
    assert seen(open_split(masked_data(root, mask_orientation="seen"), "train")) == CLASSES.tolist()
    assert seen(open_split(masked_data(root, mask_orientation="stored"), "train")) == [[2, 0, 0], [1, 1, 0]]


def test_a_descendant_remembers_what_values_mean_until_it_is_trained_on_others(tmp_path: Path) -> None:
    """Classes in an order that their values have not: read without the meaning, they would be exchanged."""
    root = written(tmp_path / "set", greys(1, 0), TWO)
    fields = {"mask_classes": ["ground", "object"], "mask_values": {1: "ground", 0: "object"}}
    shape = ViTShape(embed_dim=16, depth=1, num_heads=2, patch_size=4, img_size=8, num_classes=2)
    model = segment(scratch(shape), 2, class_names=fields["mask_classes"])
    train = {**LIGHT, "epochs": 1, "batch_size": 2}
    finetune(model, data={**masked_data(root).model_dump(exclude_unset=True), **fields}, show=False, **train)
    assert seen(open_for(model, masked_data(root), "val")) == TWO.tolist()
    finetune(model, data=masked_data(root).model_dump(exclude_unset=True), show=False, **train)
    assert seen(open_for(model, masked_data(root), "val")) == (1 - TWO).tolist()
