"""The demos in small: 200 digits, one epoch of everything, two shapes, in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import timm
from PIL import Image

import learngene
from learngene.comparing.demo import run_demo
from learngene.comparing.demo_tables import DEMOS
from learngene.data import digits
from learngene.shipping.demo import ship_demo
from pico import CLI

SMALL = ["condense.epochs=1", "condense.batch_size=50", "condense.schedule.warmup_epochs=0", "tune.batch_size=32"]
ANCESTRY = ["ancestries.ancestry.train.epochs=1"]
OVERRIDES = {
    "genes": [*SMALL, *ANCESTRY, "run.shapes=[d3,d7]", "budgets.tuned.epochs=1"],
    "foundation": [*SMALL, *ANCESTRY, "run.shapes=[d2,d4]", "contenders.tleg.train.epochs=1"],
    "pool": [
        *SMALL,
        *ANCESTRY,
        *(f"ancestries.{name}.train.epochs=1" for name in ("narrow", "wide")),
        *(f"contenders.{name}.pool.tune.epochs=1" for name in ("pool", "sn-net")),
        "contenders.sn-net.train.epochs=1",
    ],
    "lsamd": [*SMALL, *ANCESTRY, "shape.embed_dim=12", "shape.depth=5", "run.shapes=[d4,d6]", "budgets.tuned.epochs=1"],
    "tal": [
        *SMALL,
        *ANCESTRY,
        "ancestries.ancestry.shape.depth=2",
        "shape.embed_dim=16",
        "run.shapes=[d3,d4]",
        "budgets.tuned.epochs=1",
        *(f"contenders.{name}.stage2.train.epochs=1" for name in ("tal", "logah")),
        *(
            f"contenders.{name}.settings={{size: pico, expansion: 512, architectures: [[1, 16, 4], [2, 16, 4]]{more}}}"
            for name, more in (("tal", ", task_dim: 16"), ("logah", ""))
        ),
    ],
}


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    data = sklearn.datasets.load_digits()
    data.images, data.target = data.images[:200], data.target[:200]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: data)
    digits.variant_files.cache_clear()
    yield
    digits.variant_files.cache_clear()


LINES = {
    "genes": [("home", depth) for depth in (3, 7)],
    "foundation": [(task, depth) for task in ("rotated", "thirds") for depth in (2, 4)],
    "pool": [("home", depth) for depth in (6, 6, 7, *(6, 7, 8) * 5)],
    "lsamd": [(task, depth) for task in ("rotated", "canvas") for depth in (4, 6)],
    "tal": [(t, depth) for t in ("rotated", "negative", "parity", "half", "thirds", "faint") for depth in (3, 4)],
}
"""Task and depth of the lines of a demo's first table."""


