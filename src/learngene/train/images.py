"""Image sets: folders, tars, timm's named data sets and scikit-learn's digits, all as indexed labelled images."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from learngene.errors import DataError, nearest
from learngene.sections import DataSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Folder names that count as a split, in order of preference."""

TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
"""How the names of timm's data sets begin."""

SCAN_LIMIT = 20_000
"""Sets up to this size are decoded once before training, which takes seconds, so that bad files show at once."""


@dataclass
class ImageSet:
    """Labelled images of one split, read on demand.

    Attributes:
        where: What error messages call it.
        read: Opens the image at an index, undecoded or decoded.
        names: A name per image, for error messages and the fingerprint.
        labels: A class index per image.
        class_names: Sorted names of the classes.
        corrupt: Images that were left out because they cannot be decoded.
    """

    where: str
    read: Callable[[int], Image.Image]
    names: Sequence[str]
    labels: Sequence[int]
    class_names: list[str]
    corrupt: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, mode: str = "RGB") -> Image.Image:
        """Decodes one image.

        Raises:
            DataError: If it cannot be decoded.
        """
        try:
            with self.read(index) as image:
                return image.convert(mode)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError) as error:
            raise DataError(
                f"{self.where}: image {self.names[index]} cannot be decoded ({type(error).__name__}); "
                "mend it, or set data.skip_corrupt=true to count and leave out such images"
            ) from None

    def scan(self, skip: bool) -> ImageSet:
        """Decodes every image once.

        Args:
            skip: Leave out what cannot be decoded and remember its name, instead of refusing.

        Returns:
            The set of the images that can be decoded.

        Raises:
            DataError: If an image cannot be decoded and ``skip`` is off; the message counts all of them.
        """
        bad: list[int] = []
        for index in range(len(self)):
            try:
                self.image(index)
            except DataError:
                bad.append(index)
        if not bad:
            return self
        if not skip:
            raise DataError(
                f"{self.where}: {len(bad)} of {len(self)} images cannot be decoded, the first is "
                f"{self.names[bad[0]]}; mend them, or set data.skip_corrupt=true to leave them out"
            )
        gone = set(bad)
        kept = [index for index in range(len(self)) if index not in gone]
        if not kept:
            raise DataError(f"{self.where}: none of its {len(self)} images can be decoded")
        return self.picked(kept, corrupt=[self.names[i] for i in bad])

    def picked(self, kept: Sequence[int], corrupt: Sequence[str] = ()) -> ImageSet:
        """The set of some of its images.

        Args:
            kept: Their indices.
            corrupt: Names of images that were left out because they cannot be decoded.
        """
        names, labels = [self.names[i] for i in kept], [self.labels[i] for i in kept]
        return ImageSet(self.where, _Picked(self.read, kept), names, labels, self.class_names, list(corrupt))

    def fingerprint(self) -> str:
        """A short hash of the names and labels: two sets with the same hash list the same images."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\t{label}\n".encode())
        return digest.hexdigest()[:16]


@dataclass
class _Picked:
    """Reads a subset; a class, not a closure, so that loader processes can receive it."""

    read: Callable[[int], Image.Image]
    kept: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.kept[index])


def open_split(spec: DataSpec, split: str) -> ImageSet:
    """Opens the ``train`` or ``val`` split of a data set and checks that it can be used.

    Args:
        spec: The data section of a recipe.
        split: ``train`` or ``val``; the recipe says what the data set calls it.

    Raises:
        DataError: If the data is missing, lacks the split, is empty, has one class, or has corrupt images that were
            not asked to be skipped.
    """
    if split not in ("train", "val"):
        raise DataError(f"unknown split '{split}'; give train or val (data.val_split names another folder for val)")
    wanted = spec.train_split if split == "train" else spec.val_split
    where = " + ".join(spec.sources)
    if spec.sources == ["digits"]:
        images = _digits(wanted)
    elif all(Path(source).exists() for source in spec.sources):
        images = _files(spec.sources, wanted, where)
    else:
        missing = next(source for source in spec.sources if not Path(source).exists())
        if not missing.startswith(TIMM_PREFIXES) or len(spec.sources) > 1:
            raise DataError(
                f"data {missing}: no such folder or tar, and not a data set name; "
                "give a folder, a tar, digits, or a timm name such as torch/cifar100"
            )
        images = _named(spec, missing, wanted)
    if not len(images):
        raise DataError(f"data {where}: the split '{wanted}' has no images")
    if len(images.class_names) < 2:
        raise DataError(
            f"data {where}: the split '{wanted}' has one class ({images.class_names[0]}); a classifier needs two"
        )
    if spec.skip_corrupt or len(images) <= SCAN_LIMIT:
        images = images.scan(spec.skip_corrupt)
    return images


def open_data(spec: DataSpec) -> tuple[ImageSet, ImageSet]:
    """Opens both splits and checks that they have the same classes.

    Raises:
        DataError: As ``open_split``, or if the classes differ.
    """
    train, val = open_split(spec, "train"), open_split(spec, "val")
    if train.class_names != val.class_names:
        only = sorted(set(train.class_names) ^ set(val.class_names))
        raise DataError(
            f"data {train.where}: the splits have different classes ({len(train.class_names)} and "
            f"{len(val.class_names)}); '{only[0]}' is in one of them only"
        )
    return train, val


# -- the kinds of data --------------------------------------------------------------------------------


class _Digits:
    """scikit-learn's 1,797 handwritten digits; a quarter of every class, evenly spread, is ``val``."""

    def __init__(self, indices: list[int], pixels: Any) -> None:
        self.indices, self.pixels = indices, pixels

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[self.indices[index]])


