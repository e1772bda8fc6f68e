"""The Visual Domain Decathlon (Rebuffi et al., 2017) as it is distributed: annotations in COCO's form, and images.

``annotations/<dataset>_<split>.json`` has ``images``, ``annotations`` (one per image) and ``categories``. The archives
of the images can be unpacked in more than one way, so they are looked for in all places where they usually lie.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from learngene.data.image_files import ImageFile
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError, nearest

PREFIX = "decathlon/"
"""How the names of these data sets begin."""

DATASETS = (
    "aircraft",
    "cifar100",
    "daimlerpedcls",
    "dtd",
    "gtsrb",
    "imagenet12",
    "omniglot",
    "svhn",
    "ucf101",
    "vgg-flowers",
)
SPLITS = ("train", "val")

KIT = "decathlon-1.0"
"""The folder that the archive of the annotations makes."""

ARCHIVES = ("decathlon-1.0-data", "decathlon-1.0-data-imagenet")
"""Folders, named after the archives of the images, into which these may have been unpacked."""

WRAPPERS = ((".", KIT), (".", "data"), (".", *ARCHIVES), (".", "data"))
"""Folders around the images, from the outermost, any of which may be there or not."""

LEADING = {".", KIT, "data", *ARCHIVES}
"""Folders with which file names may begin although they are not there."""

PROBES = 16
"""Images that are looked for to find the folder they all lie in; a few may be missing."""


@dataclass(frozen=True)
class AnnotatedSplit:
    """The images of one split, in the order of their classes and names.

    Attributes:
        places: Where each lies; named by the annotations, wherever that is.
        labels: A class index per image.
        class_names: Names of the classes, in the order of the ids of their categories.
    """

    places: list[ImageFile]
    labels: list[int]
    class_names: list[str]


def dataset_of(spec: DataSpec) -> str | None:
    """The data set of the Decathlon that a data section names; None if it names something else.

    Without ``root`` a path of that name is a folder like any other.
    """
    if len(spec.sources) != 1 or not spec.sources[0].startswith(PREFIX):
        return None
    if spec.root is None and Path(spec.sources[0]).exists():
        return None
    return spec.sources[0].removeprefix(PREFIX)


def refuse_split(dataset: str, split: str) -> None:
    """Raises ``DataError`` for a split without public labels, or one that there is not."""
    if split.startswith("test"):
        raise DataError(f"data {PREFIX}{dataset}: the labels of the split '{split}' are not public; use train or val")
    if split not in SPLITS:
        raise DataError(f"data {PREFIX}{dataset}: no split '{split}'{nearest(split, SPLITS)}")


def listed(dataset: str, root: Path | None, split: str) -> AnnotatedSplit:
    """Reads the annotations of a split and finds its images.

    Args:
        dataset: One of ``DATASETS``.
        root: The folder with ``annotations/``, or the one that holds it as ``decathlon-1.0/annotations/``.
        split: ``train`` or ``val``.

    Raises:
        DataError: If there is no such data set or split; if annotations or images are missing; if the annotations are
            damaged or do not give each image one known category.
    """
    where = f"data {PREFIX}{dataset}"
    if dataset not in DATASETS:
        raise DataError(f"{where}: no such data set in the Visual Domain Decathlon{nearest(dataset, DATASETS)}")
    refuse_split(dataset, split)
    if root is None:
        raise DataError(f"{where}: set data.root to the folder that has {KIT}/ or its annotations/")
    path = _annotation_file(where, root, f"{dataset}_{split}.json")
    annotated, class_names = _read(f"{where}: annotations/{path.name}", path)
    annotated.sort(key=lambda entry: (entry[1], entry[0]))
    places = _places(where, dataset, root, [name for name, _ in annotated])
    return AnnotatedSplit(places, [label for _, label in annotated], class_names)


# -- annotations ---------------------------------------------------------------------------------------


def _annotation_file(where: str, root: Path, name: str) -> Path:
    if not root.is_dir():
        raise DataError(f"{where}: data.root {root} is no folder; give the one that has {KIT}/ or its annotations/")
    folders = [root / "annotations", root / KIT / "annotations"]
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        raise DataError(
            f"{where}: no annotations/ or {KIT}/annotations/ in {root}; unpack {KIT}-devkit.tar.gz there, or set "
            "data.root to where it is"
        )
    for folder in there:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path.name for folder in there for path in folder.glob("*.json"))
    raise DataError(f"{where}: no {name} in {there[0]}" + (nearest(name, found) if found else "; it has no .json"))


def _read(where: str, path: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """File names with labels, and names of classes; every image has exactly one annotation."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{where} is damaged, it cannot be read as JSON ({reason}); get the file again") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{where} is damaged, it has no images, annotations and categories; get the file again")
    images = _by_id(where, content, "images", "file_name", str)
    categories = _by_id(where, content, "categories", "name", (str, int))
    for name in images.values():
        if not name or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
            raise DataError(f"{where} names an image outside the data, '{name}'; get the file again")
    index = {category: label for label, category in enumerate(sorted(categories))}
    labels: dict[int, int] = {}
    for entry in _entries(where, content, "annotations", {"image_id": int, "category_id": int}):
        image, category = entry["image_id"], entry["category_id"]
        if image not in images:
            raise DataError(f"{where} has an annotation of image id {image}, which it does not list")
        if category not in index:
            raise DataError(f"{where} gives {images[image]} the category id {category}, which it does not list")
        if image in labels:
            raise DataError(f"{where} has two annotations of {images[image]}; an image has one class")
        labels[image] = index[category]
    if missing := images.keys() - labels.keys():
        raise DataError(
            f"{where} has no annotation of {len(missing)} of {len(images)} images, such as {images[min(missing)]}"
        )
    return [(name, labels[image]) for image, name in images.items()], _class_names(categories)


