"""Keys: short hashes of everything that decides a result, so that what was computed once is found again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from learngene.recipe.sections import DataSpec, Replay, Section

KEY_LENGTH = 10
FREE_TO_CHANGE = (
    *("root", "download", "workers", "save_every", "micro_batch", "compile", "track", "recompute"),
    *("shard", "shard_teachers"),
)
"""Entries that do not change what is computed."""

_OWN_WEIGHTS = ("state", "mean", "std", "interpolation", "crop_pct")

ADDED_LATER = {
    "AncestrySpec": _OWN_WEIGHTS,
    "ModelSpec": (*_OWN_WEIGHTS, "trained_macs"),
    "FinetuneRecipe": ("architecture", "state", "baseline"),
    "DataSpec": (
        *("mask_classes", "ignore_index", "mask_values", "mask_orientation"),
        *("background", "pixel_range", "max_pixels", "match_classes", "labels"),
    ),
    "CondenseRecipe": ("features", "teachers", "knn", "depths", "shapes", "start"),
    "Distill": ("target", "replay"),
    "FeatureTarget": ("keep_bridge",),
    "Schedule": ("kind", "power"),
    "Train": ("class_weight", "sampling", "track", "recompute", "shard", "shard_teachers", "quantize"),
    "Routing": ("compared", "preset"),
    "PoolSpec": ("guide_reduction", "guide_scale"),
}
"""By section, entries that older results did not know. At its default such an entry changes nothing, so it is
left out of the hash: otherwise every result that is there already would be computed, and named, anew."""


def short_hash(content: Any) -> str:
    """A short hash of plain values and sections, of which only ``hashed_content`` counts."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _plain(value: Any) -> Any:
    return hashed_content(value) if isinstance(value, Section) else list(value)


def hashed_content(section: Section) -> dict[str, Any]:
    """What a section says about results: not where files lie, nor how many processes read them."""
    values: dict[str, Any] = section.model_dump(mode="json")
    for name in FREE_TO_CHANGE:
        values.pop(name, None)
    for dotted in later_defaults(section):
        *parents, name = dotted.split(".")
        place: Any = values
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        place.pop(name, None)
    if isinstance(section, DataSpec):
        values["source"] = section.names
    _without_exact_replay(section, values)
    return values


def _without_exact_replay(section: Section, values: dict[str, Any]) -> None:
    """Stored outputs of a teacher count as far as they are not those that it would give."""
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if isinstance(inner, Replay):
            values[name] = inner.decides
            if not inner.decides:
                del values[name]
        elif isinstance(inner, Section) and isinstance(values.get(name), dict):
            _without_exact_replay(inner, values[name])


def later_defaults(section: Section) -> set[str]:
    """The dotted names of entries that were ``ADDED_LATER`` and have their default, sections inside included."""
    out: set[str] = set()
    for name, described in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            out |= {f"{name}.{inner}" for inner in later_defaults(value)}
        elif isinstance(value, list):
            for i, each in enumerate(value):
                out |= {f"{name}.{i}.{inner}" for inner in later_defaults(each)} if isinstance(each, Section) else set()
        elif name in ADDED_LATER.get(type(section).__name__, ()) and value == described.default:
            out.add(name)
    return out
