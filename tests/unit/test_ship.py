"""ship: the look at images, the choice of a way by measured comparisons, the plan, the run and its page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from learngene import save_descendant, scratch
from learngene.data.splits import open_splits
from learngene.recipe.loading import build_recipe, load_recipe
from learngene.recipe.sections import DataSpec
from learngene.recipe.ship import ShipRecipe
from learngene.shipping.evidence import Job, advise
from learngene.shipping.figure import Point, panel, parts
from learngene.shipping.judge import Judged, behind
from learngene.shipping.look import look
from learngene.shipping.page import class_rows, verdict
from learngene.shipping.ways import WAYS, shapes_for
from learngene.system.errors import LearngeneError
from learngene.training.scores import TopKCounter
from pico import CLI, pico_shape


def looked(folder: Path) -> Any:
    return look(open_splits(DataSpec(source=str(folder), workers=0)))


# -- the look ----------------------------------------------------------------------------------------------


def test_a_look_counts_images_and_says_what_misleads(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    shutil.copy(next((data / "train" / "blue").iterdir()), data / "val" / "blue" / "again.png")
    shutil.rmtree(data / "val" / "red")
    found = looked(data)
    assert (found.train_images, found.val_images, found.classes, found.side) == (24, 9, 3, 8)
    assert found.duplicates == 1
    assert any("without validation images" in line and "red" in line for line in found.remarks)
    assert any("1 of 9 validation images are training images" in line for line in found.remarks)
    assert found.neighbours == 100  # three colours: the nearest other image is of the same one
    assert any("9 validation images tell a score to" in line for line in found.remarks)


def test_images_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / split / name / f"{i}.png")
    with pytest.raises(LearngeneError, match="all 6 training images are the same"):
        looked(tmp_path)


def test_shuffled_labels_are_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 10)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / split / name / f"{i}.png")
    assert any("labels look shuffled" in line for line in looked(tmp_path).remarks)


# -- shapes and the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["scratch", "chebyshev", "any-size"])
def test_shapes_fill_their_limits(way: str) -> None:
    limits = {"0.2M": 2e5, "0.6M": 6e5, "1.5M": 1.5e6}
    shapes = shapes_for(WAYS[way], limits, 64, 7)
    assert all(0.5 * limit < shapes[name].params() <= limit for name, limit in limits.items())
    assert (len({shape.embed_dim for shape in shapes.values()}) == 1) is not WAYS[way].widths
    assert len({shape.head_dim for shape in shapes.values()}) == 1  # a gene's heads are of one width


def test_limits_that_admit_nothing_are_refused() -> None:
    with pytest.raises(LearngeneError, match="no model of 64 px and 7 classes fits 1K params"):
        shapes_for(WAYS["scratch"], {"1K": 1e3}, 64, 7)
    with pytest.raises(LearngeneError, match="one width cannot serve both"):
        shapes_for(WAYS["chebyshev"], {"50K": 5e4, "9M": 9e6}, 64, 7)


def cell(method: str, mean: float, **changes: Any) -> dict[str, Any]:
    known = {"data": "set", "images": 1000, "classes": 10, "img_size": 64, "teacher": "none", "sizes": 3}
    return {**known, "epochs": 10.0, "budget": 300, "seed": 0, "method": method, "mean": mean, **changes}


def test_the_way_that_was_ahead_nearby_is_chosen() -> None:
    job = Job(1000, 10, 64, "none", 3, 10.0)
    near = [cell("scratch", 30.0), cell("wave", 36.0), cell("chebyshev", 32.0)]
    far = {"epochs": 27.0, "budget": 900}
    table = [*near, cell("scratch", 50.0, **far), cell("wave", 50.0, **far)]
    found = advise(job, ["scratch", "wave", "chebyshev"], table)
    # The far comparison weighs exp(-ln 2.7) = 0.3704: (6 + 0 * 0.3704) / 1.3704 = 4.378.
    assert found.method == "wave"
    assert found.ahead == {"wave": pytest.approx(4.378, abs=1e-3), "chebyshev": pytest.approx(2.0)}
    assert found.comparisons == 2
    assert "4.4 points ahead of scratch" in found.why
    assert advise(job, ["scratch", "chebyshev"], table).method == "chebyshev"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "no comparison like this job"),
        ([cell("scratch", 30.0), cell("wave", 30.5)], "no gene is worth it here"),
        ([cell("scratch", 30.0), cell("wave", 25.0)], "5.0 points behind scratch"),
        ([cell("scratch", 30.0, teacher="vit"), cell("wave", 40.0, teacher="vit")], "no comparison like this job"),
    ],
)
def test_scratch_is_chosen_where_nothing_is_known_to_be_better(table: list[dict[str, Any]], said: str) -> None:
    found = advise(Job(1000, 10, 64, "none", 3, 10.0), ["scratch", "wave"], table)
    assert found.method == "scratch"
    assert said in found.why


# -- what is told ------------------------------------------------------------------------------------------


def model(name: str, params: int, top1: float, low: float, high: float, least: float = 0.0) -> dict[str, Any]:
    return {"name": name, "params": params, "top1": top1, "interval": [low, high], "behind": [0.0, least, 9.0]}


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            [model("S", 1, 50, 45, 55, -1.0), model("L", 2, 54, 49, 59)],
            "Take S: 50.0 % top-1 (45.0 to 55.0), as good as L with 54.0 % as far as 358 images can tell",
        ),
        (
            [model("XS", 1, 30, 25, 35, 20.0), model("S", 2, 33, 28, 38, 17.0), model("L", 3, 54, 49, 59)],
            "Take L: 54.0 % top-1 (49.0 to 59.0); smaller costs 21.0 to 24.0 points",
        ),
        (
            [model("S", 1, 54, 49, 59), model("M", 2, 40, 35, 45, 9.0), model("L", 3, 30, 25, 35, 20.0)],
            "Take S: 54.0 % top-1 (49.0 to 59.0); M and L are larger and worse, a sign of too little time",
        ),
        (
            [model("S", 1, 54, 49, 59), model("M", 2, 53, 48, 58, -2.0)],
            "Take S: 54.0 % top-1 (49.0 to 59.0); M is larger and no better as far as 358 images can tell",
        ),
        ([model("S", 1, 54, 49, 59)], "S: 54.0 % top-1 (49.0 to 59.0)"),
        (
            [model("S", 1, 22, 17, 27)],
            "Not usable: the best of 1 model has 22.0 %, no better than always guessing the most common class (20.0 %)",
        ),
        (
            [model("S", 1, 30, 25, 34)],
            "S: 30.0 % top-1 (25.0 to 34.0); copying the class of the most similar training image does better, 35 %",
        ),
    ],
)
def test_the_verdict_says_what_to_take(models: list[dict[str, Any]], said: str) -> None:
    found = {"majority": 20.0, "classes": 7, "val_images": 358, "neighbours": 35.0}
    assert verdict({"models": models, "look": found}) == said


def judged_of(guesses: list[int], labels: list[int], names: list[str]) -> Judged:
    """What a model says that is sure of its guesses."""
    probabilities, tally = np.eye(len(names))[guesses], TopKCounter()
    tally.add(torch.from_numpy(probabilities), torch.tensor(labels))
    return Judged(probabilities, np.array(labels), tally.result(names=names))


def test_class_rows_count_by_hand() -> None:
    # Truth a a a b, guesses a a b b: of a 2 of 3 are found and 2 of 2 guesses right; of b 1 of 1, and 1 of 2.
    rows = class_rows(judged_of([0, 0, 1, 1], [0, 0, 0, 1], ["a", "b", "c"]))
    assert [(row["name"], row["images"], row["recall"], row["precision"], row["taken_for"]) for row in rows] == [
        ("a", 3, pytest.approx(200 / 3), 100.0, "b (1)"),
        ("b", 1, 100.0, 50.0, ""),
        ("c", 0, None, None, ""),
    ]


def test_models_are_compared_on_the_same_images() -> None:
    # Of 100 images the one gets the first 60 right, the other the first 40: 20 points, never fewer than none.
    one, other = (judged_of([0] * right + [1] * (100 - right), [0] * 100, ["a", "b"]) for right in (60, 40))
    found = behind({"other": other, "one": one})
    assert found["one"] == [0.0, 0.0, 0.0]
    assert found["other"][0] == 20.0
    assert 0 < found["other"][1] < 20 < found["other"][2]


def test_pictures_place_points_within_their_frame() -> None:
    points = [Point("S", 1e5, 50, 45, 55), Point("L", 1e6, 60, 55, 65)]
    drawn = panel("parameters", points, 20.0, "majority", 1e6)
    assert [point.name for point in drawn.points] == ["S", "L"]
    assert drawn.points[0].x < drawn.points[1].x
    assert drawn.points[0].y > drawn.points[1].y  # higher scores stand higher, where y is smaller
    assert [text for _, text in drawn.xticks] == ["0.1", "1"]
    assert [(part.start, part.share) for part in parts([("a", 1, ""), ("b", 3, "")])] == [(0, 25), (25, 75)]


# -- the whole ---------------------------------------------------------------------------------------------

PICO = ("--sizes", "16K,30K", "--budget-macs", "1G")


def shipped(cli: CLI, images: Path, out: Path, *more: str) -> Any:
    result = cli("ship", images, *PICO, "--out", out, *more, "data.img_size=8", "data.workers=0")
    assert result.code == 0, result
    return result


def test_ship_makes_models_that_stock_timm_loads_and_goes_on(
    cli: CLI, images: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch's exporter takes seconds, and has tests of its own.
    monkeypatch.setattr("learngene.devices.export.export", lambda model, path: path.write_bytes(b"onnx"))
    out = tmp_path / "out"
    planned = shipped(cli, images, out, "--dry-run")
    assert not out.exists()
    assert "in all" in planned.out
    told = shipped(cli, images, out)
    result = json.loads((out / "result.json").read_text())
    assert [each["name"] for each in result["models"]] == ["16K", "30K"]
    for each in result["models"]:
        net = timm.create_model(f"local-dir:{out / 'models' / each['name']}", pretrained=True)
        assert sum(value.numel() for value in net.parameters()) == each["params"] <= float(each["name"][:-1]) * 1e3
        assert (out / "models" / f"{each['name']}.onnx").exists()
    page = (out / "index.html").read_text()
    assert verdict(result) in page
    assert "<script" not in page
    assert "http" not in page
    assert verdict(result) in told.out
    # A second call trains nothing; another wish for the same folder is refused; a changed recipe makes what changed.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert "there already" in shipped(cli, images, out).out
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")} == before
    line = refused("ship", images, "--sizes", "16K", "--budget-macs", "1G", "--out", out)
    assert "begun with another sizes" in line
    recipe = yaml.safe_load((out / "ship.yaml").read_text())
    recipe["models"]["16K"]["train"]["epochs"] += 1
    (out / "ship.yaml").write_text(yaml.safe_dump(recipe))
    assert cli("ship", out / "ship.yaml").code == 0
    assert len(list(out.glob("runs/*/result.json"))) == len(before) + 1


@pytest.mark.parametrize(
    ("teacher", "method", "genes", "target"),
    [
        (None, "any-size", ["gene"], "logits"),
        ("same classes", "distilled", ["gene-16K", "gene-30K"], "logits"),
        ("no classes", "any-size", ["gene"], "features"),
    ],
)
def test_ship_with_genes_and_teachers(
    cli: CLI,
    images: Path,
    ancestry_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: str | None,
    method: str,
    genes: list[str],
    target: str,
) -> None:
    monkeypatch.setattr("learngene.shipping.ship.exported", lambda path: None)
    source = ancestry_folder
    if teacher == "no classes":
        source = tmp_path / "teacher"
        save_descendant(scratch(pico_shape(num_classes=0)), source)
    flags = ("--teacher", str(source)) if teacher else ()
    shipped(cli, images, tmp_path / "out", "--method", method, *flags)
    recipe = load_recipe(tmp_path / "out" / "ship.yaml")
    assert isinstance(recipe, ShipRecipe)
    assert list(recipe.genes) == genes
    assert [model.start for model in (recipe.models or {}).values()] == (genes if len(genes) > 1 else genes * 2)
    assert all(recipe.gene_recipe(name, tmp_path).distill.target == target for name in genes)
    assert (recipe.ancestry is None) is (teacher is None)
    spent = json.loads((tmp_path / "out" / "result.json").read_text())["spent"]["steps"]
    assert spent.keys() == {*genes, "16K", "30K"}


def test_a_teacher_that_nothing_is_known_of_is_not_asked(cli: CLI, images: Path, ancestry_folder: Path) -> None:
    told = cli("ship", images, *PICO, "--dry-run", "--teacher", ancestry_folder, "data.img_size=8", "data.workers=0")
    assert "no comparison with such a teacher was made yet, so it is not asked" in told.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sizes", "100"), "fits 100 params; the smallest is"),
        (("--sizes", "ten"), "'ten' is not a number"),
        (("--sizes", "nan"), "'nan' is not a number"),
        (("--sizes", "1e999M"), "'1e999M' is not a number"),
        (("--hours", "1", "--budget-macs", "1M"), "two budgets"),
        (
            ("--budget-macs", "1K", "--sizes", "20K,30K,40K"),
            "one epoch of each of 3 models; budget_macs=",
        ),
        (("--hours", "0.0001", "--sizes", "20K,30K,40K"), "one epoch of each of 3 models; hours="),
        (("--method", "magic"), "unknown method 'magic'"),
        (("--method", "lets"), "method lets: ship knows"),
        (("--method", "distilled"), "method distilled: needs a teacher"),
        (("--teacher", "no-such-model"), "no-such-model"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    refused: Callable[..., str], images: Path, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    assert said in refused("ship", images, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_plan_is_told_in_json_too(cli: CLI, images: Path, tmp_path: Path) -> None:
    flags = ["--sizes", "20K", "--budget-macs", "1G", "--out", tmp_path / "out", "--dry-run", "--json"]
    told = [json.loads(line) for line in cli("ship", images, *flags, "data.img_size=8").out.splitlines()]
    assert [each["event"] for each in told] == ["start", "outcome"]
    assert told[1]["plan"]["recipe"]["sizes"] == [20_000]


@pytest.mark.parametrize("method", [[], ["--method", "any-size"], ["--method", "chebyshev"]])
def test_a_budget_that_is_refused_names_one_that_will_do(
    cli: CLI, images: Path, tmp_path: Path, refused: Callable[..., str], method: list[str]
) -> None:
    asked = ["ship", images, "--sizes", "20K,30K", *method, "--out", tmp_path / "out"]
    line = refused(*asked, "--budget-macs", "1K")
    enough = re.search(r"budget_macs=(\S+) would do", line)
    assert enough, line
    assert cli(*asked, "--budget-macs", enough[1], "--dry-run").code == 0


def test_a_recipe_of_ship_is_checked(tmp_path: Path) -> None:
    shape = {"embed_dim": 16, "num_heads": 1, "depth": 2}
    with pytest.raises(LearngeneError, match=r"models\.S\.start: no gene 'gen'; did you mean 'gene'"):
        build_recipe(
            {
                "kind": "ship",
                "data": {"source": "digits"},
                "genes": {"gene": {"method": "chebyshev", "shape": {**shape, "depth": 4}, "distill": {"alpha": 0}}},
                "models": {"S": {"shape": shape, "start": "gen", "train": {}}},
            }
        )
