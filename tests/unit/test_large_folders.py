"""Folders of very many images: what is listed takes little memory, and is what lies there now."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from learngene.data.images import ImageSet
from learngene.data.layouts import open_source
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec

MANY = 20_001
"""More images than are decoded before training."""


def train_split(root: Path, **more: object) -> ImageSet:
    spec = DataSpec.model_validate({"source": str(root), "workers": 0, **more})
    return open_splits(spec, unlabelled=not spec.labels).train


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files of two classes, one of them with folders in it; changed only by what changes it back."""
    root = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        folder = "a" if number % 2 else f"b/{number % 3}"
        if number < 6:
            (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        (root / "train" / folder / f"{number}.jpg").touch()
    for folder in ("a", "b"):
        (root / "val" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "val" / folder / "0.jpg")
    return root


def test_images_have_the_order_of_classes_and_names(many: Path) -> None:
    images = train_split(many)
    there = [path.relative_to(many).as_posix() for path in (many / "train").rglob("*.jpg")]
    expected = sorted(there, key=lambda name: (name.split("/")[1], name))
    assert list(images.names) == expected
    assert [images.class_names[label] for label in images.labels] == [name.split("/")[1] for name in expected]
    places = images.read.places  # type: ignore[attr-defined]
    assert [place.path for place in places] == [str(many / name) for name in expected]
    assert images.names[-1] == expected[-1]
    assert images.names[5:8] == expected[5:8]
    assert places[5:8] == [places[number] for number in (5, 6, 7)]


def test_an_image_takes_a_few_bytes_also_where_it_is_sent_to_another_process(many: Path) -> None:
    assert len(pickle.dumps(train_split(many))) / MANY < 40


def test_images_without_classes_are_ordered_by_name_alone(many: Path) -> None:
    touch(many / "train" / "a-" / "0.jpg")  # '-' comes before '/', so that this folder comes before its elder
    try:
        names = list(train_split(many, labels=False).names)
    finally:
        (many / "train" / "a-" / "0.jpg").unlink()
        (many / "train" / "a-").rmdir()
    assert len(names) == MANY + 1
    assert names == sorted(names)
    assert names[0] == "train/a-/0.jpg"


def added(root: Path) -> None:
    touch(root / "train/a/new.jpg")


def removed(root: Path) -> None:
    (root / "train/a/1.jpg").unlink()


def renamed(root: Path) -> None:
    (root / "train/a/1.jpg").rename(root / "train/a/one.jpg")


def moved(root: Path) -> None:
    (root / "train/a/1.jpg").rename(root / "train/b/1.jpg")


def class_renamed(root: Path) -> None:
    (root / "train/a").rename(root / "train/c")


@pytest.mark.parametrize("change", [added, removed, renamed, moved, class_renamed])
def test_a_change_is_seen_though_every_time_is_put_back(change: Callable[[Path], None], tmp_path: Path) -> None:
    """As archives and synchronising programs do, and file systems that keep no times of folders."""
    for name in ("train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/b/0.jpg"):
        touch(tmp_path / name)
    found = [names_now(tmp_path)]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "train", tmp_path / "train/a", tmp_path / "train/b")}
    change(tmp_path)
    for path, when in times.items():
        if path.exists():
            os.utime(path, ns=(when, when))
    found.append(names_now(tmp_path))
    assert found[0] != found[1]
    assert found[1] == sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "train").rglob("*.jpg"))


def names_now(root: Path) -> list[str]:
    folders = [folder for folder in open_source(root).placed if folder.parts[0] == "train"]
    return sorted(place.name for folder in folders for place in folder.images)


def test_nothing_is_written_into_the_folder(many: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (many, many / "train", many / "train/a")}
    train_split(many)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_name_that_is_no_text_is_read_like_any_other(images: Path, tmp_path: Path) -> None:
    content = next((images / "train").rglob("*.png")).read_bytes()
    for split in ("train", "val"):
        for number in range(4):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            name = os.fsencode(folder) + (b"/\xff%d.png" % number if number < 2 else b"/\xc3\xa9%d.png" % number)
            try:
                with open(name, "wb") as file:
                    file.write(content)
            except OSError:
                pytest.skip("this file system has names of text only")
    found = train_split(tmp_path)
    assert [os.fsencode(name) for name in found.names] == [
        b"train/a/\xc3\xa92.png", b"train/a/\xff0.png", b"train/b/\xc3\xa93.png", b"train/b/\xff1.png",
    ]  # fmt: skip
    assert all(found.image(number).size == (8, 8) for number in range(4))


def test_a_folder_and_a_tar_are_one_set_in_the_order_of_names(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(images / "train", "train")
    one, both = train_split(images), train_split(images, source=[str(images), str(tmp_path / "more.tar")])
    assert list(both.names) == [name for name in one.names for _ in range(2)]
    assert list(both.labels) == [label for label in one.labels for _ in range(2)]
