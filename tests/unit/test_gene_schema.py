"""docs/gene.schema.json describes the metadata of real genes, and refuses what readers refuse."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import learngene
from learngene import Ancestry
from learngene.genes.gene_file import check_metadata
from learngene.genes.metadata_schema import gene_schema
from learngene.making.condense import run
from learngene.making.extract import extract
from learngene.making.search.make import run as run_search
from learngene.methods import METHODS
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.system.errors import GeneFileError
from learngene.vits.shape import ViTShape
from pico import FAST, condense_fields, make_ancestry, make_images, pico_gene, pico_shape
from searches import make_sets, search_fields, search_recipe

FILE = Path(__file__).parents[2] / "docs" / "gene.schema.json"
SCHEMA: dict[str, Any] = json.loads(FILE.read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
HYPER = ("tal", "logah", "ghn3")
OF_FEATURES = {"agreement", "teachers", "bridge"}
"""Entries of genes that learnt features."""
ELSEWHERE = OF_FEATURES | {"layout", "shapes", "start"}
"""Entries that genes of plain ViTs condensed on logits at one shape have not."""


def faults(value: Any) -> list[str]:
    """What the schema refuses of a gene's metadata."""
    as_json = json.loads(json.dumps(value))  # a schema is of JSON, which has no tuples
    return [error.message for error in VALIDATOR.iter_errors(as_json)]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory, images: Path, ancestry_folder: Path) -> dict[str, Any]:
    """The metadata of a gene that was really condensed."""
    out = tmp_path_factory.mktemp("schema") / "run"
    recipe = build_recipe(condense_fields("in memory", images, out, train={**FAST, "epochs": 1}))
    assert isinstance(recipe, CondenseRecipe)
    run(recipe, ancestry=Ancestry(ancestry_folder), show=False)
    return learngene.load(f"{out}.safetensors").metadata


def test_a_condensed_gene_fits_the_schema(metadata: dict[str, Any]) -> None:
    assert faults(metadata) == []
    assert set(metadata) == set(SCHEMA["properties"]) - ELSEWHERE - {"anchors", "paths", "search", "tasks"}


