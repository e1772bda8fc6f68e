"""The layouts in which images lie: class folders, image and mask folders, and VOC's, in folders and tars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from learngene.data.digits import variant_files, variant_of
from learngene.data.file_kinds import Left, left_behind, says_image
from learngene.data.image_files import Contents, ImageFile, PlacedImage, contents_of
from learngene.system.errors import DataError, NoSplitError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Folder names that count as a split, in order of preference."""

IMAGES, MASKS = "images", "masks"
VOC_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")
"""Where torchvision leaves the folders of VOC, seen from what a user may give."""


@dataclass
class Source:
    """One folder or tar of images.

    Attributes:
        path: Where it is.
        kind: What it holds, for error messages.
        found: The images with the folders they lie in; empty for VOC, whose lists name them.
        voc: The folder with VOC's folders, if it is one.
        left: What else lies there, and why it does not count.
        images: All its images, wherever they lie; empty for VOC.
    """

    path: Path
    kind: str
    found: list[PlacedImage]
    voc: Path | None = None
    left: list[Left] = field(default_factory=list)
    images: list[ImageFile] = field(default_factory=list)

    @property
    def masked(self) -> bool:
        """Whether its images have masks."""
        return self.kind != "class folders"

    def pairs(self, split: str) -> list[tuple[ImageFile, ImageFile]]:
        """Every image of a split with its mask, by name.

        Raises:
            DataError: If there is no such split, or an image without a mask, or a mask without an image.
        """
        return _voc_pairs(self.voc, split) if self.voc else _folder_pairs(self.path, self.found, split)

    def left_of(self, folder: str) -> list[Left]:
        """What was left out of the folder of a split."""
        depth = 1 if self.masked else 0
        return [left for left in self.left if len(left.parts) > depth + 1 and left.parts[depth] == folder]


def open_source(path: Path) -> Source:
    """Looks at a folder or tar and says what it holds.

    Raises:
        DataError: If it is a file that is no tar, or a damaged one.
    """
    for place in VOC_PLACES:
        if all((path / place / name).is_dir() for name in ("JPEGImages", "SegmentationClass")):
            return Source(path, "VOC folders", [], path / place)
    variant = variant_of(path)
    contents = Contents(variant_files(variant)) if variant else contents_of(path)
    masked = {IMAGES, MASKS} <= {top for top, _, _ in contents.found}
    return Source(
        path,
        "image and mask folders" if masked else "class folders",
        contents.found,
        None,
        contents.left,
        contents.images,
    )


def split_folder(split: str, found: Collection[str], where: str | Path) -> str:
    """What a data set calls a split.

    Raises:
        NoSplitError: If it has none of that name.
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in found:
            return name
    raise NoSplitError(
        f"data {where}: no split '{split}'; found: {', '.join(sorted(found))}; make a folder of that name, or say with "
        "data.train_split and data.val_split which to take"
    )


def _folder_pairs(path: Path, found: Sequence[PlacedImage], split: str) -> list[tuple[ImageFile, ImageFile]]:
    folder = split_folder(split, {part for top, part, _ in found if top == IMAGES}, path)
    sides: dict[str, dict[str, ImageFile]] = {IMAGES: {}, MASKS: {}}
    for top, part, place in found:
        if top in sides and part == folder:
            name = place.name.partition("/")[2].rpartition(".")[0]
            if name in sides[top]:
                raise DataError(f"data {path}: {sides[top][name].name} and {place.name} have the same name")
            sides[top][name] = place
    images, masks = sides[IMAGES], sides[MASKS]
    for name in sorted(images.keys() ^ masks.keys()):
        if name in images:
            raise DataError(f"data {path}: image {images[name].name} has no mask {MASKS}/{name}.png")
        raise DataError(f"data {path}: mask {masks[name].name} has no image {IMAGES}/{name}.jpg")
    return [(images[name], masks[name]) for name in sorted(images)]


def _voc_pairs(root: Path, split: str) -> list[tuple[ImageFile, ImageFile]]:
    lists = root / "ImageSets" / "Segmentation"
    name = split_folder(split, {path.stem for path in lists.glob("*.txt")}, root)
    sides = {"image": _by_stem(root / "JPEGImages"), "mask": _by_stem(root / "SegmentationClass")}
    out = []
    for line in filter(None, map(str.strip, (lists / f"{name}.txt").read_text().splitlines())):
        for what, files in sides.items():
            if line not in files:
                file = f"JPEGImages/{line}.jpg" if what == "image" else f"SegmentationClass/{line}.png"
                raise DataError(f"data {root}: {lists.name}/{name}.txt names {line}, but there is no {what} {file}")
        out.append((sides["image"][line], sides["mask"][line]))
    return out


def _by_stem(folder: Path) -> dict[str, ImageFile]:
    """The images of a folder by their names without suffix."""
    files = sorted(path for path in folder.iterdir() if says_image(path.name) and not left_behind(path.name))
    return {path.stem: ImageFile(str(path), f"{folder.name}/{path.name}") for path in reversed(files)}
