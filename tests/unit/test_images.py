"""Data: folders, tars and digits become labelled images, and what cannot is refused in one line."""

import dataclasses
import errno
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learngene.data.digits import INK, VARIANTS, variant_files
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from pico import COLOURS, make_images

NAMES = sorted(COLOURS)


def spec(*sources: Path | str, **fields: Any) -> DataSpec:
    return DataSpec(source=[str(source) for source in sources] if len(sources) > 1 else str(sources[0]), **fields)


def pixels(images: ImageSet) -> list[tuple[int, bytes]]:
    return [(images.labels[i], images.image(i).tobytes()) for i in range(len(images))]


def packed(path: Path, folder: Path, mode: str, prefix: str = "") -> Path:
    with tarfile.open(path, mode) as archive:
        for member in sorted(folder.iterdir()):
            archive.add(member, f"{prefix}{member.name}")
    return path


# -- what is read ------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_sorted_classes(images: Path) -> None:
    train, val = open_splits(spec(images))
    assert (len(train), len(val)) == (24, 12)
    assert train.class_names == val.class_names == NAMES
    assert Counter(train.labels) == {0: 8, 1: 8, 2: 8}
    for index, label in enumerate(train.labels):
        mean = np.array(train.image(index)).mean((0, 1))
        assert np.abs(mean - np.array(COLOURS[NAMES[label]])).max() < 25


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.xz", "w:xz"), ("a.tar.gz", "w:gz"), ("b.tar", "w")])
def test_a_tar_is_read_as_the_folder_it_holds(name: str, mode: str, images: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / name, images, mode, prefix="./" if name == "b.tar" else "")
    for split in ("train", "val"):
        folder, tar = open_split(spec(images), split), open_split(spec(path), split)
        assert pixels(tar) == pixels(folder)
        assert tar.names == folder.names
        assert tar.fingerprint() == folder.fingerprint()


def test_several_sources_are_one_set(tmp_path: Path) -> None:
    one = make_images(tmp_path / "one", train=3, val=2)
    other = packed(tmp_path / "two.tar", make_images(tmp_path / "two", train=4, val=1), "w")
    train, val = open_splits(spec(one, other))
    assert (len(train), len(val)) == (3 * 7, 3 * 3)
    assert Counter(train.labels) == {0: 7, 1: 7, 2: 7}
    assert sorted(pixels(train)) == sorted(
        pixels(open_split(spec(one), "train")) + pixels(open_split(spec(other), "train"))
    )


def test_sources_may_hold_different_classes_and_splits(tmp_path: Path) -> None:
    one = make_images(tmp_path / "one", classes=("blue", "red"))
    other = make_images(tmp_path / "other", classes=("green",))
    assert open_split(spec(one, other), "train").class_names == NAMES


