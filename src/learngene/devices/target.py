"""What a target is: a runtime that has files of its own, writes them, runs them and says in what it computes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from learngene.system.errors import LearngeneError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

WORDS = {"f32": "fp32", "f16": "fp16", "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
WORDS |= {"i8": "int8", "u8": "int8", "uint8": "int8"}
"""What runtimes call a precision, where they say otherwise."""


@dataclass(frozen=True)
class Session:
    """A file that a runtime has loaded.

    Attributes:
        run: Images to outputs, on the CPU.
        computed_in: The precision of its matrix products, as the runtime says.
        options: What the runtime must be told at loading to do the same elsewhere.
    """

    run: Callable[[Tensor], Tensor]
    computed_in: str
    options: dict[str, str]


@dataclass(frozen=True)
class Job:
    """What shall be written.

    Attributes:
        model: A timm model, in evaluation mode on the CPU.
        example: Two images of its size.
        precision: Of ``PRECISIONS``.
        batch: The largest batch that the file must take.
        calibration: Images to find the ranges of activations on; none unless the precision is int8.
        holds: Whether a candidate agrees with the model on them.
    """

    model: Any
    example: Tensor
    precision: str
    batch: int
    calibration: Tensor | None
    holds: Callable[[Session], bool]


class Target(ABC):
    """A runtime, and the files that it loads.

    Attributes:
        name: As in ``--to``.
        suffix: Of its files.
        extra: Of this package, that brings what is imported.
        modules: That must be importable, with the distributions that they are from.
        precisions: That its files can have.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str | None]
    modules: ClassVar[dict[str, str]]
    precisions: ClassVar[tuple[str, ...]]

    @abstractmethod
    def write(self, job: Job, path: Path) -> list[str]:
        """Writes the file, which may have others beside it of the same stem; says what is special about it."""

    @abstractmethod
    def open(self, path: Path, precision: str, threads: int | None = None) -> Session:
        """Loads a file that ``write`` has written; threads are the runtime's own choice by default."""

    def refuse(self, precision: str, command: str = "export", *, here: bool = True) -> None:
        """Raises ``LearngeneError`` on behalf of a command if packages are missing, or the precision cannot be had.

        Args:
            precision: Of the file.
            command: Who is told to refuse.
            here: Whether this machine runs the file, or another one will.
        """
        for module in self.modules:
            try:
                with warnings.catch_warnings():  # of what it imports itself, which is no concern of ours
                    warnings.simplefilter("ignore")
                    import_module(module)
            except ImportError as error:
                hint = f"pip install 'learngene[{self.extra}]'"
                raise LearngeneError(f"{command}: package '{error.name or module}' is missing; {hint}") from None
        if precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise LearngeneError(f"{command}: {self.name} has no files in {precision} here; give --precision {known}")

    def versions(self) -> dict[str, str]:
        """Of the packages that write and run its files."""
        return {name: metadata.version(name) for name in dict.fromkeys([*self.modules.values(), "torch", "timm"])}


def most_common(words: Iterable[str]) -> str:
    """The precision that most of the matrix products are computed in, in our words."""
    named = [WORDS.get(word, word) for word in words]
    return Counter(named).most_common(1)[0][0] if named else "unknown"
