"""What importing somebody else's packages brings along."""

import subprocess
import sys
from types import ModuleType

import pytest

from learngene.system.import_hooks import around_import
from learngene.vits import without_compiler as file
from learngene.vits.without_compiler import (
    COMPILER,
    DECORATOR,
    FUNCTION,
    TIMM_FILE,
    with_late_decorator,
    without_compiler,
)


def test_a_module_is_loaded_within_a_function_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    monkeypatch.setattr("builtins.print", lambda *said: None)  # which that module does
    told: list[str] = []

    def around(load: object) -> None:
        told.append("before")
        assert callable(load)
        load()
        told.append("behind")

    around_import("this", around)
    around_import("this", around)
    import this

    assert told == ["before", "behind"]
    assert this.d["N"] == "A"
    around_import("this", around)  # is loaded: nothing waits for it
    assert not [each for each in sys.meta_path if type(each).__name__ == "_Hook" and each.name == "this"]


def test_the_compiler_is_asked_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, COMPILER, raising=False)
    real = ModuleType(COMPILER)
    vars(real).update({FUNCTION: lambda device: device == "cuda", "other": 5})
    asked: list[str] = []
    monkeypatch.setattr(file, "import_module", lambda name: asked.append(name) or real)
    taken: dict[str, object] = {}
    without_compiler(lambda: exec(f"from {COMPILER} import {FUNCTION}", taken))
    assert asked == []
    assert COMPILER not in sys.modules
    supported = taken[FUNCTION]
    assert callable(supported)
    assert supported("cuda")
    assert not supported("cpu")
    without_compiler(lambda: exec(f"from {COMPILER} import other", taken))  # whatever else is taken is the compiler's
    assert taken["other"] == 5
    monkeypatch.setitem(sys.modules, COMPILER, real)
    without_compiler(lambda: exec(f"from {COMPILER} import {FUNCTION}", taken))
    assert taken[FUNCTION] is vars(real)[FUNCTION]


def test_a_decorator_waits_for_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, COMPILER, raising=False)
    monkeypatch.setitem(sys.modules, TIMM_FILE, ModuleType(TIMM_FILE))
    with_late_decorator(lambda: None)
    decorate = vars(sys.modules[TIMM_FILE])[DECORATOR]
    assert decorate(lambda: 3).__wrapped__() == 3
    assert COMPILER not in sys.modules


@pytest.mark.slow
def test_timm_is_imported_without_the_compiler() -> None:
    program = (
        "import sys, learngene, timm, torch, torchvision, learngene.shipping.ship;"
        "assert 'torch._dynamo' not in sys.modules;"
        "boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])];"
        "print(tuple(torchvision.ops.roi_align(torch.ones(1, 3, 8, 8), boxes, 2).shape));"
        "import torch._dynamo.utils; assert torch._dynamo.utils.is_compile_supported('cpu') is not None"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 3, 2, 2)\n", done.stderr
