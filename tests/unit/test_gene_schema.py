"""docs/gene.schema.json describes the metadata of real genes, and refuses what readers refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import learngene
from learngene import Ancestry
from learngene.condensing import run
from learngene.methods import METHODS
from learngene.recipe import CondenseRecipe, build_recipe
from learngene.shape import ViTShape
from pico import FAST, condense_fields, pico_gene

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "gene.schema.json").read_text())
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def faults(value: Any, schema: dict[str, Any], place: str = "$") -> Iterator[str]:
    """What is wrong with a value; knows the words of JSON Schema that the file uses."""
    if "$ref" in schema:
        yield from faults(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], place)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = [isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds]
    if kinds and not any(fits):
        yield f"{place}: not {kinds}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{place}: not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: none of {schema['enum']}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: does not match {schema['pattern']}"
    if isinstance(value, int | float):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{place}: out of range"
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            yield f"{place}: too small"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{place}: too short"
        for number, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{place}[{number}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{place}: no {key}" for key in schema.get("required", []) if key not in value)
        for key, item in value.items():
            more = known.get(key, schema.get("additionalProperties", {}))
            if more is False:
                yield f"{place}: unknown {key}"
            else:
                yield from faults(item, more if isinstance(more, dict) else {}, f"{place}.{key}")
    for part in schema.get("allOf", []):
        if not list(faults(value, part.get("if", {}), place)):
            yield from faults(value, part.get("then", part), place)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory, images: Path, ancestry_folder: Path) -> dict[str, Any]:
    """The metadata of a gene that was really condensed."""
    out = tmp_path_factory.mktemp("schema") / "run"
    recipe = build_recipe(condense_fields("in memory", images, out, train={**FAST, "epochs": 1}))
    assert isinstance(recipe, CondenseRecipe)
    run(recipe, ancestry=Ancestry(ancestry_folder), show=False)
    return learngene.load(f"{out}.safetensors").metadata


def test_a_condensed_gene_fits_the_schema(metadata: dict[str, Any]) -> None:
    assert list(faults(metadata, SCHEMA)) == []
    assert set(metadata) == set(SCHEMA["properties"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("tleg", {"modules": ["mlp"], "first_layer": 2}), ("sws", {"stages": [1, 3]}), ("sws", {"stages": [4]})],
)
def test_a_bare_gene_of_any_method_fits_the_schema(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pico_gene(name, settings).save(tmp_path / "g.safetensors")
    assert list(faults(learngene.load(tmp_path / "g.safetensors").metadata, SCHEMA)) == []


def test_the_schema_knows_every_method_and_field() -> None:
    assert set(SCHEMA["properties"]["method"]["enum"]) == set(METHODS)
    shape = SCHEMA["$defs"]["shape"]["properties"]
    assert {name: field["default"] for name, field in shape.items()} == ViTShape().to_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("method", "tlegg"),
        ("settings", {"modules": ["x"]}),
        ("settings", {"first_layer": 0}),
        ("settings", {"stages": [1]}),
        ("shape", {"depth": 0}),
        ("shape", {"dept": 3}),
        ("digest", "md5:0"),
        ("classes", [1, 2]),
        ("ancestry", "levit_384"),
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(key: str, value: Any, metadata: dict[str, Any]) -> None:
    assert list(faults({**metadata, key: value}, SCHEMA)) != []


@pytest.mark.parametrize("key", ["version", "method", "settings", "shape", "digest"])
def test_the_schema_requires_what_a_reader_needs(key: str, metadata: dict[str, Any]) -> None:
    assert f"$: no {key}" in faults({k: v for k, v in metadata.items() if k != key}, SCHEMA)
