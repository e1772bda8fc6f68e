"""Which files count: images by content, wherever they lie, and not what programs and systems leave beside them."""

import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from learngene.data.file_kinds import holds_image, left_behind, says_image
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from masked import make_masked, make_voc, masked_data
from pico import make_images


def opened(source: Path, split: str = "train", **fields: object) -> ImageSet:
    return open_split(DataSpec(source=str(source), **fields), split)


def in_folder(root: Path) -> Path:
    return root


def in_tar(mode: str) -> Callable[[Path], Path]:
    def pack(root: Path) -> Path:
        with tarfile.open(path := root.with_suffix(f".{mode}.tar"), f"w:{mode}" if mode else "w") as archive:
            archive.add(root, ".")
        return path

    return pack


PACKED: dict[str, Callable[[Path], Path]] = {"folder": in_folder, "tar": in_tar(""), "gz": in_tar("gz")}

SYSTEMS = [
    *(".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0-checkpoint.png", ".directory"),
    *("@eaDir/0.png/SYNOFILE_THUMB_M.png", "__MACOSX/._1.png", ".thumbnails/x.png", "#recycle/0.png", ".git/objects/a"),
    *(
        "0.png~",
        "0.png.bak",
        "0.png.orig",
        "#0.png#",
        "0.png.part",
        "0.png.crdownload",
        ".0.png.swp",
        "$RECYCLE.BIN/a.png",
    ),
]


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_what_programs_and_systems_leave_is_no_part_of_a_class(pack: Callable[[Path], Path], tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    expected = opened(root)
    for name in SYSTEMS:
        for place in ("train", "train/red"):
            path = root / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "train/red/00.png", path)
    made = opened(pack(root))
    assert made.names == expected.names
    assert made.class_names == ["blue", "green", "red"]
    assert made.fingerprint() == expected.fingerprint()
    assert {left.parts[:2] for left in made.left} > {("train", ".ipynb_checkpoints"), ("train", "__MACOSX")}
    assert len(made.left) == 2 * len(SYSTEMS)