def _digits(split: str) -> ImageSet:
    import numpy as np
    from sklearn.datasets import load_digits

    if split not in ("train", "val"):
        raise DataError(f"data digits: no split '{split}'{nearest(split, ['train', 'val'])}")
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    seen: Counter[int] = Counter()
    indices = []
    for index, label in enumerate(data.target.tolist()):
        seen[label] += 1
        if (seen[label] % 4 == 0) == (split == "val"):
            indices.append(index)
    labels = [int(data.target[index]) for index in indices]
    names = [f"digits-{index}" for index in indices]
    return ImageSet("digits", _Digits(indices, pixels), names, labels, [str(digit) for digit in range(10)])


@dataclass(frozen=True)
class _Place:
    """Where the bytes of one image lie: a whole file, a piece of a plain tar, or bytes already unpacked."""

    path: str
    name: str
    offset: int = 0
    size: int = -1
    content: bytes | None = None

    def open(self) -> Image.Image:
        if self.content is not None:
            return Image.open(io.BytesIO(self.content))
        if self.size < 0:
            return Image.open(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))


@dataclass
class _Files:
    places: list[_Place]

    def __call__(self, index: int) -> Image.Image:
        return self.places[index].open()


def _files(sources: Sequence[str], split: str, where: str) -> ImageSet:
    """Folders and tars that hold SPLIT/CLASS/IMAGE; several of them are one set."""
    found: list[tuple[str, str, _Place]] = []
    for source in sources:
        path = Path(source)
        if path.is_file() and not tarfile.is_tarfile(path):
            raise DataError(f"data {path}: a file that is no tar; give a folder or a tar")
        found += _folder_places(path) if path.is_dir() else _tar_places(path)
    splits = sorted({part for part, _, _ in found})
    if not found:
        raise DataError(f"data {where}: no images in SPLIT/CLASS/ folders; expected train/<class>/ and val/<class>/")
    folder = next((name for name in SPLIT_NAMES.get(split, (split,)) if name in splits), None)
    if folder is None:
        raise DataError(f"data {where}: no split '{split}'; found: {', '.join(splits)}")
    chosen = sorted(((name, place) for part, name, place in found if part == folder), key=lambda p: (p[0], p[1].name))
    class_names = sorted({name for name, _ in chosen})
    index = {name: i for i, name in enumerate(class_names)}
    return ImageSet(
        f"data {where}",
        _Files([place for _, place in chosen]),
        [place.name for _, place in chosen],
        [index[name] for name, _ in chosen],
        class_names,
    )


def _folder_places(root: Path) -> Iterable[tuple[str, str, _Place]]:
    for path in root.glob("*/*/**/*"):
        if path.suffix.lower() in SUFFIXES:
            parts = path.relative_to(root).parts
            yield parts[0], parts[1], _Place(str(path), "/".join(parts))


def _tar_places(path: Path) -> Iterable[tuple[str, str, _Place]]:
    """Images of a tar. A plain one is read in place; a compressed one is unpacked into memory."""
    try:
        with tarfile.open(path) as archive:
            plain = _is_plain(path)
            for member in archive:
                parts = member.name.removeprefix("./").split("/")
                if not member.isfile() or len(parts) < 3 or not member.name.lower().endswith(SUFFIXES):
                    continue
                name = "/".join(parts)
                if plain:
                    place = _Place(str(path), name, member.offset_data, member.size)
                else:
                    content = archive.extractfile(member)
                    place = _Place(str(path), name, content=content.read() if content else b"")
                yield parts[0], parts[1], place
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"data {path}: the tar is damaged or truncated ({error})") from None


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


class _Named:
    """Reads a timm data set; its items are (image, label)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image


def _named(spec: DataSpec, name: str, split: str) -> ImageSet:
    from timm.data import create_dataset

    def unusable(error: Exception) -> DataError:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return DataError(f"data {name}: timm cannot open it ({reason}); set data.root and data.download")

    try:
        dataset = create_dataset(name, root=spec.root, split=split, download=spec.download)
    except ImportError as error:
        raise DataError(f"data {name}: package '{error.name}' is missing; pip install 'learngene[data]'") from None
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError) as error:
        raise unusable(error) from None
    try:
        count = len(dataset)
        dataset[0]
    except (NotImplementedError, TypeError, KeyError) as error:  # what streaming sets raise when asked for an index
        raise DataError(
            f"data {name}: needs random access, which this data set does not give ({error}); use a map-style one"
        ) from None
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise unusable(error) from None
    labels = getattr(dataset, "targets", None)
    labels = [int(dataset[i][1]) for i in range(count)] if labels is None else [int(label) for label in labels]
    classes = getattr(dataset, "classes", None) or [str(label) for label in range(max(labels) + 1)]
    names = [f"{split}-{index}" for index in range(count)]
    return ImageSet(f"data {name}", _Named(dataset), names, labels, [str(c) for c in classes])
