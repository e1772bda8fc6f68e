"""Whole comparisons of pico models through the command line, in one process and in several."""

import csv
import html
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comparisons import compare_fields, contents, counted_at_the_end, results, written
from pico import CLI, FAST, Outcome, command, make_images
from processes import Start
from runs import metrics

CONTENDERS: dict[str, Any] = {
    "pre-fin": {"method": "pre-fin", "each": True},
    "vanilla-lg": {"method": "vanilla-lg", "ancestry": "vit", "settings": {"last": 1}},
}
NAMES = ["scratch", "tleg", *CONTENDERS]
FIELDS = {
    "kind", "version", "key", "contender", "method", "shape", "task", "seed", "params", "macs", "gene", "spec",
    "layers", "linearity", "fresh", "train", "data", "untuned", "epochs", "last", "steps", "error", "seconds",
    "environment", "commit", "digest",
}  # fmt: skip
SIZE = len(NAMES) * 2 * 3  # shapes; both tasks untuned, and one of them tuned


@dataclass(frozen=True)
class Place:
    """A recipe, and what its comparison has left; a copy that may be spoiled."""

    recipe: Path
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def arguments(self) -> list[object]:
        return ["compare", self.recipe, f"out={self.out}", f"store={self.folder / 'store'}"]

    def one(self, method: str) -> Path:
        """The result file of a tuned cell."""
        return sorted(self.out.glob(f"cells/{method}-d2w16-*-e1-*.json"))[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cli: CLI, images: Path) -> tuple[Path, Outcome]:
    """The folder of a whole comparison and what the command said; read only."""
    folder = tmp_path_factory.mktemp("compare")
    make_images(folder / "two", train=10, classes=("blue", "red"))
    tasks = {"two": {"source": str(folder / "two"), "workers": 0}}
    changes = {"contenders": CONTENDERS, "tasks": tasks, "budgets": {"one": {"tasks": ["home"]}}}
    recipe = written(folder / "r.yaml", compare_fields(folder, images, **changes))
    return folder, cli("compare", recipe)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the plots, which take longest."""
    monkeypatch.setattr("learngene.comparing.plots.save_plots", lambda *_: [])


@pytest.fixture
def place(undrawn: None, finished: tuple[Path, Outcome], tmp_path: Path) -> Place:
    shutil.copytree(finished[0], tmp_path / "copy")
    return Place(finished[0] / "r.yaml", tmp_path / "copy")


def faults(cli: CLI, path: Path) -> list[str]:
    """The lines that a comparison which cannot be run gets, before anything else is said."""
    found = cli("compare", path)
    assert (found.code, found.out) == (2, "")
    lines = found.err.splitlines()
    assert all(line.startswith("learngene: ") for line in lines)
    return [line.removeprefix("learngene: ") for line in lines]


def announced(text: str) -> list[str]:
    """What every finished job is called, in the order of the output."""
    return [line.split(": ")[0] for line in text.splitlines() if line.startswith(("ancestry ", "gene ", "cell "))]


# -- a whole comparison ------------------------------------------------------------------------------------


def test_everything_is_run_once(finished: tuple[Path, Outcome]) -> None:
    folder, done = finished
    assert (done.code, done.err) == (0, "")
    jobs = announced(done.out)
    assert len(jobs) == len(set(jobs)) == 1 + 4 + SIZE
    genes = ["tleg d4 seed 0", "pre-fin d2 seed 0", "pre-fin d3 seed 0", "vanilla-lg"]
    assert jobs[:5] == ["ancestry vit", *(f"gene {name}" for name in genes)]
    assert f"{SIZE} cells; written: {folder / 'out' / 'results.csv'}" in done.out
    assert "| task | budget | shape | contender |" in done.out
    assert len(results(folder / "out")) == SIZE


def test_every_cell_leaves_all_that_its_numbers_need(finished: tuple[Path, Outcome]) -> None:
    for name, content in results(finished[0] / "out").items():
        assert set(content) == FIELDS
        assert (content["kind"], content["version"], content["error"]) == ("learngene cell", 1, None)
        assert name.endswith(f"-{content['key']}.json")
        tuned = "-e1-" in name
        assert (content["train"] is not None, len(content["epochs"])) == (tuned, int(tuned))
        assert content["steps"] == (content["data"]["train_images"] // 8 if tuned else 0)
        assert tuned or content["last"] == {**content["untuned"], "report": content["last"]["report"]}
        assert len(content["last"]["report"]["classes"]) == content["shape"]["num_classes"]
        assert content["untuned"].keys() == {"top1", "top5", "loss", "images"}
        assert content["data"].keys() == {"source", "train_images", "val_images", "fingerprint"}
        assert content["environment"]["versions"]["torch"]
        assert content["spec"]["method"] == content["method"]
        assert bool(content["gene"] and content["gene"]["stored_params"]) == (content["method"] != "scratch")
        assert content["shape"]["num_classes"] == {"home": 3, "two": 2}[content["task"]]


def test_the_tables_begin_as_timms_do(finished: tuple[Path, Outcome]) -> None:
    rows = list(csv.reader((finished[0] / "out" / "results.csv").read_text().splitlines()))
    assert rows[0][:6] == ["model", "top1", "top1_err", "top5", "top5_err", "param_count"]
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert len(found) == SIZE
    cells = results(finished[0] / "out")
    for row in found:
        assert row["model"] == f"{row['contender']}_d{row['depth']}_w16"
        assert float(row["top1"]) + float(row["top1_err"]) == pytest.approx(100)
        assert float(row["param_count"]) == pytest.approx(int(row["params"]) / 1e6, abs=6e-4)
        (content,) = [
            c for c in cells.values()
            if (c["contender"], c["task"], c["shape"]["depth"], bool(c["train"]))
            == (row["contender"], row["task"], int(row["depth"]), row["budget"] == "one")
        ]  # fmt: skip
        assert float(row["last_top1"]) == pytest.approx(content["last"]["top1"], rel=1e-5)
        assert float(row["last_loss"]) == pytest.approx(content["last"]["loss"], rel=1e-5)
        assert float(row["times_chance"]) == pytest.approx(
            content["untuned"]["top1"] / (100 / content["shape"]["num_classes"]), rel=1e-5
        )
        assert len(row["curve"].split()) == 1 + int(row["epochs"])
    markdown = (finished[0] / "out" / "results.md").read_text().splitlines()
    table = [line for line in markdown if line.startswith("|")]
    assert len(table) == 2 + SIZE
    assert {line.split(" | ")[3] for line in table[2:]} == set(NAMES)
    assert "teacher_cost shared: the training of teachers is shared by a contender's models" in markdown


def test_the_plots_are_there(finished: tuple[Path, Outcome]) -> None:
    plots = {path.name for path in (finished[0] / "out" / "plots").iterdir()}
    assert {f"accuracy-params-{name}.png" for name in ("home-one", "two-untuned")} <= plots
    assert all((finished[0] / "out" / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots)


def test_the_page_needs_no_other_file_and_says_first_who_wins(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    page = (folder / "out" / "index.html").read_text()
    assert str(folder / "out" / "index.html") in outcome.out
    first = next(line for line in outcome.out.splitlines() if line.startswith(("home, ", "two, ")))
    assert f"<h1>{html.escape(first, quote=True)}</h1>" in page
    assert page.count("<tr><td>") == SIZE  # one seed: a line of the table is a cell
    assert {source.partition(":")[0] for source in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data"}
    plots = [path.stem for path in (folder / "out" / "plots").iterdir()]
    assert sorted(re.findall(r'alt="([^"]*)"', page)) == sorted(plots)
    assert "<pre>learngene compare " in page


# -- again -------------------------------------------------------------------------------------------------


def test_running_it_again_does_nothing(cli: CLI, place: Place) -> None:
    kept = {name: value for name, value in contents(place.folder).items() if not name.startswith("out/")}
    cells, tables = contents(place.out / "cells"), (place.out / "results.csv").read_text()
    again = cli(*place.arguments)
    assert (again.code, again.err, announced(again.out)) == (0, "", [])
    assert contents(place.out / "cells") == cells
    assert {name: value for name, value in contents(place.folder).items() if not name.startswith("out/")} == kept
    assert (place.out / "results.csv").read_text() == tables


def test_a_cell_that_was_deleted_is_run_again_alone_and_gives_the_same(cli: CLI, place: Place) -> None:
    lost = place.one("tleg")
    before, kept = json.loads(lost.read_text()), contents(place.out / "cells")
    lost.unlink()
    collected = cli(*place.arguments, "--collect")
    assert collected.code == 2
    assert "1 cells have no result yet" in collected.err
    assert (announced(collected.out), lost.exists()) == ([], False)
    assert f"{SIZE - 1} cells; written" in collected.out
    again = cli(*place.arguments)
    assert (again.code, announced(again.out)) == (0, [f"cell tleg d2 {before['task']} one seed 0"])
    after = json.loads(lost.read_text())
    clock = {"seconds", "epochs", "commit", "digest"}
    assert {k: v for k, v in after.items() if k not in clock} == {k: v for k, v in before.items() if k not in clock}
    kept.pop(lost.name)
    assert kept.items() <= contents(place.out / "cells").items()


def test_json_tells_which_steps_are_done_and_where_the_page_is(cli: CLI, place: Place) -> None:
    place.one("scratch").unlink()
    told = [json.loads(line) for line in cli(*place.arguments, "--json").out.splitlines()]
    (done,), (outcome,) = ([each for each in told if each["event"] == kind] for kind in ("progress", "outcome"))
    assert done["text"].startswith("cell scratch d2")
    assert (done["done"], done["of"], done["failed"]) == (1, 1, False)
    assert (outcome["path"], outcome["cells"]) == (str(place.out / "index.html"), SIZE)


def test_genes_whose_cells_are_all_there_are_not_made_again(cli: CLI, place: Place) -> None:
    """As in a clone of a repository that holds results but no weights."""
    cells = contents(place.out / "cells")
    shutil.rmtree(place.folder / "store")
    again = cli(*place.arguments)
    assert (again.code, again.err, announced(again.out)) == (0, "", [])
    assert contents(place.out / "cells") == cells
    place.one("vanilla-lg").unlink()
    done = cli(*place.arguments)
    ancestry, gene, cell = announced(done.out)
    assert (ancestry, gene) == ("ancestry vit", "gene vanilla-lg")
    assert cell.startswith("cell vanilla-lg")


def test_collecting_runs_and_trains_nothing(cli: CLI, place: Place) -> None:
    shutil.rmtree(place.folder / "store")
    shutil.rmtree(place.out / "cells")
    found = cli(*place.arguments, "--collect")
    assert (found.code, found.out) == (2, "")
    assert f"{SIZE} cells have no result yet" in found.err
    assert not (place.folder / "store").exists()
    assert not (place.out / "cells").exists()


def test_files_that_are_no_results_are_named_and_kept(cli: CLI, place: Place) -> None:
    damaged, foreign, other, lacking = (place.one(name) for name in ("tleg", "scratch", "pre-fin", "vanilla-lg"))
    shutil.copy(lacking, other)
    damaged.write_text(damaged.read_text()[:100])
    foreign.write_text(json.dumps({"accuracy": 99.9}))
    content = json.loads(lacking.read_text())
    del content["steps"], content["digest"]
    lacking.write_text(json.dumps(content))
    before = contents(place.out / "cells")
    for more in ([], ["--collect"]):
        found = cli(*place.arguments, *more)
        assert found.code == 2
        *lines, last = found.err.splitlines()
        assert len(lines) == 4
        for path, reason in (
            (damaged, "damaged, it is no JSON; skipped, and not overwritten"),
            (foreign, "not a result of a comparison; skipped, and not overwritten"),
            (other, "the result of another cell or format (key "),
            (lacking, "has no entry 'steps'; skipped, and not overwritten"),
        ):
            assert any(line.startswith(f"learngene: {path}: {reason}") for line in lines)
        end = "4 files stand where a result belongs; move them away"
        assert last == f"learngene: {place.out}: {end}"
        assert f"{SIZE - 4} cells; written" in found.out
        assert announced(found.out) == []
        assert contents(place.out / "cells") == before


# -- refused before anything is trained --------------------------------------------------------------------


def test_all_that_cannot_be_run_is_named_before_anything_is_trained(cli: CLI, images: Path, tmp_path: Path) -> None:
    contenders = {
        "sws": {"method": "sws", "settings": {"stages": [1, 1, 2]}, "ancestry": "vit"},
        "large": {"method": "weight-selection", "ancestry": "vit"},
        "placed": {"method": "pre-fin", "auxiliary": {"depth": 3}, "options": {"plce": "first"}},
    }
    shapes = {"d6": {"depth": 6}, "wide": {"embed_dim": 32}}
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images, contenders=contenders, shapes=shapes))
    expected = [
        "tleg at wide: shape: this gene has embed_dim 16, not 32;",
        "sws at d2: sws: depth 2 is below the 3 stages",
        "sws at wide: shape: this gene has embed_dim 16, not 32;",
        "large at d6: weight-selection: depth 6 is beyond the ancestry's 4;",
        "large at wide: weight-selection: embed_dim 32 is beyond the ancestry's 16;",
        *(f"placed at {shape}: pre-fin: expansion options: unknown key 'plce'; did you mean 'place'?"
          for shape in ("d2", "d3", "d6", "wide")),
    ]  # fmt: skip
    lines = faults(cli, path)
    assert [line[: len(part)] for line, part in zip(lines, expected, strict=True)] == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.yaml"]


def test_all_tasks_that_cannot_be_read_are_named(cli: CLI, images: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "train-only")
    shutil.rmtree(tmp_path / "train-only" / "val")
    tasks = {name: {"source": str(tmp_path / name), "workers": 0} for name in ("train-only", "none")}
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images, tasks=tasks))
    lines = faults(cli, path)
    assert [line.split(": ")[0] for line in lines] == ["task train-only", "task none"]
    for line, part in zip(lines, ("'val'", "no such folder"), strict=True):
        assert part in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["r.yaml", "train-only"]


def test_check_ends_with_what_was_counted(cli: CLI, images: Path, tmp_path: Path) -> None:
    done = cli("check", written(tmp_path / "r.yaml", compare_fields(tmp_path, images)))
    assert done.code == 0, done.err
    assert counted_at_the_end(done.out, 1) == [f"data {images}"]


def test_a_folder_that_cannot_be_made_is_told_by_check(cli: CLI, images: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", compare_fields(tmp_path, images))
    for key in ("out", "store"):
        done = cli("check", recipe, f"{key}={recipe / 'x'}")
        line = f"cannot write {recipe / 'x'}: {recipe} is no folder; choose another folder"
        assert (done.code, done.err) == (2, f"learngene: {line}\n")


LATE: dict[str, dict[str, Any]] = {
    "tuning at home in batches larger than the set": {"tune": {"batch_size": 26}},
    "a contender's own batches": {"contenders": {"scratch": {"tune": {"batch_size": 26}}}},
    "an ancestry with fewer layers than are taken": {
        "contenders": {"scratch": {"method": "vanilla-lg", "ancestry": "vit", "settings": {"last": 3}}},
        "ancestries": {"vit": {"shape": {"depth": 2}}},
        "run": {"contenders": ["scratch"], "shapes": ["d3"]},
    },
    "layers that the shape does not have": {"contenders": {"tleg": {"layers": [3]}}},
    "modules that there are not": {"contenders": {"tleg": {"modules": ["mpl"]}}},
}


@pytest.mark.parametrize("case", LATE)
def test_what_only_one_contender_asks_for_is_refused_first_too(
    case: str, cli: CLI, images: Path, tmp_path: Path
) -> None:
    assert faults(cli, written(tmp_path / "r.yaml", compare_fields(tmp_path, images, **LATE[case])))
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.yaml"]


# -- several processes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runners_in_one_folder_share_the_work(start: Start, images: Path, tmp_path: Path) -> None:
    """One of them is the console script itself, which starts its workers as it does for users."""
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images))
    other = start("compare", path)
    mine = command("compare", path, "--processes", 2, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    done = [other.wait(), Outcome(mine.returncode, mine.stdout, mine.stderr)]
    assert [(each.code, each.err) for each in done] == [(0, "")] * 2
    jobs = announced("".join(each.out for each in done))
    assert len(jobs) == len(set(jobs)) == 1 + 1 + 8, done
    assert len(results(tmp_path / "out")) == 8
    assert all("8 cells; written: " in each.out for each in done)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_comparison_that_was_stopped_continues(
    cli: CLI, stop_at: Callable[..., None], images: Path, tmp_path: Path, undrawn: None
) -> None:
    changes = {
        "condense": {"epochs": 3, "eval_every": 3, "save_every": 3},
        "run": {"contenders": ["pre-fin"], "shapes": ["d2"]},
        "contenders": {"pre-fin": {"method": "pre-fin", "each": True}},
    }
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, images, **changes))
    stop_at(signal.SIGINT, epoch=2)
    done = cli("compare", path)
    assert (done.code, announced(done.out)) == (130, [])
    assert done.err == "learngene: stopped and saved at epoch 3, step 1; the same command continues\n"
    assert not list((tmp_path / "store").glob("*.safetensors"))
    again = cli("compare", path)
    assert (again.code, again.err) == (0, "")
    assert announced(again.out)[0] == "gene pre-fin d2 seed 0"
    (log,) = (tmp_path / "store").glob("pre-fin-*/metrics.jsonl")
    assert [line["epoch"] for line in metrics(log.parent)] == [1, 2, 3]
    assert cli("compare", path, f"out={tmp_path / 'whole'}", f"store={tmp_path / 'other'}").code == 0
    for name, content in results(tmp_path / "whole").items():
        other = results(tmp_path / "out")[name]
        assert (other["last"], other["untuned"]) == (content["last"], content["untuned"])


# -- failures ----------------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_recorded_and_the_others_survive(
    cli: CLI, images: Path, tmp_path: Path, undrawn: None
) -> None:
    wild = {"wild": {"method": "scratch", "tune": {"lr": 1e30, "optimizer": "momentum"}}}
    fields = compare_fields(tmp_path, images, contenders=wild, budgets={"one": {"epochs": 2}})
    path = written(tmp_path / "r.yaml", fields)
    for again in (False, True):
        found = cli("compare", path)
        assert found.code == 2
        assert "have no result yet" not in found.err
        assert "2 jobs failed" in found.err
        assert "wild d2 home one seed 0: finetune scratch-2: the loss became " in found.err
        assert "10 cells; written" in found.out  # the untuned ones of the wild contender too
        assert (len(announced(found.out)) == 0) is again
        failed = [content for content in results(tmp_path / "out").values() if content["error"]]
        assert sorted(content["shape"]["depth"] for content in failed) == [2, 3]
        assert all(content["contender"] == "wild" and content["epochs"] == [] for content in failed)
        assert all("lower train.lr" in content["error"] for content in failed)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {row["budget"] for row in rows if row["contender"] == "wild"} == {"untuned"}


def test_a_gene_that_diverges_costs_only_its_own_cells(cli: CLI, images: Path, tmp_path: Path, undrawn: None) -> None:
    fields = compare_fields(tmp_path, images, contenders={"tleg": {"train": {**FAST, "lr": 1e30}}})
    found = cli("compare", written(tmp_path / "r.yaml", fields))
    assert found.code == 2
    assert "gene tleg d4 seed 0: condense tleg: the loss became " in found.err
    assert "4 cells have no result yet, 1 jobs failed" in found.err
    assert "4 cells; written" in found.out
    assert {content["method"] for content in results(tmp_path / "out").values()} == {"scratch"}
