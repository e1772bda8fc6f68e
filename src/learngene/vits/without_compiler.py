"""Lets torchvision and timm be imported without torch's compiler, which takes more CPU time than the rest of them.

One file of torchvision, which everything that imports timm loads, takes a function from the compiler that it calls only
on other devices than CPUs. While that file is loaded, a stand-in has the function, and asks the compiler when it is
called. Some methods of one of timm's models tell the compiler to leave them alone; they do so when they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from learngene.system.import_hooks import around_import

COMPILER, FUNCTION = "torch._dynamo.utils", "is_compile_supported"
TIMM_FILE, DECORATOR = "timm.layers.typing", "disable_compiler"


def keep_compiler_out() -> None:
    """Has torchvision and timm leave the compiler alone, if they are not loaded yet."""
    around_import("torchvision.ops.roi_align", without_compiler)
    around_import(TIMM_FILE, with_late_decorator)


def with_late_decorator(load: Callable[[], None]) -> None:
    """Loads the file that has ``DECORATOR``, and puts torch's own one there that waits for the first call."""
    load()
    import torch

    if COMPILER not in sys.modules and hasattr(torch, "_disable_dynamo"):
        setattr(sys.modules[TIMM_FILE], DECORATOR, torch._disable_dynamo)


def without_compiler(load: Callable[[], None]) -> None:
    """Loads a file that takes ``FUNCTION`` from the compiler, with a stand-in unless the compiler is loaded."""
    if COMPILER in sys.modules:
        load()
        return
    stand_in = ModuleType(COMPILER)

    def compiler() -> ModuleType:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return import_module(COMPILER)

    def other(name: str) -> Any:
        if name.startswith("__"):  # which importing asks every module for
            raise AttributeError(name)
        return getattr(compiler(), name)

    vars(stand_in).update({FUNCTION: lambda *given: getattr(compiler(), FUNCTION)(*given), "__getattr__": other})
    sys.modules[COMPILER] = stand_in
    try:
        load()
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