def _entries(
    where: str, content: Mapping[str, Any], key: str, fields: Mapping[str, type | tuple[type, ...]]
) -> list[Mapping[str, Any]]:
    """A list of the annotations whose entries have the given fields."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{where} is damaged, it has no list of {key}; get the file again")
    for number, entry in enumerate(entries):
        for name, kind in fields.items():
            if not isinstance(entry, Mapping) or not isinstance(entry.get(name), kind):
                raise DataError(f"{where} is damaged, entry {number} of {key} has no usable {name}; get the file again")
    return entries


def _by_id(
    where: str, content: Mapping[str, Any], key: str, field: str, kind: type | tuple[type, ...]
) -> dict[int, Any]:
    out: dict[int, Any] = {}
    for entry in _entries(where, content, key, {"id": int, field: kind}):
        if entry["id"] in out:
            raise DataError(f"{where} is damaged, two of its {key} have the id {entry['id']}; get the file again")
        out[entry["id"]] = entry[field]
    return out


def _class_names(categories: Mapping[int, Any]) -> list[str]:
    """Names by ascending id; classes of one name, as ImageNet's two cranes, are told apart by their id."""
    names = {category: str(categories[category]) for category in sorted(categories)}
    times = Counter(names.values())
    return [name if times[name] == 1 else f"{name} ({category})" for category, name in names.items()]


# -- images --------------------------------------------------------------------------------------------


def _places(where: str, dataset: str, root: Path, names: Sequence[str]) -> list[ImageFile]:
    """Where images lie: all below one folder, seen from which as many leading folders of their names are missing."""
    if not names:
        return []
    probes = names[:: -(-len(names) // PROBES)]
    folders = [root.joinpath(*wrappers) for wrappers in product(*WRAPPERS)]
    dropped = range(max(_leading(name) for name in probes) + 1)
    found = {
        (folder, drop): sum((folder / _tail(name, drop)).is_file() for name in probes)
        for folder in folders
        if folder.is_dir()
        for drop in dropped
    }
    folder, drop = max(found, key=lambda candidate: found[candidate])  # the first of equals: the name as it is given
    if not found[folder, drop]:
        archives = f"{KIT}-data-imagenet.tar" if dataset == "imagenet12" else f"{KIT}-data.tar.gz and its {dataset}.tar"
        raise DataError(f"{where}: no images in {root}, such as {names[0]}; unpack {archives} there")
    places = [ImageFile(str(folder / _tail(name, drop)), name) for name in names]
    missing = [place for place in places if not Path(place.path).is_file()]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} images are missing, the first is {missing[0].name} (looked for "
            f"as {missing[0].path}); unpack them again"
        )
    return places


def _leading(name: str) -> int:
    """How many folders at the beginning of a file name may not be there."""
    folders = name.split("/")[:-1]
    return next((number for number, folder in enumerate(folders) if folder not in LEADING), len(folders))


def _tail(name: str, drop: int) -> str:
    """A file name without some of its leading folders, at most those that may not be there."""
    return "/".join(name.split("/")[min(drop, _leading(name)) :])
