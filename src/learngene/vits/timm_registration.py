"""Makes timm know this package's models once timm is imported, and does not import timm for it.

``import learngene`` has to be instant, and a stitched descendant has to load through stock timm behind it. So the
registration waits for timm, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from learngene.system.import_hooks import around_import

TIMM_MODELS = "timm.models"


def register_with_timm() -> None:
    """Registers now if timm is imported, else as soon as it is."""
    if TIMM_MODELS in sys.modules:
        _register()
    else:
        around_import(TIMM_MODELS, _loaded)


def _loaded(load: Callable[[], None]) -> None:
    load()
    _register()


def _register() -> None:
    for name in ("stitched_vit", "segmenter"):
        importlib.import_module(f"learngene.vits.{name}")
