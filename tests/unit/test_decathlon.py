"""The Visual Domain Decathlon: read from its annotations wherever the images were unpacked, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import learngene as lg
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from pico import CLI, COLOURS, FAST, finetune_fields, pico_shape

CLASSES = ("red", "blue", "green")
"""In the order of their categories, which is not that of their names."""
FIRST = 20_001
"""The smallest category id; those of the Decathlon do not begin at 0."""
SPLITS = {"train": 8, "val": 4}

Change = Callable[[dict[str, Any]], object]


def make_decathlon(root: Path, images: str = "decathlon-1.0/data", dataset: str = "aircraft") -> Path:
    """Writes ``root/decathlon-1.0/annotations`` and squares of three colours, the last class as grey images."""
    number = 0
    for split, count in SPLITS.items():
        content: dict[str, Any] = {"info": {}, "images": [], "annotations": []}
        # Neither categories nor annotations are sorted, as nothing says that they are.
        content["categories"] = [{"id": FIRST + i, "name": CLASSES[i], "supercategory": "x"} for i in (2, 0, 1)]
        for label, name in enumerate(CLASSES):
            for position in range(count):
                number += 1
                file = f"{dataset}/{split}/{label + 1:04d}/{position:06d}.png"
                noise = np.random.default_rng([number]).integers(-20, 20, (9, 8, 3))
                picture = Image.fromarray(np.clip(COLOURS[name] + noise, 0, 255).astype(np.uint8))
                path = root / images / file
                path.parent.mkdir(parents=True, exist_ok=True)
                (picture.convert("L") if name == "green" else picture).save(path)
                content["images"].append({"id": number, "file_name": f"data/{file}", "width": 8, "height": 9})
                content["annotations"].insert(0, {"id": number, "image_id": number, "category_id": FIRST + label})
        path = annotations(root, split, dataset)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    stripped = {"images": [{"id": 1, "file_name": f"data/{dataset}/test/000001.png"}], "categories": []}
    annotations(root, "test_stripped", dataset).write_text(json.dumps(stripped))
    return root


def annotations(root: Path, split: str = "train", dataset: str = "aircraft") -> Path:
    return root / "decathlon-1.0" / "annotations" / f"{dataset}_{split}.json"


def spec(root: Path | None, dataset: str = "aircraft", **fields: Any) -> DataSpec:
    return DataSpec(source=f"decathlon/{dataset}", root=root, **fields)


def pixels(images: ImageSet) -> list[tuple[str, int, bytes]]:
    return [(images.names[i], images.labels[i], images.image(i).tobytes()) for i in range(len(images))]


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotations and images; read only."""
    return make_decathlon(tmp_path_factory.mktemp("decathlon"))


# -- what is read ------------------------------------------------------------------------------------------


