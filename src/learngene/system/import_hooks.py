"""What is to happen around the import of somebody else's module, once that module is imported, and not before."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def around_import(name: str, around: Callable[[Callable[[], None]], None]) -> None:
    """Has a module loaded by a function, unless it is loaded already.

    Args:
        name: Full name of the module.
        around: Given what loads the module as ever, calls that; before and behind it does what it likes.
    """
    if name not in sys.modules and not any(isinstance(each, _Hook) and each.name == name for each in sys.meta_path):
        sys.meta_path.insert(0, _Hook(name, around))


class _Hook(importlib.abc.MetaPathFinder):
    """Finds nothing itself; lets one module be found as ever, and loaded within a function."""

    def __init__(self, name: str, around: Callable[[Callable[[], None]], None]) -> None:
        self.name, self.around = name, around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.around(lambda: execute(module))  # type: ignore[method-assign]
        return spec
