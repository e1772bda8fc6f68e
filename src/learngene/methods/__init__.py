"""The registry of methods: what each is called, which paper it is, and which shapes it can make.

A method is a small frozen object with no tensors of its own. It says which tensors a gene of a given auxiliary
shape holds and how the layers of any other shape follow from them. Nothing here imports torch, so that listing
methods and planning shapes stay instant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from learngene.errors import LearngeneError, nearest, refuse_unknown
from learngene.methods.sws import SWS
from learngene.methods.tleg import TLEG

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from learngene.shape import ViTShape


@runtime_checkable
class Method(Protocol):
    """What a learngene method must say about itself. Its fields are its settings, fixed when a gene is made."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    distillation: ClassVar[str]

    @property
    def options(self) -> Mapping[str, str]:
        """Choices that may differ at every expansion, each with a line of explanation."""
        ...

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Raises ``ShapeError`` if no gene can be condensed at this auxiliary shape."""
        ...

    def refuse(self, auxiliary: ViTShape, shape: ViTShape, **options: Any) -> None:
        """Raises ``ShapeError`` if a gene with this auxiliary shape cannot make ``shape``, or an option is wrong."""
        ...

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Name and shape of the tensors the gene holds for its layers; the ordinary parts are not listed."""
        ...

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """The start value of one such tensor before condensing."""
        ...

    def describe(self, auxiliary: ViTShape, shape: ViTShape, **options: Any) -> list[str]:
        """One line per layer of ``shape``: which of the gene's tensors feed it."""
        ...

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape, **options: Any
    ) -> dict[str, Tensor]:
        """The layers of ``shape`` as a differentiable function of the gene's tensors, under timm's names."""
        ...


METHODS: dict[str, type[Method]] = {"tleg": TLEG, "sws": SWS}


def method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Builds a method from its name and settings.

    Args:
        name: A key of ``METHODS``.
        settings: The method's fields that differ from their defaults.

    Raises:
        LearngeneError: If the name, a setting or its value is not known.
    """
    if name not in METHODS:
        raise LearngeneError(f"unknown method '{name}'{nearest(name, METHODS)}")
    kind = METHODS[name]
    settings = dict(settings or {})
    refuse_unknown(settings, default_settings(kind), f"settings of method '{name}'")
    return kind(**settings)


def default_settings(kind: type[Method] | Method) -> dict[str, Any]:
    """The settings of a method class with their defaults, or those of a method object."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    if isinstance(kind, type):
        return {field.name: field.default for field in fields}
    return {field.name: getattr(kind, field.name) for field in fields}
