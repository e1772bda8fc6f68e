"""Models by timm's name, with weights from timm's cache or the network."""

from __future__ import annotations

import contextlib
import difflib
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from learngene.system.errors import LearngeneError
from learngene.vits.layout import SIZES

if TYPE_CHECKING:
    from torch import Tensor

TimmModel = Any
"""A timm classifier, with ``pretrained_cfg``, ``num_classes`` and ``reset_classifier``; timm has no type for it."""

ANSWER = 4.0
"""Seconds that the hub has to answer. The hub's own client tries for most of a minute, per file."""


def timm_model(name: str, pretrained: bool, arguments: Mapping[str, Any], *, seed: int = 0) -> TimmModel:
    """A timm model by name.

    Args:
        name: timm's name, with its tag to pin the weights.
        pretrained: Whether to load its weights, from timm's cache or the network. If the hub does not answer within
            seconds, the cache alone is looked at.
        arguments: Arguments for ``timm.create_model``.
        seed: Of whatever is not loaded: all weights, or a head with another number of classes.

    Raises:
        LearngeneError: If there is no such model, or its weights cannot be had.
    """
    import timm
    import torch
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without a network it prints a line per retry; one line from us is enough
    architecture = name.split(":", 1)[-1] if ":" in name else name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        if Path(name).is_file():
            raise LearngeneError(
                f"{name}: a file, but no model; give a checkpoint file (.safetensors, .pth, .pt, .ckpt, .pth.tar, "
                ".bin), a descendant folder or a timm name"
            )
        raise LearngeneError(f"'{name}' is no file or folder, and no timm model{_nearest_model(architecture)}")
    try:
        with _cache_alone_without_network(pretrained), torch.random.fork_rng():
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        refuse_argument(architecture, error)
        reason = shorten((str(error).splitlines() or [type(error).__name__])[0], 160, placeholder=" ...")
        if not pretrained:
            raise LearngeneError(f"timm model {name}: cannot be loaded ({reason})") from None
        reason = "the hub does not answer" if isinstance(error, LocalEntryNotFoundError) else reason
        raise LearngeneError(
            f"timm model {name}: the network or timm's cache must hold its weights ({reason}); pretrained=false makes "
            "it with random ones"
        ) from None


@contextlib.contextmanager
def _cache_alone_without_network(wanted: bool) -> Iterator[None]:
    """Puts the hub's client into its offline mode for the block if the hub does not answer."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if wanted and not before and not _hub_answers():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever the client raises, there was no answer
            get_session().head(constants.ENDPOINT, timeout=ANSWER)
            answered.set()

    # A thread, because looking up the host's name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    return answered.is_set()


def filled(
    architecture: str, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], cfg: Mapping[str, Any]
) -> TimmModel:
    """A timm model with given weights: timm turns their names into its own, and refuses what is missing or too much.

    Its ``pretrained_cfg`` says nothing of the weights that timm knows for the architecture: neither tag nor address.

    Args:
        architecture: timm's name.
        tensors: The weights, under timm's names or those of the code that the architecture is from.
        arguments: Arguments for ``timm.create_model``.
        cfg: What ``pretrained_cfg`` is to say. If its ``num_classes`` is not that of the arguments, the head is fresh.
    """
    import timm
    import torch

    nowhere = {"url": "", "file": "", "hf_hub_id": "", "hf_hub_filename": "", "source": ""}
    overlay = {"tag": "", "label_offset": 0, **nowhere, "state_dict": dict(tensors), **cfg}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key != "state_dict"}
    model.default_cfg = model.pretrained_cfg
    return model


def refuse_unknown_architecture(name: str) -> None:
    """Raises ``LearngeneError`` if timm has no such architecture; the message names the nearest."""
    import timm

    if not timm.is_model(name):
        raise LearngeneError(f"'{name}' is no timm model{_nearest_model(name)}")


def refuse_argument(name: str, error: Exception) -> None:
    """Raises ``LearngeneError`` if an error of timm's is about an argument that a model does not have."""
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        close = difflib.get_close_matches(unknown[1], SIZES, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise LearngeneError(f"model_args: timm's {name} takes no argument '{unknown[1]}'{hint}") from None


def _nearest_model(name: str) -> str:
    """The closest name that timm knows, as a continuation of a sentence; nothing if none is close."""
    import timm

    match = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""
