"""Data sets by timm's names: torchvision's, Hugging Face's and others that timm can index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from learngene.data.images import ImageSet
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError

STREAMED = "hfids/"
TIMM_PREFIXES = ("torch/", "hfds/", STREAMED, "tfds/")
"""How the names of timm's data sets begin."""


class _TimmImages:
    """Reads a timm data set; its items are (image, label).

    timm's own class for Hugging Face's sets converts images without regard to bits and transparency, and gives the
    next image in place of one that it cannot read; so what it reads from is asked instead.
    """

    def __init__(self, dataset: Any) -> None:
        self.items = getattr(dataset, "reader", dataset)
        if getattr(dataset, "loader", None) is not None:  # torchvision's, which converts too
            dataset.loader = str

    def __call__(self, index: int) -> Image.Image:
        image = self.items[index][0]
        return image if isinstance(image, Image.Image) else Image.open(image)

    def label(self, index: int) -> int:
        """The class of an image, which is not opened."""
        return int(self.items[index][1])


def open_timm_set(spec: DataSpec, name: str, split: str) -> ImageSet:
    """Opens a split of a data set by timm's name.

    Raises:
        DataError: If timm cannot open it, or it gives no image by its index.
    """
    if name.startswith(STREAMED):
        raise DataError(
            f"data {name}: a stream has no order of its own making; write it into shards once, with "
            f"`learngene index {name} --out FOLDER`, and give wds/FOLDER"
        )
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
    read = _TimmImages(dataset)
    try:
        count = len(dataset)
        read.label(0)
    except (NotImplementedError, TypeError, KeyError) as error:  # what streaming sets raise when asked for an index
        raise DataError(
            f"data {name}: needs random access, which this data set does not give ({error}); use a map-style one"
        ) from None
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise unusable(error) from None
    labels = getattr(dataset, "targets", None)
    if labels is None and hasattr(read.items, "iter_targets"):  # without the images beside them
        labels = read.items.iter_targets()
    labels = [read.label(i) for i in range(count)] if labels is None else [int(label) for label in labels]
    known = getattr(dataset, "classes", None) or _reader_classes(dataset, labels)
    classes = [str(label) for label in known or range(max(labels) + 1)]
    names = [f"{split}-{index}" for index in range(count)]
    return ImageSet(f"data {name}", read, names, labels, classes, named=bool(known))


def _reader_classes(dataset: Any, labels: Sequence[int]) -> list[str] | None:
    """The names of classes that timm's reader of a data set knows; None if it does not know all of them."""
    index: dict[str, int] = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    whole = sorted(index.values()) == list(range(len(index))) and len(index) > max(labels)
    return sorted(index, key=index.__getitem__) if whole else None