def test_classes_are_in_the_order_of_their_categories(decathlon: Path) -> None:
    train, val = open_splits(spec(decathlon))
    assert train.class_names == val.class_names == list(CLASSES)
    assert train.labels == [0] * 8 + [1] * 8 + [2] * 8
    assert val.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert train.names[0] == "data/aircraft/train/0001/000000.png"
    for images in (train, val):
        for index, label in enumerate(images.labels[: -len(images) // 3]):
            mean = np.array(images.image(index)).mean((0, 1))
            assert np.abs(mean - np.array(COLOURS[CLASSES[label]])).max() < 15
    assert train.image(23).mode == "RGB"
    assert train.image(23, mode="L").mode == train.image(0, mode="L").mode == "L"


PLACES = ["decathlon-1.0/data", "decathlon-1.0", "decathlon-1.0/decathlon-1.0-data", "decathlon-1.0-data", "data", "."]
PLACES += ["decathlon-1.0-data/data", "data/decathlon-1.0-data", "decathlon-1.0-data-imagenet"]
PREFIXES = ["data/", "", "./data/", "decathlon-1.0/data/"]


@pytest.mark.parametrize(
    ("images", "prefix"), [(place, PREFIXES[(at + more) % 4]) for at, place in enumerate(PLACES) for more in (0, 1)]
)
def test_images_are_found_wherever_they_were_unpacked(
    images: str, prefix: str, decathlon: Path, tmp_path: Path
) -> None:
    root = make_decathlon(tmp_path, images)
    expected = open_split(spec(decathlon), "train")
    content = annotations(root).read_text()
    annotations(root).write_text(content.replace('"data/', f'"{prefix}'))
    train = open_split(spec(root), "train")
    assert [entry[1:] for entry in pixels(train)] == [entry[1:] for entry in pixels(expected)]
    assert train.names == [name.replace("data/", prefix, 1) for name in expected.names]
    assert (train.fingerprint() == expected.fingerprint()) == (prefix == "data/")


def test_the_root_may_be_the_folder_of_the_annotations(decathlon: Path) -> None:
    inner, outer = (open_split(spec(root), "val") for root in (decathlon / "decathlon-1.0", decathlon))
    assert pixels(inner) == pixels(outer)
    assert inner.fingerprint() == outer.fingerprint()


def test_the_fuller_of_two_folders_is_read(tmp_path: Path) -> None:
    root = make_decathlon(make_decathlon(tmp_path, "data"), "decathlon-1.0-data")
    shutil.rmtree(root / "data" / "aircraft" / "train" / "0002")
    assert len(open_split(spec(root), "train")) == 24


@pytest.mark.parametrize("dataset", ["vgg-flowers", "imagenet12"])
def test_any_of_the_ten_sets_is_read(dataset: str, tmp_path: Path) -> None:
    train, val = open_splits(spec(make_decathlon(tmp_path, dataset=dataset), dataset))
    assert (len(train), len(val), train.where) == (24, 12, f"data decathlon/{dataset}")


def test_the_order_of_the_annotations_does_not_matter(decathlon: Path, tmp_path: Path) -> None:
    root = make_decathlon(tmp_path)
    rewrite(lambda content: [content[key].reverse() for key in ("images", "annotations", "categories")])(root)
    assert open_split(spec(root), "train").fingerprint() == open_split(spec(decathlon), "train").fingerprint()


def test_a_category_without_images_is_a_class(tmp_path: Path) -> None:
    root = make_decathlon(tmp_path)
    for split in SPLITS:
        rewrite(lambda content: content["categories"].append({"id": FIRST - 1, "name": 7}), split)(root)
    train, _ = open_splits(spec(root))
    assert train.class_names == ["7", *CLASSES]
    assert set(train.labels) == {1, 2, 3}


def test_categories_of_one_name_stay_apart(tmp_path: Path) -> None:
    root = make_decathlon(tmp_path)
    for split in SPLITS:
        rewrite(lambda content: [entry.update(name="crane") for entry in content["categories"][:2]], split)(root)
    train, _ = open_splits(spec(root))
    assert train.class_names == [f"crane ({FIRST})", "blue", f"crane ({FIRST + 2})"]


def test_broken_images_are_left_out_if_asked(tmp_path: Path) -> None:
    root = make_decathlon(tmp_path)
    (root / "decathlon-1.0" / "data" / "aircraft" / "train" / "0001" / "000003.png").write_text("x")
    with pytest.raises(
        DataError, match=r"1 of 24 images cannot be decoded, the first is data/aircraft/train/0001/0000"
    ):
        open_split(spec(root), "train")
    train = open_split(spec(root, skip_corrupt=True), "train")
    assert (len(train), train.corrupt) == (23, ["data/aircraft/train/0001/000003.png"])


def test_without_a_root_a_folder_of_that_name_is_a_folder(
    decathlon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(decathlon / "decathlon-1.0" / "data", tmp_path / "decathlon")
    monkeypatch.chdir(tmp_path)
    assert open_split(spec(None), "train").class_names == ["0001", "0002", "0003"]
    assert open_split(spec(decathlon), "train").class_names == list(CLASSES)


# -- what is done with it ----------------------------------------------------------------------------------


def test_commands_run_on_it(decathlon: Path, cli: CLI, refused: Callable[..., str], tmp_path: Path) -> None:
    gene = lg.condense(
        lg.Ancestry(lg.scratch(pico_shape(depth=2), seed=1)),
        method="tleg",
        shape=pico_shape(),
        data={"source": "decathlon/aircraft", "root": str(decathlon), "workers": 0},
        show=False,
        **FAST,
    )
    gene.save(tmp_path / "gene.safetensors")
    fields = finetune_fields(tmp_path / "gene.safetensors", "decathlon/aircraft", tmp_path / "run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**fields, "shape": {"depth": 2}}))
    checked = cli("check", recipe, f"data.root={decathlon}")
    assert "data: 24 training and 12 validation images, 3 classes" in checked.out
    assert cli("finetune", recipe, f"data.root={decathlon}").code == 0
    score = ["eval", tmp_path / "run" / "descendant", "--data", "decathlon/aircraft", "--root", decathlon]
    assert json.loads(cli(*score, "--json").out)["images"] == 12
    config = json.loads((tmp_path / "run" / "descendant" / "config.json").read_text())
    assert list(CLASSES) == config["label_names"]
    assert "the labels of the split 'test' are not public; use train or val" in refused(*score, "--split", "test")
    assert "aircraft: set data.root to the folder that has decathlon-1.0/" in refused(*score[:-2])


# -- refusals ----------------------------------------------------------------------------------------------


def rewrite(change: Change, split: str = "train") -> Callable[[Path], object]:
    """Changes the annotations of a split."""

    def apply(root: Path) -> None:
        path = annotations(root, split)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def written(text: str | bytes) -> Callable[[Path], object]:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda root: annotations(root).write_bytes(content)


def removed(name: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / "decathlon-1.0" / name)


DAMAGED = r"aircraft: annotations/aircraft_train.json is damaged, "
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no annotations": (removed("annotations"), r"no annotations/ or decathlon-1.0/annotations/ in .*devkit.tar.gz"),
    "no train": (lambda root: annotations(root).unlink(), r"no aircraft_train.json in .*; did you mean 'aircraft_"),
    "no val": (lambda root: annotations(root, "val").unlink(), r"no aircraft_val.json in "),
    "no file": (lambda root: [path.unlink() for path in annotations(root).parent.iterdir()],
                r"no aircraft_train.json in .*annotations; it has no .json"),
    "cut off": (lambda root: annotations(root).write_bytes(annotations(root).read_bytes()[:-100]),
                DAMAGED + r"it cannot be read as JSON \(.*line 1 column .*\); get the file again"),
    "empty": (written(""), DAMAGED + "it cannot be read as JSON"),
    "no text": (written(b"\x1f\x8b\xff\xfe\x00"), DAMAGED + "it cannot be read as JSON"),
    "deep": (written("[" * 100_000), DAMAGED + "it cannot be read as JSON"),
    "a list": (written("[]"), DAMAGED + "it has no images, annotations and categories"),
    "no lists": (written("{}"), DAMAGED + "it has no list of images; get the file again"),
    "no categories": (rewrite(lambda content: content.pop("categories")), DAMAGED + "it has no list of categories"),
    "stripped": (rewrite(lambda content: content.pop("annotations")), DAMAGED + "it has no list of annotations"),
    "no object": (rewrite(lambda content: content["images"].insert(1, 3)),
                  DAMAGED + "entry 1 of images has no usable id"),
    "no name": (rewrite(lambda content: content["images"][2].update(file_name=None)),
                DAMAGED + "entry 2 of images has no usable file_name"),
    "no category": (rewrite(lambda content: content["annotations"][0].pop("category_id")),
                    DAMAGED + "entry 0 of annotations has no usable category_id"),
    "one id twice": (rewrite(lambda content: content["images"][1].update(id=1)),
                     DAMAGED + "two of its images have the id 1"),
    "one category twice": (rewrite(lambda content: content["categories"][1].update(id=FIRST + 2)),
                           DAMAGED + f"two of its categories have the id {FIRST + 2}"),
    "above": (rewrite(lambda content: content["images"][0].update(file_name="data/../../secret.png")),
              r"aircraft_train.json names an image outside the data, 'data/../../secret.png'"),
    "absolute": (rewrite(lambda content: content["images"][0].update(file_name="/secret.png")),
                 r"names an image outside the data, '/secret.png'"),
    "without annotation": (rewrite(lambda content: content["annotations"].pop()),
                           r"has no annotation of 1 of 24 images, such as data/aircraft/train/0001/000000.png"),
    "two annotations": (
        rewrite(lambda content: content["annotations"].append({"image_id": 2, "category_id": FIRST + 1})),
        r"has two annotations of data/aircraft/train/0001/000001.png; an image has one class",
    ),
    "annotation of nothing": (
        rewrite(lambda content: content["annotations"].append({"image_id": 99, "category_id": FIRST})),
        r"has an annotation of image id 99, which it does not list",
    ),
    "unknown category": (rewrite(lambda content: content["annotations"][-1].update(category_id=5)),
                         r"gives data/aircraft/train/0001/000000.png the category id 5, which it does not list"),
    "other categories": (rewrite(lambda content: content["categories"][0].update(name="yellow"), "val"),
                         r"a class is in the validation images only: 'yellow' is none of red, blue, green"),
    "no images": (
        lambda root: removed("data")(root),
        r"no images in .*, such as data/aircraft/train/0001/000000.png; unpack decathlon-1.0-data.tar.gz and its "
        r"aircraft.tar there",
    ),
    "images missing": (
        lambda root: [path.unlink() for path in root.rglob("0002/*.png") if path.parts[-3] == "train"],
        r"8 of 24 images are missing, the first is data/aircraft/train/0002/000000.png \(looked for as .*\); unpack",
    ),
    "nothing listed": (rewrite(lambda content: content.update(images=[], annotations=[])),
                       r"decathlon/aircraft: the split 'train' has no images"),
    "one class": (
        rewrite(
            lambda content: content.update(
                categories=[{"id": FIRST, "name": "red"}],
                images=content["images"][:8],
                annotations=content["annotations"][-8:],
            )
        ),
        r"the split 'train' has one class \(red\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_damaged_decathlon_is_refused(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = make_decathlon(tmp_path)
    change(root)
    with pytest.raises(DataError, match=message) as error:
        open_splits(spec(root))
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith("data decathlon/aircraft: ")


def test_categories_in_another_order_are_told_by_name(tmp_path: Path) -> None:
    """Red, blue, green in training and blue, green, red in validation: 0 is 1 there, 1 is 2 and 2 is 0."""
    root = make_decathlon(tmp_path)
    before = open_splits(spec(root))
    rewrite(
        lambda content: [entry.update(name=name) for entry, name in zip(content["categories"], CLASSES, strict=True)],
        "val",
    )(root)
    found = open_splits(spec(root))
    assert found.val.class_names == found.train.class_names == ["red", "blue", "green"]
    assert found.val.labels == [(label + 1) % 3 for label in before.val.labels]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("aircrafts", "no such data set in the Visual Domain Decathlon; did you mean 'aircraft'"),
        ("imagenet", "did you mean 'imagenet12'"),
        ("flowers", "did you mean 'vgg-flowers'"),
        ("", "no such data set in the Visual Domain Decathlon; known: aircraft, cifar100, daimlerpedcls, dtd"),
        ("../aircraft", "no such data set in the Visual Domain Decathlon"),
    ],
)
def test_an_unknown_data_set_is_refused(dataset: str, message: str, decathlon: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_split(spec(decathlon, dataset), "train")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "the labels of the split 'test' are not public; use train or val"),
        ("test_stripped", "the labels of the split 'test_stripped' are not public"),
        ("valid", "no split 'valid'; did you mean 'val'"),
    ],
)
def test_other_splits_are_refused(split: str, message: str, decathlon: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_split(spec(decathlon, val_split=split), "val")
    with pytest.raises(DataError, match=message):
        open_split(spec(decathlon), split)


def test_imagenet_has_an_archive_of_its_own(tmp_path: Path) -> None:
    root = make_decathlon(tmp_path, dataset="imagenet12")
    shutil.rmtree(root / "decathlon-1.0" / "data")
    with pytest.raises(DataError, match=r"; unpack decathlon-1.0-data-imagenet.tar there"):
        open_split(spec(root, "imagenet12"), "train")


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root .*nowhere is no folder; give the one that has decathlon-1.0/"):
        open_split(spec(tmp_path / "nowhere"), "train")


@pytest.mark.parametrize("name", ["decathlon/aircraft", "torch/cifar100"])
def test_a_data_set_by_name_stands_alone(name: str, decathlon: Path, images: Path) -> None:
    both = DataSpec(source=[str(images), name], root=decathlon)
    with pytest.raises(DataError, match=f"data {name}: a data set by name stands alone; several sources are folders"):
        open_split(both, "train")


def test_masks_are_not_in_it(decathlon: Path) -> None:
    with pytest.raises(DataError, match="has a class per image and no masks"):
        open_split(spec(decathlon, mask_classes=3), "train")
