"""The images that a model takes: one answer for training, evaluation, export and counting."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

from learngene.system.errors import LearngeneError
from learngene.vits.timm_models import TimmModel


def input_size(model: TimmModel) -> tuple[int, int, int]:
    """Channels, height and width in pixels of the images that a timm model was built for.

    ``pretrained_cfg`` says for which its weights were trained, which is another size once ``img_size``, ``in_chans`` or
    ``set_input_size`` was used. Of a model that takes images of any size, the size is the recommended one.
    """
    from timm.models import get_model_input_config

    chans, height, width = get_model_input_config(model)["input_size"]
    return int(chans), int(height), int(width)


def is_fixed_size(name: str) -> bool:
    """Whether a timm model of that name takes images of one size alone, which ``img_size`` then says."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    return bool(cfg and cfg.fixed_input_size)


def image_config(model: TimmModel) -> dict[str, Any]:
    """How images are prepared for a timm model: ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct``.

    Of a model of grey images whose weights come from colour, or of other channels than three, mean and deviation are
    the averages over the colours.
    """
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    size = input_size(model)
    out = {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    for key in ("mean", "std"):
        out[key] = for_channels(out[key], size[0])
    return {"input_size": size, **out}


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Means or deviations of so many channels: the values themselves, or else their average for every channel."""
    return tuple(values) if len(values) == channels else (statistics.fmean(values),) * channels


def square_size(model: TimmModel, img_size: int | None = None) -> tuple[int, int]:
    """Channels and side of the square images that a model gets.

    Args:
        model: A timm model.
        img_size: Side in pixels, if it is not the model's own.

    Raises:
        LearngeneError: If the model takes other images than square ones in grey or colour.
    """
    chans, height, width = input_size(model)
    refuse_unread(chans)
    if img_size is None and height != width:
        raise LearngeneError(f"the model takes images of {height} x {width} px; set data.img_size, for square ones")
    return chans, img_size or height


def at_size(model: TimmModel, img_size: int | None) -> tuple[TimmModel, int, int]:
    """A model as it takes images of a size, with its channels and the side: itself, or a resized copy.

    Raises:
        LearngeneError: As ``square_size`` and ``resize``.
    """
    chans, size = square_size(model, img_size)
    if input_size(model)[1:] != (size, size):
        model = copy.deepcopy(model)
        resize(model, size)
    return model, chans, size


def refuse_unread(chans: int) -> None:
    """Raises ``LearngeneError`` if images of so many channels are never read: transparency is not a channel here."""
    if chans not in (1, 3):
        raise LearngeneError(f"the model takes images of {chans} channels; images are read in colour (3) or grey (1)")


def resize(model: TimmModel, img_size: int | None) -> None:
    """Makes a timm model take square images of another size, in place; position embeddings are resampled.

    Args:
        model: A timm model, or a segmenter.
        img_size: Side in pixels; None leaves the model as it is.

    Raises:
        LearngeneError: If the model cannot take such images.
    """
    import torch

    chans, *own = input_size(model)
    if img_size is None:
        return
    _refuse_border(model, img_size)
    if own == [img_size, img_size]:
        return
    training = model.training
    try:
        if hasattr(model, "set_input_size"):
            with warnings.catch_warnings():  # of what timm's code will have to change one day
                warnings.simplefilter("ignore")
                model.set_input_size(img_size=(img_size, img_size))
        with torch.no_grad():  # not inference mode: what a model keeps of its first images, it trains with
            model.eval()(torch.zeros(1, chans, img_size, img_size, device=next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise LearngeneError(
            f"data.img_size {img_size}: the model takes images of {own[0]} x {own[1]} px, and not of this size "
            f"({reason}); leave data.img_size out"
        ) from None
    finally:
        model.train(training)
    if "shape" in (record := getattr(model, "learngene", {})):
        record["shape"]["img_size"] = img_size


def _refuse_border(model: TimmModel, img_size: int) -> None:
    """Raises ``LearngeneError`` if patches would leave out the right and lower border of images of a size."""
    embed = getattr(getattr(model, "backbone", model), "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    side = patch if isinstance(patch, int) else max(patch)
    if img_size % side:
        below = img_size // side * side
        near = f"{below} or {below + side}" if below else side
        raise LearngeneError(f"data.img_size {img_size} is no multiple of the model's patches of {side} px; use {near}")