@pytest.mark.parametrize(
    "name", [name if name == "genes" else pytest.param(name, marks=pytest.mark.slow) for name in DEMOS]
)
def test_a_demo_writes_its_tables_picture_page_and_genes_and_uses_what_it_left(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, demo = tmp_path / "out", DEMOS[name]
    record = run_demo(name, out, overrides=OVERRIDES[name], processes=1)
    printed = capsys.readouterr().out
    for command in demo.next:
        assert command.format(gene=out / f"{demo.gene}-0.safetensors", ancestry=out / "ancestry-0") in printed
    assert json.loads((out / "demo.json").read_text()) == record
    assert [(row["task"], row["depth"]) for row in record["rows"]] == LINES[name]
    for key, table in demo.tables.items():
        assert all(0 <= row[score] <= 100 for row in record[key] for score in table.scores)
    for contender, entry in record["genes"].items():
        gene = learngene.load(out / f"{contender}-0.safetensors")
        assert entry["params"] == sum(parameter.numel() for parameter in gene.parameters())
        assert gene.metadata.get("ancestry", {}).get("sha256") in (None, record["ancestry"]["sha256"])
    assert timm.create_model(f"local-dir:{out / 'ancestry-0'}", pretrained=True).num_classes == 10
    with Image.open(out / "demo.png") as picture:
        assert min(picture.size) > 300
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + (name == "lsamd")
    assert "http" not in page  # nothing is loaded from elsewhere
    assert f"<td>{record['rows'][1][next(iter(demo.tables['rows'].scores))]:.1f}" in page

    (out / "demo.png").unlink()
    before = {path: path.read_bytes() for path in out.glob("*.safetensors")}
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    again = run_demo(name, out, overrides=OVERRIDES[name], processes=1)
    assert again | {"seconds": 0} == record | {"seconds": 0}
    assert {path: path.read_bytes() for path in out.glob("*.safetensors")} == before
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == cells
    assert (out / "demo.png").exists()
    CHECKS[name](record, out)


def check_genes(record: dict[str, Any], _: Path) -> None:
    assert record["budgets"].keys() == DEMOS["genes"].budgets.keys()


def check_foundation(record: dict[str, Any], out: Path) -> None:
    assert list(record["genes"]) == ["tleg"]  # a gene of one depth serves nobody else
    assert learngene.load(out / "tleg-0.safetensors").metadata["training"]["recipe"]["depths"] == [2, 4, 6, 8]
    # As many images of 4 depths on average 5 deep, against one run of depth 2 and one of depth 4; plus a teacher each.
    assert record["training_macs"]["tleg"] < record["training_macs"]["distilled"]


def check_pool(record: dict[str, Any], out: Path) -> None:
    assert [row["blocks"] for row in record["rows"]][:2] == ["6+0", "5+1"]
    assert [row["params"] for row in record["rows"]] == sorted(row["params"] for row in record["rows"])
    for gene, column in (("pool", "pool"), ("sn-net", "sn_net")):
        paths = learngene.load(out / f"{gene}-0.safetensors").metadata["paths"]
        measured = {each["path"]: each["top1"] for each in paths}
        assert measured == pytest.approx({row["path"]: row[column] for row in record["rows"]}, abs=1e-3)
    best = max((row for row in record["rows"] if row["params"] <= 0.2e6), key=lambda row: (row["pool"], row["params"]))
    assert record["budgets"]["at most 0.20 M parameters"] == best["path"]


def check_lsamd(record: dict[str, Any], out: Path) -> None:
    gene = learngene.load(out / "lsamd-0.safetensors")
    assert record["search"]["layers"] == list(gene.method.layers)  # type: ignore[attr-defined]
    for row in record["rows"]:
        assert row["blocks"] == gene.method.block_of_layer(row["depth"])  # type: ignore[attr-defined]
    assert [t["task"] for t in record["search"]["tasks"] if t["metric"] == "mean IoU"] == ["canvas"]


def check_tal(record: dict[str, Any], out: Path) -> None:
    assert [(row["task"], row["depth"]) for row in record["tuned"]] == [("faint", 3), ("faint", 4)]
    seen = {row["task"] for row in record["rows"] if not row["unseen"]}
    assert learngene.load(out / "tal-0.safetensors").tasks().keys() == seen
    assert "faint (unseen)" in (out / "index.html").read_text()


CHECKS = {
    "genes": check_genes,
    "foundation": check_foundation,
    "pool": check_pool,
    "lsamd": check_lsamd,
    "tal": check_tal,
}


def test_the_demo_of_genes_ships_models_of_digits(
    cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("learngene.shipping.ship.exported", lambda path: None)
    result = ship_demo(tmp_path, 1, budget_macs=1e10)
    assert [each["name"] for each in result["models"]] == ["20K", "40K", "80K"]
    assert (tmp_path / "ship-1" / "index.html").exists()
    assert "learngene ship digits --sizes 20K,40K,80K --budget-macs 10G --out " in capsys.readouterr().out
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr("learngene.comparing.demo.run_demo", lambda *given: None)
    monkeypatch.setattr("learngene.shipping.demo.ship_demo", lambda *given: done.append(given))
    assert cli("demo", "--out", tmp_path, "--seed", "2").code == cli("demo", "--method", "pool").code == 0
    assert done == [(tmp_path, 2)]


def test_a_demo_that_there_is_not_is_refused(cli: CLI) -> None:
    assert cli("demo", "--method", "pol").code == 2