def test_a_gene_of_features_fits_the_schema(images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    features = {"bridge": "linear", "keep_bridge": True}
    changes = {"distill": {"target": "features"}, "shape": pico_shape(num_classes=0).to_dict(), "features": features}
    changes |= {
        "teachers": [{"source": str(ancestry_folder)}],
        "train": {**FAST, "epochs": 1},
        "shapes": [{"depth": [2, 4]}],
    }
    recipe = build_recipe(condense_fields(ancestry_folder, images, tmp_path / "run", **changes))
    assert isinstance(recipe, CondenseRecipe)
    run(recipe, show=False)
    metadata = learngene.load(tmp_path / "run.safetensors").metadata
    assert faults(metadata) == []
    assert metadata.keys() >= OF_FEATURES | {"shapes"}
    assert not {"accuracy", "classes"} & set(metadata)


@pytest.mark.parametrize(
    ("method", "pool"), [("pool", {"points": [1, 1], "tune": {"epochs": 1}}), ("sn-net", None)], ids=["pool", "sn-net"]
)
def test_a_pool_fits_the_schema(
    method: str, pool: dict[str, Any] | None, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    """With a teacher in both, and three epochs of training in all."""
    anchors = [{"source": str(make_ancestry(tmp_path / f"{w}", embed_dim=w, num_heads=w // 4))} for w in (8, 16)]
    changes: dict[str, Any] = {
        "method": method,
        "settings": {"rows": [[8, 2, 2], [16, 2, 4]]},
        "shape": pico_shape(depth=2, num_heads=4).to_dict(),
        "train": {**FAST, "epochs": 1},
        **({"anchors": anchors} if method == "sn-net" else {}),
        **({"pool": pool} if pool else {}),
    }
    recipe = build_recipe(condense_fields(ancestry_folder, images, tmp_path / "run", **changes))
    assert isinstance(recipe, CondenseRecipe)
    run(recipe, show=False)
    metadata = learngene.load(tmp_path / "run.safetensors").metadata
    assert faults(metadata) == []
    assert set(SCHEMA["properties"]) - ELSEWHERE - set(metadata) == {
        "search",
        "tasks",
        *(() if method == "sn-net" else ("anchors",)),
    }
    assert [path["blocks"] for path in metadata["paths"]] == ["2+0", "0+2", "1+2", "1+1", "2+2", "2+1"]
    assert "pool" in metadata["training"]["recipe"]
    for wrong in ({"path": "8-2"}, {"blocks": "2"}, {"top1": 101}):
        assert faults({**metadata, "paths": [{**metadata["paths"][0], **wrong}]}) != []
    assert faults({**metadata, "anchors": [{"name": "x"}] * 2}) != []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tleg", {"modules": ["mlp"], "first_layer": 2}),
        ("sws", {"stages": [1, 3]}),
        ("sws", {"stages": [4]}),
        ("vanilla-lg", {"last": 1, "stem": True}),
        ("lsamd", {"layers": [1, 3, 4]}),
        ("lsamd", {"layers": [2], "stem": False}),
        ("mini-init", {"blocks": 2}),
        ("lets", {"width": 8, "sources": 2}),
        ("lets", {"width": 8, "sources": 4, "share": 1, "rank": 4}),
        ("weight-selection", {"head": False}),
        ("pool", {"rows": [8, 16], "direction": "down"}),
        ("pool", {"rows": [8, [16, 4, 2]], "nearest": False, "max_stitches": 2, "final_norm": False}),
        ("sn-net", {"rows": [[8, 2, 1], 16]}),
        ("tal", {"size": "pico", "task_dim": 8, "architectures": [[1, 16, 2]], "layout": "transposed"}),
        ("logah", {"size": "pico", "architectures": "laptop", "attention_node": True}),
        ("ghn3", {"size": "pico", "max_shape": 8, "vocabulary": 10}),
        *(
            (name, {})
            for name in METHODS
            if name not in ("sws", "mini-init", "pool", "sn-net", "lsamd", "lets", *HYPER)
        ),
    ],
)
def test_a_bare_gene_of_any_method_fits_the_schema(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pico_gene(name, settings, **({"class_token": True} if name in HYPER else {})).save(tmp_path / "g.safetensors")
    assert faults(learngene.load(tmp_path / "g.safetensors").metadata) == []


def test_the_file_is_what_the_models_say() -> None:
    assert FILE.read_text() == json.dumps(gene_schema(), indent=2) + "\n", "make schema writes it"


def test_the_schema_has_every_method_and_field_with_its_default() -> None:
    """Against a table by hand, of one field per kind of type."""
    properties = {name: model["properties"] for name, model in SCHEMA["$defs"].items() if "properties" in model}
    assert set(SCHEMA["properties"]["method"]["enum"]) == set(METHODS) <= set(properties)
    for name, kind in {**METHODS, "Shape": ViTShape}.items():
        assert set(properties[name]) == {field.name for field in dataclasses.fields(kind)}, name
    count = {"type": "integer", "minimum": 1}
    expected = {
        ("Shape", "depth"): {**count, "default": 12},
        ("Shape", "num_classes"): {"type": "integer", "minimum": 0, "default": 1000},
        ("Shape", "norm_eps"): {"type": "number", "enum": [1e-6, 1e-5], "default": 1e-6},
        ("sws", "stages"): {"type": "array", "items": count, "minItems": 1, "default": [3, 3, 4, 3, 3]},
        ("pool", "direction"): {"type": "string", "enum": ["up", "down"], "default": "up"},
        ("tal", "task_dim"): {**count, "default": 768},
        ("logah", "task_dim"): {"const": 0, "default": 0},
    }
    assert {(kind, field): properties[kind][field] for kind, field in expected} == expected
    versions = {
        part["if"]["properties"]["method"]["const"]: part["then"]["properties"]["version"]["const"]
        for part in SCHEMA["allOf"]
        if "method" in part["if"]["properties"]
    }
    assert {name for name, version in versions.items() if version == 2} == {"tal", "logah", "ghn3"}


def test_a_gene_condensed_without_ancestry_fits_the_schema(images: Path, tmp_path: Path) -> None:
    fields = condense_fields("none", images, tmp_path / "run", method="share-init", train={**FAST, "epochs": 1})
    recipe = build_recipe({**fields, "ancestry": None})
    assert isinstance(recipe, CondenseRecipe)
    run(recipe, show=False)
    metadata = learngene.load(tmp_path / "run.safetensors").metadata
    assert metadata["ancestry"] == {}
    assert faults(metadata) == []


def test_an_extracted_gene_fits_the_schema(ancestry_folder: Path, tmp_path: Path) -> None:
    extract(ancestry_folder, method="vanilla-lg", settings={"last": 2}).save(tmp_path / "g.safetensors")
    metadata = learngene.load(tmp_path / "g.safetensors").metadata
    assert faults(metadata) == []
    assert set(SCHEMA["properties"]) - ELSEWHERE - set(metadata) == {
        "data", "training", "accuracy", "anchors", "paths", "search", "tasks",
    }  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metadata of a gene whose blocks were really searched."""
    root = tmp_path_factory.mktemp("searched")
    ancestry = make_ancestry(root / "pico-vit", depth=4)
    recipe = search_recipe(search_fields(ancestry, make_sets(root), root / "s"))
    run_search(recipe, show=False, say=lambda _: None)
    return learngene.load(root / "s.safetensors").metadata


def test_a_searched_gene_fits_the_schema(searched: dict[str, Any]) -> None:
    assert faults(searched) == []
    assert set(SCHEMA["properties"]) - ELSEWHERE - set(searched) == {"data", "accuracy", "anchors", "paths", "tasks"}
    record = SCHEMA["$defs"]["Search"]
    assert set(searched["search"]) == set(record["properties"]) == set(record["required"])
    task = SCHEMA["$defs"]["SearchTask"]
    assert all(set(each) == set(task["properties"]) == set(task["required"]) for each in searched["search"]["tasks"])
    assert set(searched["search"]["routing"]) == set(record["properties"]["routing"]["properties"])
    assert searched["training"].keys() == {"epochs", "seconds", "seed", "recipe"}
    assert searched["training"]["recipe"].keys() == {"train"}


@pytest.fixture(scope="module", params=["tal", "logah"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The metadata of a hypernetwork behind stage 1 and behind stage 2, each of one epoch."""
    root = tmp_path_factory.mktemp("tuned")
    guide = make_ancestry(root / "guide") if request.param == "tal" else None
    settings = {"size": "pico", "architectures": [[1, 16, 2]], **({"task_dim": 16} if guide else {})}
    sets = {
        name: make_images(root / name, classes=classes)
        for name, classes in {"home": ("blue", "green", "red"), "warm": ("green", "red")}.items()
    }
    data = {name: {"source": str(path), "workers": 0} for name, path in sets.items()}
    fields: dict[str, Any] = {**FAST, "epochs": 1, "show": False}
    shape = pico_shape(depth=1, class_token=True)
    gene = learngene.condense(
        guide, method=request.param, settings=settings, shape=shape, data=data["home"], out=root / "home-run", **fields
    )
    learngene.tune(gene, guide, tasks=data, out=root / "tuned-run", **fields)
    return {name: learngene.load(str(root / f"{name}-run.safetensors")).metadata for name in ("home", "tuned")}


def test_a_tuned_hypernetwork_fits_the_schema(tuned: dict[str, dict[str, Any]]) -> None:
    home, both = tuned["home"], tuned["tuned"]
    aware = home["method"] == "tal"
    for metadata in (home, both):
        assert faults(metadata) == []
    assert set(SCHEMA["properties"]) - ELSEWHERE - set(home) == {"anchors", "paths", "search", "tasks"}
    assert set(SCHEMA["properties"]) - ELSEWHERE - set(both) == {"anchors", "paths", "search"}
    assert "hyper" in home["training"]["recipe"]
    assert both["training"]["stage1"] == home["training"]
    known = set(SCHEMA["$defs"]["TunedTask"]["properties"])
    for task in both["tasks"]:
        assert set(task) == (known if aware else known - {"embedding"})
        if aware:
            embedding = SCHEMA["$defs"]["Embedding"]
            assert set(task["embedding"]) == set(embedding["properties"]) == set(embedding["required"])
    for wrong in (
        {"task": 1},
        {"source": "x"},
        {"classes": []},
        {"std": [0]},
        {"top1": 101},
        {"embedding": {"name": "x"}},
    ):
        spoiled = {**both, "tasks": [{**both["tasks"][0], **wrong}]}
        assert faults(spoiled) != []
    assert faults({**both, "method": "tleg"}) != []
    assert faults({key: value for key, value in both.items() if key != "tasks"}) != []


SPOILED: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "no tasks": ("both", lambda search: search.update(tasks=[])),
    "tasks are none": ("both", lambda search: search.update(tasks=None)),
    "usage missing": ("both", lambda search: search.pop("usage")),
    "layers missing": ("both", lambda search: search.pop("layers")),
    "share missing": ("both", lambda search: search["tasks"][0].pop("share")),
    "share of words": ("both", lambda search: search["tasks"][0].update(share=["x"] * 4)),
    "layer 0": ("both", lambda search: search["tasks"][0].update(layers=[0])),
    "score of words": ("both", lambda search: search["tasks"][1].update(score="high")),
    "name missing": ("both", lambda search: search["tasks"][2].pop("task")),
    "share of another depth": ("reader", lambda search: search["tasks"][0].update(share=[0.5])),
    "layer beyond": ("reader", lambda search: search.update(layers=[5])),
    "share beyond": ("both", lambda search: search["tasks"][0].update(share=[2.0] * 4)),
    "rule": ("schema", lambda search: search["select"].update(rule="most")),
    "route": ("schema", lambda search: search["routing"].update(route="imgs")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_record_of_a_search_that_is_none_is_refused(case: str, searched: dict[str, Any]) -> None:
    """By the schema in full; by readers as far as somebody is shown it."""
    by, change = SPOILED[case]
    spoiled = copy.deepcopy(searched)
    change(spoiled["search"])
    assert (faults(spoiled) != []) == (by != "reader")
    if by == "schema":
        check_metadata(Path("g"), spoiled)
        return
    with pytest.raises(GeneFileError, match="g: metadata entry 'search' must be the record of a search"):
        check_metadata(Path("g"), spoiled)


def test_a_record_of_a_search_is_an_object_of_lsamd(searched: dict[str, Any], metadata: dict[str, Any]) -> None:
    for wrong in ([], "x", 3, None):
        with pytest.raises(GeneFileError, match="'search' must be the record"):
            check_metadata(Path("g"), {**searched, "search": wrong})
    assert faults({**metadata, "search": searched["search"]}) != []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vanilla-lg", {"last": 0}),
        ("vanilla-lg", {"stem": "no"}),
        ("lsamd", {"layers": []}),
        ("lsamd", {"layers": [0, 1]}),
        ("lsamd", {"layers": [1, 1]}),
        ("lsamd", {"layers": 7}),
        ("lsamd", {"stem": 1}),
        ("mini-init", {"blocks": 0}),
        ("weight-selection", {"head": 1}),
        ("weight-selection", {"last": 1}),
        ("pool", {"rows": [8]}),
        ("pool", {"rows": [0, 16]}),
        ("pool", {"rows": [8, [16, 4]]}),
        ("pool", {"direction": "left"}),
        ("sn-net", {"nearest": 1}),
        ("sn-net", {"max_stitches": 0}),
        ("sn-net", {"final_norm": None}),
        ("sn-net", {"stitches": "ls"}),
        ("pre-fin", {"place": "last"}),
        ("scratch", {"x": 1}),
    ],
)
def test_the_schema_refuses_wrong_settings(name: str, settings: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert faults({**metadata, "method": name, "settings": {}}) == []
    assert faults({**metadata, "method": name, "settings": settings}) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 3),
        ("method", "tlegg"),
        ("settings", {"modules": ["x"]}),
        ("settings", {"first_layer": 0}),
        ("settings", {"stages": [1]}),
        ("shape", {"depth": 0}),
        ("shape", {"dept": 3}),
        ("digest", "md5:0"),
        ("classes", [1, 2]),
        ("ancestry", "levit_384"),
        ("ancestry", {"name": "levit_384"}),
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(key: str, value: Any, metadata: dict[str, Any]) -> None:
    assert faults({**metadata, key: value}) != []


@pytest.mark.parametrize("key", ["version", "method", "settings", "shape", "digest"])
def test_the_schema_requires_what_a_reader_needs(key: str, metadata: dict[str, Any]) -> None:
    assert f"'{key}' is a required property" in faults({k: v for k, v in metadata.items() if k != key})
