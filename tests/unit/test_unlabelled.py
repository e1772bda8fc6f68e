"""Images whose classes nobody asks for: any folder or tar, with or without folders for splits and classes."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from learngene.data.splits import Splits, open_splits
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from masked import make_masked
from pico import CLI


def spread(images: Path, root: Path, names: list[str]) -> Path:
    """Copies of one image under many names."""
    content = (images / "train" / "red" / "00.png").read_bytes()
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def opened(*sources: Path, **fields: Any) -> Splits:
    section = DataSpec(source=[str(source) for source in sources], labels=False, **fields)
    return open_splits(section, unlabelled=True)


FLAT = [f"{number:02d}.png" for number in range(45)]


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        ([f"{number:03d}.png" for number in range(121)], 115, [f"{number:03d}.png" for number in range(19, 121, 20)]),
        (FLAT, 40, ["08.png", "17.png", "26.png", "35.png", "44.png"]),  # five at least
        (["a.png", "x/b.png", "x/y/c.png"], 2, ["x/y/c.png"]),
        (["train/a.png", "train/x/b.png", "val/c.png", "other/d.png"], 2, ["val/c.png"]),
        (["a.png", "b.png", "test/c.png"], 2, ["test/c.png"]),
        (["train/a.png", "train/b.png", "c.png"], 1, ["train/b.png"]),
    ],
    ids=["every twentieth", "flat", "deep", "splits", "val alone", "train alone"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_images_count_wherever_they_lie(
    names: list[str], train: int, val: list[str], packed: bool, images: Path, tmp_path: Path
) -> None:
    source = spread(images, tmp_path / "all", names)
    (source / "notes.txt").write_text("no image")
    if packed:
        source = tmp_path / "all.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(tmp_path / "all", ".")
    found = opened(source)
    assert (len(found.train), found.val.names) == (train, val)
    assert not set(found.train.names) & set(val)
    assert set(found.train.labels) == {0}
    counted = found.train.counted()
    assert counted.startswith(f"{train} images; left out: ")
    assert "1 no images (notes.txt)" in counted
    assert ("1 images outside the folders of both splits" in counted) == (len(names) > train + len(val))
    assert found.train.image(0).size == (8, 8)


def test_several_sources_are_one_set(images: Path, tmp_path: Path) -> None:
    one, other = (spread(images, tmp_path / name, ["same.png", "b.png"]) for name in ("one", "other"))
    found = opened(one, other)
    assert (len(found.train), len(found.val)) == (3, 1)


def test_classes_and_masks_are_left_aside(images: Path, tmp_path: Path) -> None:
    assert len(opened(images).train) == 24
    assert len(opened(images).val) == 12
    masked = make_masked(tmp_path / "masked")
    found = opened(masked)
    labelled = open_splits(DataSpec(source=str(masked)))
    assert [len(part) for part in found] == [len(part) for part in labelled]
    assert not found.train.segmentation
    digits = open_splits(DataSpec(source="digits", labels=False), unlabelled=True).train
    assert digits.class_names == ["unlabelled"]
    assert set(digits.labels) == {0}


@pytest.mark.parametrize(
    ("names", "message"), [([], "no images; give folders"), (["a.png"], "one image; two are needed")]
)
def test_too_few_images_are_refused(names: list[str], message: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match=message):
        opened(spread(images, tmp_path / "few", names))


def test_broken_images_are_counted(images: Path, tmp_path: Path) -> None:
    source = spread(images, tmp_path / "all", FLAT)
    (source / "07.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"1 of 40 images cannot be decoded, the first is 07.png"):
        opened(source)
    assert opened(source, skip_corrupt=True).train.corrupt == ["07.png"]


def test_who_needs_classes_refuses_images_without(refused: Any, cli: CLI, images: Path, tmp_path: Path) -> None:
    line = refused("finetune", "--model", "scratch", "--data", images, "data.labels=false", "shape.depth=2")
    assert "data.labels is false, but here images need a class" in line
