"""The registry of methods: what each is called, which paper it is, and which shapes it can make.

Nothing here imports torch, so that listing methods and planning shapes stay instant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from learngene.methods.any_size import AnySize
from learngene.methods.base import Method
from learngene.methods.chebyshev import Chebyshev
from learngene.methods.fine import FINE
from learngene.methods.lets import LeTs
from learngene.methods.lsamd import LSAMD
from learngene.methods.mini_init import MiniInit
from learngene.methods.nested_slices import NestedSlices
from learngene.methods.pool import Pool
from learngene.methods.pre_fin import Distilled, PreFin
from learngene.methods.scratch import Scratch
from learngene.methods.share_init import ShareInit
from learngene.methods.sn_net import SNNet
from learngene.methods.sweet import SWEET
from learngene.methods.sws import SWS, SimpleLG
from learngene.methods.tal import GHN3, TAL, LoGAH
from learngene.methods.tleg import TLEG
from learngene.methods.vanilla_lg import VanillaLG
from learngene.methods.wave import WAVE
from learngene.methods.weight_selection import WeightSelection
from learngene.methods.weight_subcloning import WeightSubcloning
from learngene.system.errors import LearngeneError, nearest, refuse_unknown

KINDS: tuple[type[Method], ...] = (
    TLEG,
    SWS,
    Pool,
    SNNet,
    LSAMD,
    Chebyshev,
    FINE,
    LeTs,
    TAL,
    LoGAH,
    GHN3,
    WAVE,
    SWEET,
    AnySize,
    SimpleLG,
    VanillaLG,
    ShareInit,
    MiniInit,
    WeightSelection,
    WeightSubcloning,
    NestedSlices,
    PreFin,
    Distilled,
    Scratch,
)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in KINDS}


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
    fields = dataclasses.fields(kind)
    if isinstance(kind, type):
        return {field.name: field.default for field in fields}
    return {field.name: getattr(kind, field.name) for field in fields}
