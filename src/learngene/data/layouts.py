"""The layouts in which images lie: class folders, image and mask folders, and VOC's, in folders and tars."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from learngene.data.digits import variant_files, variant_of
from learngene.data.file_kinds import NO_CLASS, Left, left_behind, says_image
from learngene.data.image_files import ImageFile
from learngene.data.image_folders import ImageFolder
from learngene.data.listing import Contents, contents_of, in_folders
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
        folders: Those in which images lie; empty for VOC, whose lists name them.
        voc: The folder with VOC's folders, if it is one.
        left: What else lies there, and why it does not count.
    """

    path: Path
    kind: str
    folders: list[ImageFolder]
    voc: Path | None = None
    left: list[Left] = field(default_factory=list)

    @property
    def masked(self) -> bool:
        """Whether its images have masks."""
        return self.kind != "class folders"

    @property
    def placed(self) -> list[ImageFolder]:
        """The folders in those of a split and a class, or of images or masks and a split."""
        return [folder for folder in self.folders if len(folder.parts) > 1]

    def pairs(self, split: str) -> list[tuple[ImageFile, ImageFile]]:
        """Every image of a split with its mask, by name.

        Raises:
            DataError: If there is no such split, or an image without a mask, or a mask without an image.
        """
        return _voc_pairs(self.voc, split) if self.voc else _folder_pairs(self, split)

    def left_of(self, folder: str) -> list[Left]:
        """What was left out of the folder of a split."""
        depth = 1 if self.masked else 0
        outside = [each.images for each in self.folders if each.parts == (folder,) and not self.masked]
        return [left for left in self.left if len(left.parts) > depth + 1 and left.parts[depth] == folder] + [
            Left(tuple(place.name.split("/")), NO_CLASS) for images in outside for place in images
        ]


def open_source(path: Path) -> Source:
    """Looks at a folder or tar and says what it holds.

    Raises:
        DataError: If it is a file that is no tar, or a damaged one.
    """
    for place in VOC_PLACES:
        if all((path / place / name).is_dir() for name in ("JPEGImages", "SegmentationClass")):
            return Source(path, "VOC folders", [], path / place)
    variant = variant_of(path)
    contents = Contents(in_folders(variant_files(variant))) if variant else contents_of(path)
    masked = {IMAGES, MASKS} <= {folder.parts[0] for folder in contents.folders if len(folder.parts) > 1}
    kind = "image and mask folders" if masked else "class folders"
    return Source(path, kind, contents.folders, left=contents.left)


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


def _folder_pairs(source: Source, split: str) -> list[tuple[ImageFile, ImageFile]]:
    path, placed = source.path, source.placed
    folder = split_folder(split, {each.parts[1] for each in placed if each.parts[0] == IMAGES}, path)
    sides: dict[str, dict[str, ImageFile]] = {IMAGES: {}, MASKS: {}}
    for each in placed:
        side = sides.get(each.parts[0], {})
        for place in each.images if each.parts[0] in sides and each.parts[1] == folder else ():
            name = place.name.partition("/")[2].rpartition(".")[0]
            if name in side:
                raise DataError(f"data {path}: {side[name].name} and {place.name} have the same name")
            side[name] = place
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
