"""The classes of images and those of a model, or of another split: the same, in another order, fewer, or others.

A model is never judged on classes as if they were others that happen to stand in the same places. Images are numbered
as the model's outputs are; the model stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from learngene.data.images import ImageSet
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from learngene.vits.class_names import class_names, places, some

BY_PLACE = "if they are the same in the same order under other names, set data.match_classes=place"


def fits(images: ImageSet, model: Any, spec: DataSpec) -> bool:
    """Whether a model's head can be trained on: it has as many outputs, for classes of the same names in any order."""
    names = _names(images, model, spec)
    same_number = model.num_classes == len(images.class_names)
    return same_number and (names is None or places(images.class_names, names) is not None)


def numbered(images: ImageSet, model: Any, spec: DataSpec) -> ImageSet:
    """The images with their classes numbered as the outputs of a model.

    Args:
        images: They may lack some of the model's classes.
        model: A timm model.
        spec: How classes are found: by name, or by place.

    Raises:
        DataError: If a class is none of the model's; without names, if there are not as many.
    """
    if model.num_classes == 0:
        raise DataError(
            "the model has no head for classes; judge its features with eval --knn, --linear or --teacher (in Python "
            "probe), or fine-tune it first"
        )
    names = _names(images, model, spec)
    if names is not None:
        return renamed(images, names, f"the model was trained on other classes than {images.where} has", BY_PLACE)
    own, count = images.class_names, model.num_classes
    if len(own) == count:
        known = None if images.named else class_names(model)
        return images.numbered(known, range(count)) if known else images
    if spec.match_classes == "place" and len(own) < count:
        known = class_names(model) or [str(number) for number in range(count)]
        return images.numbered([*own, *known[len(own) :]], range(len(own)))
    raise DataError(
        f"the model has {count} classes but {images.where} has {len(own)}; fine-tune it on the data, or "
        f"expand its gene with --num-classes {len(own)} and fine-tune that"
    )


def of_split(images: ImageSet, train: ImageSet) -> ImageSet:
    """The images of another split with their classes numbered as those of the training images; they may lack some.

    Raises:
        DataError: If they have a class that the training images lack.
    """
    if images.named and train.named:
        return renamed(images, train.class_names, f"{images.where}: a class is in the validation images only")
    if (more := len(images.class_names)) > (count := len(train.class_names)):
        raise DataError(f"{images.where}: the validation images have {more} classes but the training images {count}")
    return dataclasses.replace(images, class_names=train.class_names, named=train.named)


def renamed(images: ImageSet, names: Sequence[str], fault: str, remedy: str = "") -> ImageSet:
    """The images with their classes numbered as ``names`` stand.

    Args:
        images: They may lack some of the names.
        names: Of all classes, in order.
        fault: What to say if a class is not among them.
        remedy: What would be right then.

    Raises:
        DataError: If a class is not among the names.
    """
    found = places(images.class_names, names)
    if found is None:
        other = next((name for name in images.class_names if places([name], names) is None), images.class_names[0])
        raise DataError(f"{fault}: '{other}' is none of {some(names)}{f'; {remedy}' if remedy else ''}")
    return images.numbered(list(names), found)


def _names(images: ImageSet, model: Any, spec: DataSpec) -> list[str] | None:
    """The names of a model's classes, if they are to be looked at."""
    if not images.named or spec.match_classes == "place":
        return None
    names = class_names(model)
    # A segmenter that was trained on masks without names has the numbers of its classes in their place.
    counted = images.segmentation and names == [str(number) for number in range(model.num_classes)]
    return None if counted else names
