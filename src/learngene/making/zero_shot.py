"""Images named by texts: a model whose outputs lie in a text encoder's space, and one feature per class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.class_match import renamed
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.preprocessing import fill_preprocessing
from learngene.making.arguments import Data, data_section
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError
from learngene.system.machine_faults import machine_faults
from learngene.training.loop import make_accelerator
from learngene.training.scores import Accuracy, accuracy
from learngene.vits.input_size import at_size, image_config
from learngene.vits.segmenter import Segmenter
from learngene.vits.timm_models import TimmModel

SCALE = 100.0
"""Of cosines as logits, as CLIP's trained one; only the loss depends on it."""


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder makes of the classes.

    Attributes:
        rows: (classes, width).
        names: Of the classes, in the rows' order; None if they are the data's, in its order.
        where: What messages call it.
    """

    rows: Tensor
    names: list[str] | None
    where: str

    @classmethod
    def read(cls, path: str | Path) -> TextFeatures:
        """Reads a safetensors file with one tensor, a row per class; its metadata may name them in ``classes``.

        Raises:
            LearngeneError: If the file holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                tensors, metadata = [file.get_tensor(name) for name in file.keys()], file.metadata() or {}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LearngeneError(f"{path}: cannot be read as safetensors ({str(error).splitlines()[0]})") from None
        if len(tensors) != 1 or tensors[0].ndim != 2 or not tensors[0].is_floating_point():
            held = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
            raise LearngeneError(f"{path}: must hold one tensor of numbers with a row per class, not {held}")
        return cls(tensors[0].float(), _names(path, metadata.get("classes"), len(tensors[0])), str(path)).checked()

    def checked(self) -> TextFeatures:
        """Itself; ``LearngeneError`` if a row says nothing."""
        if not bool(self.rows.isfinite().all()) or not bool(self.rows.any(1).all()):
            raise LearngeneError(f"{self.where}: a row is zero or not finite; encode the texts again")
        return self


def _names(path: str | Path, text: str | None, rows: int) -> list[str] | None:
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) != rows or not all(isinstance(name, str) for name in names):
        raise LearngeneError(f"{path}: metadata entry 'classes' must be a JSON list of {rows} names, one per row")
    return names


class TextClassifier(nn.Module):
    """A model and texts as a classifier: cosines between outputs and rows."""

    def __init__(self, model: nn.Module, texts: TextFeatures) -> None:
        """Takes the model as it is."""
        super().__init__()
        self.model, self.where = model, texts.where
        self.register_buffer("rows", F.normalize(texts.rows, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, classes) scaled cosines."""
        rows, out = self.get_buffer("rows"), self.model(images)
        if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[1] != rows.shape[1]:
            shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else "several tensors"
            raise LearngeneError(
                f"{self.where} has texts of {rows.shape[1]} numbers, but the model's output of an image is {shape}; "
                "give a model in the texts' space, such as a descendant of `expand --bridge`"
            )
        return SCALE * F.normalize(out.float(), dim=1) @ rows.T


def zero_shot(
    model: TimmModel,
    data: DataSpec | Data,
    texts: TextFeatures | Tensor | str | Path,
    *,
    split: str = "val",
    precision: str = "fp32",
) -> Accuracy:
    """Judges a model by texts: an image is of the class whose text is most similar to the model's output, by cosine.

    Args:
        model: A descendant with a bridge for its head, or any timm model whose output lies in the texts' space, such as
            a SigLIP's or CLIP's image tower; it stays as it is.
        data: Where labelled images are; the model's own normalisation is used unless the section says otherwise.
        texts: Features, or their safetensors file.
        split: ``val`` or ``train``.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.

    Returns:
        Accuracies; the loss is that of 100 times the cosines.

    Raises:
        LearngeneError: If the texts are not those of the data's classes, or data, model and texts do not fit together.
    """
    if isinstance(model, Segmenter):
        raise LearngeneError("the model has a segmentation head; texts need a model with one vector an image")
    if isinstance(texts, Tensor):
        texts = TextFeatures(texts.float(), None, "text features").checked()
    texts = texts if isinstance(texts, TextFeatures) else TextFeatures.read(texts)
    spec = data_section(data)
    images = _numbered(open_split(spec, split, None), texts, spec)
    model, chans, size = at_size(model, spec.img_size)
    loader = eval_loader(images, fill_preprocessing(spec, image_config(model)), img_size=size, in_chans=chans)
    with machine_faults():
        score = accuracy(TextClassifier(model, texts).to(make_accelerator().device), loader, precision=precision)
    model.to("cpu")
    return score


def _numbered(images: ImageSet, texts: TextFeatures, spec: DataSpec) -> ImageSet:
    """The images with their classes numbered as the texts."""
    if images.segmentation:
        raise LearngeneError(f"{images.where}: has masks; texts name whole images")
    if texts.names is not None and images.named and spec.match_classes == "name":
        return renamed(images, texts.names, f"{texts.where} has not the classes of {images.where}")
    if len(texts.rows) != len(images.class_names):
        raise LearngeneError(
            f"{texts.where} has {len(texts.rows)} texts but {images.where} {len(images.class_names)} classes; give one "
            "per class, or name them in the file's metadata"
        )
    return images