IMAGES = {
    "a.jfif": "JPEG",
    "b": "PNG",
    "c.jpg_large": "JPEG",
    "d.data": "WEBP",
    "e.JPE": "JPEG",
    "f.img": "GIF",
    "g.": "BMP",
    "h.pic": "TIFF",
    "i.netpbm": "PPM",
    "k.x": "ICO",
    "l.JPEG": "PNG",
}
NO_IMAGES = {
    "notes.txt": b"BMW, PNG and P5 cars",
    "list.csv": b"P3 is a file\n1,2\n",
    "labels.json": b"{}",
    "film.mp4": b"\0\0\0\x18ftypisom\0\0\2\0",
    "array.npy": b"\x93NUMPY\1\0",
    "data.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "empty": b"",
}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_images_are_told_by_their_content(pack: Callable[[Path], Path], tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    for name, form in IMAGES.items():
        Image.new("RGB", (16, 16)).save(root / "train/red" / name, form)
    for name, content in NO_IMAGES.items():
        (root / "train/red" / name).write_bytes(content)
    made = opened(pack(root))
    assert {Path(name).name for name in made.names if "red" in name} == {"00.png", "01.png", *IMAGES}
    assert {left.parts[-1] for left in made.left} == set(NO_IMAGES)
    assert made.counted() == "17 images (2 blue, 2 green, 13 red); left out: 7 no images (train/red/array.npy ...)"


def test_images_that_pillow_cannot_read_are_broken_not_forgotten(tmp_path: Path) -> None:
    root, red = make_images(tmp_path / "set", train=2, val=2), tmp_path / "set/train/red"
    Image.new("RGB", (16, 16)).save(red / "raw.dng", "TIFF")  # a camera's raw file looks like a TIFF with a preview
    heif = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(16)
    for name, content in {
        "a.heic": heif,
        "b": heif,
        "c.svg": b"<svg/>",
        ".d.png.icloud": b"bplist00",
        "e.png": b"",
        "f.ico": b"\0\0\1\0",
        "g.pcx": b"\n\5",
    }.items():
        (red / name).write_bytes(content)
    names = [
        f"train/red/{name}" for name in (".d.png.icloud", "a.heic", "b", "c.svg", "e.png", "f.ico", "g.pcx", "raw.dng")
    ]
    made = opened(root, skip_corrupt=True)
    assert made.corrupt == names
    assert made.counted().endswith("; left out: 8 corrupt (train/red/.d.png.icloud ...)")
    with pytest.raises(
        DataError, match=r"8 of 14 images .* is train/red/.d.png.icloud \(not a format that Pillow reads"
    ):
        opened(root)


def test_links_are_followed_and_circles_and_folders_named_as_images_are_not_images(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    more = make_images(tmp_path / "more", classes=("red", "blue"), train=3, val=1)
    (root / "train/red/linked").symlink_to(more / "train/red")
    (root / "train/red/up").symlink_to(root / "train")
    (root / "train/red/one.png").symlink_to(more / "train/blue/00.png")
    (root / "train/red/folder.png").mkdir()
    os.mkfifo(root / "train/red/pipe")
    assert Counter(opened(root).labels) == {0: 2, 1: 2, 2: 6}


@pytest.mark.parametrize("mode", ["", "gz"])
def test_links_of_a_tar_are_the_files_they_name(mode: str, tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    os.link(root / "train/red/00.png", root / "train/red/same.png")
    (root / "train/red/soft.png").symlink_to("../blue/00.png")
    (root / "train/red/nowhere.png").symlink_to("gone.png")
    made = opened(in_tar(mode)(root))
    at = {Path(name).name: made.image(index).tobytes() for index, name in enumerate(made.names) if "red" in name}
    assert at.keys() == {"00.png", "01.png", "same.png", "soft.png"}
    assert at["same.png"] == at["00.png"]
    assert at["soft.png"] == made.image(made.names.index("train/blue/00.png")).tobytes()


def test_of_two_files_of_a_name_in_a_tar_the_last_counts(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    path = in_tar("")(root)
    with tarfile.open(path, "a") as archive:
        archive.add(root / "train/blue/00.png", "train/red/00.png")
    made = opened(path)
    assert len(made) == 6
    assert made.image(made.names.index("train/red/00.png")).tobytes() == made.image(0).tobytes()


def test_images_outside_classes_are_told(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set", train=2, val=2)
    for name in ("train/stray.png", "stray.png"):
        shutil.copy(root / "train/red/00.png", root / name)
    assert opened(root).counted() == (
        "6 images (2 blue, 2 green, 2 red); left out: 1 images outside class folders (train/stray.png)"
    )


def test_masks_and_lists_go_by_the_same_rule(tmp_path: Path) -> None:
    folders, voc = make_masked(tmp_path / "folders", train=4), make_voc(tmp_path / "voc", train=4)
    (folders / "images/train/00.png").rename(folders / "images/train/00.jfif")
    for kind in ("images", "masks"):
        (folders / kind / "train" / ".ipynb_checkpoints").mkdir()
        shutil.copy(folders / kind / "val/00.png", folders / kind / "train/.ipynb_checkpoints/x.png")
    base = voc / "VOCdevkit/VOC2012"
    (base / "JPEGImages/train_00.jpg").rename(base / "JPEGImages/train_00.jpeg")
    Image.open(base / "SegmentationClass/train_01.png").save(base / "SegmentationClass/train_01.bmp")
    (base / "SegmentationClass/train_01.png").unlink()
    for path in (base / "JPEGImages/train_02.jpg", base / "SegmentationClass/train_02.png"):
        path.rename(path.with_stem("a b"))
    (base / "ImageSets/Segmentation/train.txt").write_text("train_00\r\ntrain_01\n\na b\ntrain_03\n")
    made = open_split(masked_data(folders), "train")
    assert made.names == [f"images/train/{name}" for name in ("00.jfif", "01.png", "02.png", "03.png")]
    assert "left out: 2 hidden (images/train/.ipynb_checkpoints ...)" in made.counted()
    assert [name.rpartition("/")[2] for name in open_split(masked_data(voc), "train").names] == [
        *("train_00.jpeg", "train_01.jpg", "a b.jpg", "train_03.jpg")
    ]


@pytest.mark.parametrize("name", [".net", "cat", "v1.old", "backup~", "my.tmp", "Thumbs"])
def test_folders_with_names_of_their_own_stay(name: str) -> None:
    assert left_behind(name, folder=True) is None or name == ".net"


def test_a_name_or_a_beginning_says_image() -> None:
    assert says_image("A.PNG")
    assert not says_image("png")
    assert holds_image(io.BytesIO(b"\xff\xd8\xff\xe0 cut off"))
    assert not holds_image(io.BytesIO(b"GIF is a format"))