@pytest.mark.parametrize(
    ("have", "split"), [("training", "train"), ("validation", "val"), ("valid", "val"), ("test", "val")]
)
def test_usual_names_of_a_split_are_known(have: str, split: str, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", train=2, val=2)
    (folder / split).rename(folder / have)
    assert len(open_split(spec(folder), split)) == 6


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", train=2, val=2)
    shutil.copytree(folder / "train", folder / "test")
    (folder / "test" / "red" / "00.png").unlink()
    assert len(open_split(spec(folder), "val")) == 6
    assert len(open_split(spec(folder, val_split="test"), "val")) == 5


def test_digits_are_built_in() -> None:
    train, val = open_splits(spec("digits"))
    assert (len(train), len(val)) == (1352, 445)
    assert train.class_names == [str(digit) for digit in range(10)]
    assert not set(train.names) & set(val.names)
    assert train.image(0).size == (8, 8)
    counts = Counter(val.labels)
    assert all(counts[digit] == (Counter(train.labels)[digit] + counts[digit]) // 4 for digit in range(10))


def test_the_fingerprint_tells_sets_apart(images: Path, tmp_path: Path) -> None:
    train = open_split(spec(images), "train")
    assert train.fingerprint() == open_split(spec(images), "train").fingerprint()
    other = make_images(tmp_path / "images")
    (other / "train" / "red" / "00.png").rename(other / "train" / "red" / "99.png")
    assert train.fingerprint() != open_split(spec(other), "train").fingerprint()
    assert train.fingerprint() != open_split(spec(images), "val").fingerprint()


def test_a_timm_data_set_by_name_is_read(images: Path) -> None:
    made = open_split(spec("torch/image_folder", root=images, train_split="train"), "train")
    assert (len(made), made.class_names) == (24, NAMES)
    assert made.labels == open_split(spec(images), "train").labels
    assert made.image(0).size == (8, 8)


# -- corrupt images ----------------------------------------------------------------------------------------


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    """Two of 24 training images are broken: one is text, one is cut off."""
    folder = make_images(tmp_path / "images")
    (folder / "train" / "red" / "03.png").write_text("not an image")
    cut = folder / "train" / "blue" / "05.png"
    cut.write_bytes(cut.read_bytes()[:60])
    return folder


@pytest.mark.parametrize("tarred", [False, True])
def test_corrupt_images_are_refused_with_their_number(corrupt: Path, tmp_path: Path, tarred: bool) -> None:
    source = packed(tmp_path / "i.tar", corrupt, "w") if tarred else corrupt
    with pytest.raises(
        DataError,
        match=r"2 of 24 images cannot be decoded, the first is train/blue/05.png \(image file is trunc.*corrupt=true",
    ):
        open_split(spec(source), "train")


def test_corrupt_images_are_left_out_and_counted_if_asked(corrupt: Path) -> None:
    train = open_split(spec(corrupt, skip_corrupt=True), "train")
    assert len(train) == 22
    assert train.corrupt == ["train/blue/05.png", "train/red/03.png"]
    assert not set(train.names) & set(train.corrupt)
    for index, label in enumerate(train.labels):
        mean = np.array(train.image(index)).mean((0, 1))
        assert np.abs(mean - np.array(COLOURS[NAMES[label]])).max() < 25


def test_nothing_but_corrupt_images_is_refused_even_if_skipping(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", train=1, val=1)
    for path in (folder / "train").rglob("*.png"):
        path.write_text("x")
    with pytest.raises(DataError, match="none of its 3 images can be decoded"):
        open_split(spec(folder, skip_corrupt=True), "train")


def test_an_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images")
    train = open_split(spec(folder), "train")
    (folder / "train" / "blue" / "00.png").write_text("x")
    with pytest.raises(DataError, match=r"image train/blue/00.png cannot be decoded"):
        train.image(0)


# -- refusals ----------------------------------------------------------------------------------------------


def without_split(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        folder = make_images(path / "images")
        shutil.rmtree(folder / name)
        return folder

    return make


def empty_folder(path: Path) -> Path:
    (path / "images").mkdir()
    return path / "images"


def flat_folder(path: Path) -> Path:
    folder = make_images(path / "images")
    return folder / "train" / "red"


def class_folders_only(path: Path) -> Path:
    return make_images(path / "images") / "train"


def text_file(path: Path) -> Path:
    (path / "images.txt").write_text("hello")
    return path / "images.txt"


def zip_file(path: Path) -> Path:
    return Path(shutil.make_archive(str(path / "a"), "zip", make_images(path / "images")))


def damaged_tar(kind: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        tar = packed(path / "i.tar", make_images(path / "images"), kind)
        content = tar.read_bytes()
        tar.write_bytes(content[: len(content) // 2 + 100])
        return tar

    return make


def empty_tar(path: Path) -> Path:
    return packed(path / "i.tar", empty_folder(path), "w")


def camvid(path: Path) -> Path:
    """Segmentation: images/ and masks/, each with the splits inside."""
    folder = make_images(path / "raw")
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (path / "camvid" / kind / split).mkdir(parents=True)
            for picture in (folder / split / "red").iterdir():
                shutil.copy(picture, path / "camvid" / kind / split)
    return path / "camvid"


REFUSED: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "empty folder": (empty_folder, r"no images in SPLIT/CLASS/ folders; expected train/<class>/ and val/<class>/"),
    "images without folders": (flat_folder, r"no images in SPLIT/CLASS/ folders"),
    "classes without splits": (class_folders_only, r"no (images in|split)"),
    "no train": (without_split("train"), r"no split 'train'; found: val"),
    "no val": (without_split("val"), r"no split 'val'; found: train"),
    "text file": (text_file, r"images.txt: a file that is no tar; give a folder or a tar"),
    "zip": (zip_file, r"a.zip: a file that is no tar; give a folder or a tar"),
    "damaged tar": (damaged_tar("w"), r"i.tar: the tar is damaged or truncated"),
    "damaged xz": (damaged_tar("w:xz"), r"i.tar: the tar is damaged or truncated"),
    "damaged gz": (damaged_tar("w:gz"), r"i.tar: the tar is damaged or truncated"),
    "empty tar": (empty_tar, r"no images in SPLIT/CLASS/ folders"),
    "segmentation": (camvid, r"the training masks have colours; \d+ are too many for classes: is this a mask"),
    "no such folder": (lambda path: path / "nowhere", r"nowhere: no such folder or tar, and not a data set name"),
    "no such name": (lambda path: "imagenette", r"data imagenette: no such folder or tar, and not a data set name"),
    "unknown timm name": (lambda path: "torch/cifar11", r"data torch/cifar11: timm cannot open it"),
    "timm data that is not there": (lambda path: "torch/cifar10", r"data torch/cifar10: timm cannot open it"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_data_that_cannot_be_used_is_refused(
    make: Callable[[Path], Path | str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        open_splits(spec(make(tmp_path)))
    assert len(str(error.value).splitlines()) == 1


def test_an_image_that_may_not_be_read_is_not_taken_for_corrupt(images: Path) -> None:
    def refuse(_index: int) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    locked = dataclasses.replace(open_split(spec(images), "train"), read=refuse)
    with pytest.raises(DataError, match=r"image train/blue/00.png is not readable \(Permission denied\); allow it"):
        locked.scan(skip=True)


def test_one_missing_source_of_several_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: no such folder or tar"):
        open_split(spec(images, tmp_path / "missing"), "train")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_data_set_made_of_digits_is_the_same_every_time(name: str) -> None:
    train, val = open_splits(spec(f"digits/{name}"))
    assert (len(train), len(val)) == (768, 256)
    first = [np.asarray(train.image(index, "L")) for index in range(0, 768, 50)]
    variant_files.cache_clear()
    again = open_split(spec(f"digits/{name}"), "train")
    assert train.fingerprint() == again.fingerprint()
    assert all((np.asarray(again.image(50 * n, "L")) == image).all() for n, image in enumerate(first))


def test_no_two_data_sets_made_of_digits_with_as_many_classes_show_the_same_image() -> None:
    digit, rng = np.arange(256, dtype=np.uint8).reshape(16, 16), np.random.default_rng(0)
    seen = {(len({v.call(k) for k in range(10)}), v.show(digit, rng).tobytes()) for v in VARIANTS.values()}
    assert len(seen) == len(VARIANTS)


def test_a_canvas_of_digits_has_a_mask_of_its_ink() -> None:
    train, _ = open_splits(spec("digits/canvas"))
    image, mask = np.asarray(train.image(0, "L")), train.mask(0, (32, 32))
    assert train.class_names == ["0", "1", "2"]
    assert mask.any()
    assert ((mask > 0) == (image >= INK)).all()


def test_a_folder_goes_before_a_data_set_made_of_digits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "digits" / "negative")
    monkeypatch.chdir(tmp_path)
    assert open_split(spec("digits/negative"), "train").class_names == ["blue", "green", "red"]


def test_an_unknown_data_set_made_of_digits_is_refused() -> None:
    with pytest.raises(DataError, match=r"data digits/negativ: no such folder.* digits/VARIANT \(rotated, negative"):
        open_split(spec("digits/negativ"), "train")


def test_digits_have_two_splits() -> None:
    with pytest.raises(DataError, match="data digits: no split 'tran'; did you mean 'train'"):
        open_split(spec("digits", train_split="tran"), "train")
