"""``docs/gene.schema.json``: the models of a gene's metadata as a JSON schema; ``make schema`` writes it.

Beside the models it says which settings a method has, and which entries come together.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from learngene.genes.metadata import Metadata
from learngene.methods import KINDS, Method
from learngene.methods.chebyshev import BASES
from learngene.methods.nested_slices import KEPT_LAYERS
from learngene.methods.stitching import DIRECTIONS
from learngene.methods.tal.ranges import RANGES
from learngene.methods.tal.sizes import SIZES
from learngene.recipe.search import Routing, Selection
from learngene.vits.shape import ARCHITECTURES, MODULE_PARAMS, ViTShape

BEYOND_TYPES: dict[str, dict[str, Any]] = {
    "architectures": {
        "description": "What is trained: the name of a range, or a list of [depth, embed_dim, num_heads].",
        "if": {"type": "string"},
        "then": {"enum": list(RANGES)},
    },
    "basis": {"enum": list(BASES)},
    "direction": {"enum": list(DIRECTIONS)},
    "kept_layers": {"enum": list(KEPT_LAYERS)},
    "layers": {"description": "Blocks of the ancestry, counted from 1, ascending.", "uniqueItems": True},
    "modules": {"items": {"enum": list(MODULE_PARAMS)}, "uniqueItems": True},
    "rows": {"description": "Narrow to wide: a width, or [embed_dim, depth, num_heads].", "minItems": 2},
    "size": {"enum": list(SIZES)},
    "tile": {"minimum": 0},
    "mlp_ratio": {"exclusiveMinimum": 0},
    "norm_eps": {"enum": list(ARCHITECTURES)},
    "num_classes": {"minimum": 0},
    "arch": {"description": "Timm's name of another architecture than the plain ViT."},
}
"""What the type of a setting, or of a field of the shape, does not say of its values."""


AS_WRITTEN = {"arch_args": {"description": "Further arguments of arch.", "type": "object", "default": {}}}
"""Fields whose values are written otherwise than they are kept."""


class _Plain(GenerateJsonSchema):
    """Without a title for every field, and with absent entries absent instead of null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


class _Recorded(_Plain):
    """Of a section of a recipe as it was written out: what was left open is null."""

    nullable_schema = GenerateJsonSchema.nullable_schema


def gene_schema() -> dict[str, Any]:
    """The schema of a gene's metadata."""
    out = Metadata.model_json_schema(schema_generator=_Plain)
    defs: dict[str, Any] = out["$defs"]
    for name, model in (("select", Selection), ("routing", Routing)):
        defs["Search"]["properties"][name] = model.model_json_schema(schema_generator=_Recorded)
    defs["Shape"] = _fields(ViTShape)
    out["properties"]["shape"] = {"$ref": "#/$defs/Shape"}
    for kind in KINDS:
        defs[kind.name] = _fields(kind)
        if "task_dim" in defs[kind.name]["properties"] and not kind.task_aware:
            defs[kind.name]["properties"]["task_dim"] = {"const": 0, "default": 0}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **out,
        "title": "Metadata of a learngene gene file",
        "allOf": [*TOGETHER, *map(_of_method, KINDS)],
    }


def _has(*entries: str, **properties: Any) -> dict[str, Any]:
    return {"required": list(entries), "properties": properties}


TOGETHER: tuple[dict[str, Any], ...] = (
    {
        "description": "A gene that was condensed.",
        "if": _has("accuracy", tasks=False),
        "then": _has(
            training=_has("epochs", "updates", "images", "seed", "recipe", recipe=_has("train", "distill")),
            accuracy=_has("images"),
            data=_has("val_images"),
        ),
    },
    {
        "description": "A hypernetwork that was tuned on tasks.",
        "if": _has("tasks"),
        "then": _has(
            "ancestry",
            "preprocessing",
            "training",
            "accuracy",
            method={"enum": [kind.name for kind in KINDS if kind.making == "hyper"]},
            training=_has(
                "epochs",
                "updates",
                "images",
                "seed",
                "recipe",
                recipe=_has("train", "hyper", "temperature", "freeze_encoder"),
            ),
        ),
    },
    {
        "description": "A gene whose blocks were searched.",
        "if": _has("search"),
        "then": _has(
            "ancestry",
            "training",
            method={"enum": [kind.name for kind in KINDS if "search" in kind.origins]},
            training=_has("epochs", "seed", "recipe"),
        ),
    },
)
"""Which entries come together."""


def _of_method(kind: type[Method]) -> dict[str, Any]:
    return {
        "if": {"properties": {"method": {"const": kind.name}}},
        "then": {
            "properties": {"settings": {"$ref": f"#/$defs/{kind.name}"}, "version": {"const": 1 + len(kind.changes)}}
        },
    }


def _fields(kind: type[Method] | type[ViTShape]) -> dict[str, Any]:
    """The fields of a method or of the shape, all of which have defaults."""
    hints, out = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        schema = TypeAdapter(hints[field.name]).json_schema()
        schema = _counted(schema, field.metadata.get("minimum", 1))
        told = {**schema, **BEYOND_TYPES.get(field.name, {}), "default": field.default}
        out[field.name] = AS_WRITTEN.get(field.name, told)
    return {"type": "object", "properties": out, "additionalProperties": False}


def _counted(schema: Any, minimum: int) -> Any:
    """The schema with integers that are counts and lists that are not empty."""
    if isinstance(schema, list):
        return [_counted(entry, minimum) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _counted(value, minimum) for key, value in schema.items()}
    if out.get("type") == "integer":
        out.setdefault("minimum", minimum)
    if out.get("type") == "array":
        out.setdefault("minItems", 1)
    return out


if __name__ == "__main__":
    print(json.dumps(gene_schema(), indent=2))
