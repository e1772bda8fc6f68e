"""Makes timm know this package's models once timm is imported, and does not import timm for it.

``import learngene`` has to be instant, and a stitched descendant has to load through stock timm behind it. So the
registration waits for timm, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

TIMM_MODELS = "timm.models"


def register_with_timm() -> None:
    """Registers now if timm is imported, else as soon as it is."""
    if TIMM_MODELS in sys.modules:
        _register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


def _register() -> None:
    for name in ("stitched_vit", "segmenter"):
        importlib.import_module(f"learngene.vits.{name}")


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; lets timm.models be found and loaded as ever, then registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TIMM_MODELS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
