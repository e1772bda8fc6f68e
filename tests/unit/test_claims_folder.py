"""The claims folder at all scales without data, and whole reproductions of a tiny group."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comparisons import compare_fields, contents, written
from learngene.comparing.cells import lay_out_declared
from learngene.comparing.claims.estimate import estimate
from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.claims.groups import PAPERS, ClaimGroup, Filter, comparison_of, load_claims
from learngene.comparing.claims.verdict_file import VerdictFile
from learngene.comparing.jobs import Cell, Comparison
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import merge
from learngene.system.errors import LearngeneError
from learngene.system.files import find_folder
from learngene.vits.linearity import MATRICES
from pico import CLI

GROUPS = load_claims()
CASES = [
    pytest.param(name, at, id=f"{name}-{at}")
    for name in GROUPS
    for at in GROUPS[name].tested_at
    if GROUPS[name].needs_runs
]
"""Every group that is run, at every scale that has its protocol."""
PREFIXES = {paper: paper.rpartition(" ")[2].lower() for paper in PAPERS}


def comparison(name: str, scale: str) -> Comparison:
    """The jobs of a group at a scale with its first seed, by the sizes its protocol declares."""
    recipe = comparison_of(GROUPS[name], scale, declared=True)
    assert len(recipe.run.seeds) >= 3  # fewer say nothing
    run = recipe.run.model_copy(update={"seeds": recipe.run.seeds[:1]})
    return lay_out_declared(recipe.model_copy(update={"run": run}))[0]


def kept(cells: list[Cell], some: Filter) -> list[Cell]:
    """The cells whose rows a filter keeps."""
    fields = ("contender", "shape", "task", "budget")
    rows = [SimpleNamespace(**dict(zip(fields, cell.coordinates, strict=False))) for cell in cells]
    return [cell for cell, row in zip(cells, rows, strict=True) if some.keeps(row)]  # type: ignore[arg-type]


# -- the folder --------------------------------------------------------------------------------------------


def test_ids_are_paths_and_every_file_is_read() -> None:
    paths = [path.relative_to(find_folder("claims")).with_suffix("") for path in find_folder("claims").rglob("*.yaml")]
    assert sorted(".".join(path.parts) for path in paths) == sorted(GROUPS)
    assert all(group.id == name for name, group in GROUPS.items())
    assert all(PREFIXES[group.paper] == name.partition(".")[0] for name, group in GROUPS.items())


def test_every_experiment_of_the_papers_is_there() -> None:
    tables = [f"table{number}" for number in range(1, 7)]
    expected = {f"tleg.{name}" for name in ("fig1", "fig4", *tables)}
    expected |= {f"sws.{name}" for name in ("fig1d", "fig4", "fig5", *tables)}
    expected |= {f"pool.{name}" for name in ("fig3", "direction", "storage", *tables[:5])}
    expected |= {
        f"lsamd.{name}" for name in ("fig4a", "fig4b", "fig4cd", "fig5", "fig6", "fig7", "table1", "table2", "table4")
    }
    expected |= {f"lsamd.{name}" for name in ("expansion", "many", "storage")}
    expected |= {f"tal.{name}" for name in ("fig5", "sizes", "table1", "table3", "table4", "table5", "table7")}
    expected |= {f"lets.{name}" for name in ("fig4", "storage", "table1", "table2", "table3", "table6", "table7")}
    expected |= {"wave.abstract", "wave.ablations", "sweet.abstract"}
    assert len(expected) == 8 + 9 + 8 + 12 + 7 + 7 + 3
    assert expected <= set(GROUPS)
    assert {name.partition("-")[0] for name in GROUPS if not name.startswith("any-size.")} == expected
    papers = [name.partition(".")[0] for name in GROUPS]
    assert papers == sorted(papers, key=list(PREFIXES.values()).index)
    assert [papers.count(name) for name in PREFIXES.values()] == [9, 11, 8, 12, 7, 7, 2, 1, 2]


def test_every_group_says_where_it_is_from_and_every_claim_what_was_printed() -> None:
    sources = [(group.paper, group.source) for group in GROUPS.values()]
    assert len(set(sources)) == len(sources)
    for name, group in GROUPS.items():
        kind, number = ("Figure", "fig") if ".fig" in name else ("Table", "table")
        if number in name:
            assert group.source.replace("Figures", "Figure").startswith(f"{kind} {name.partition(number)[2][0]}")
        texts = [claim.text for claim in group.claims]
        assert len(set(texts)) == len(texts)
        assert all(claim.printed.strip() for claim in group.claims), name


# -- every group at every scale ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_a_group_lays_out_without_data_its_cells_can_be_made_and_its_filters_keep_some(name: str, scale: str) -> None:
    found = comparison(name, scale)
    whole = math.prod(len(found.recipe.chosen(field)) for field in ("contenders", "shapes", "tasks", "budgets"))  # type: ignore[arg-type]
    assert len(found.cells) < whole if found.recipe.run.skip_impossible else len(found.cells) == whole
    for cell in found.cells:
        if cell.gene:
            cell.method.refuse(cell.gene.shape, cell.shape, **cell.spec.options)
            cell.method.refuse_auxiliary(cell.gene.shape)
        assert max(cell.spec.layers or [1]) <= cell.shape.depth
    if scale == "laptop":
        line = estimate(GROUPS[name], found.recipe)
        assert line.startswith(f"{name}: ")
        assert f"{len(found.cells)} cells; " in line
    filters_keep_something_and_as_much_on_both_sides(name, found.cells)


def filters_keep_something_and_as_much_on_both_sides(name: str, cells: list[Cell]) -> None:
    for statistic, text in ((claim.statistic, claim.text) for claim in GROUPS[name].claims if claim.statistic):
        sides = mine, *others = [kept(cells, some) for some in (statistic.of, *statistic.minus)]
        assert all(sides), text
        for other, theirs in zip(statistic.minus, others, strict=True):
            if not statistic.best:  # of however many each side has
                fields = ["task", "budget", *["shape_name"] * (statistic.of.shape == other.shape)]
                places = [sorted([getattr(c, field) for field in fields] for c in side) for side in (mine, theirs)]
                assert places[0] == places[1], text
        if statistic.slope:
            assert len({cell.shape.params() if statistic.over == "params" else cell.shape.depth for cell in mine}) > 1
        metrics = [statistic.metric, *[statistic.minus_metric or statistic.metric] * len(others)]
        for metric, side in zip(metrics, sides, strict=True):
            if metric == "gene_top1":  # only a gene that was trained here has an accuracy
                assert all(cell.gene and cell.gene.recipe for cell in side), text
            if metric.startswith("first_"):
                assert all(cell.train for cell in side), text


# -- a group of our own ------------------------------------------------------------------------------------

EXACT = {"text": "Both orders agree at 10 and 11", "printed": "equal", "exact": "order_identity"}
BETTER = {
    "text": "TLEG is no more than 100 points below scratch",
    "printed": "0.1",
    "statistic": {"of": {"contender": "tleg"}, "minus": [{"contender": "scratch"}], "at_least": -100},
    "finding": {"laptop": "of course", "gpu": "unknown"},
}  # fmt: skip
WORSE = {**BETTER, "text": "It is 201 points better", "statistic": {**BETTER["statistic"], "at_least": 201}}
UNTESTED = {"text": "It is shiny", "printed": "a", "untested": "no such thing"}
FIELDS: dict[str, Any] = {"id": "tiny.one", "paper": "TINY", "source": "Table 9", "title": "Colours"}
RUN = {"run": {"shapes": ["d2"], "budgets": ["untuned"]}, "claims": [BETTER, WORSE, EXACT, UNTESTED]}


@pytest.fixture
def tiny(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a protocol and two groups of claims."""
    protocol = compare_fields(tmp_path, "$DATA", run={"seeds": [0, 1, 2]})
    for path, fields in (
        ("recipes/laptop/compare/protocol.yaml", protocol),
        ("claims/tiny/one.yaml", {**FIELDS, **RUN}),
        ("claims/tiny/exact.yaml", {**FIELDS, "id": "tiny.exact", "claims": [EXACT]}),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / path, fields)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_group_is_reproduced_and_judged(cli: CLI, tiny: Path, images: Path) -> None:
    done = cli("reproduce", "tiny.one", "--data", images)
    assert (done.code, done.err) == (0, "")
    path = tiny / "out" / "claims" / "tiny.one.json"
    assert done.out.splitlines()[-5:] == [
        "holds          TLEG is no more than 100 points below scratch",
        "does not hold  It is 201 points better",
        "holds          Both orders agree at 10 and 11",
        str(path),
        "next: learngene report",
    ]
    verdict = json.loads(path.read_text())
    assert VerdictFile.model_validate(verdict).id == "tiny.one"
    assert set(verdict) == {
        "kind", "version", "id", "scale", "paper", "source", "title", "seeds", "seconds", "environment", "commit",
        "run", "claims", "table", "plots", "digest",
    }  # fmt: skip
    assert (verdict["kind"], verdict["version"], verdict["scale"]) == ("learngene verdict", 1, "laptop")
    assert {name: verdict[name] for name in FIELDS} == FIELDS
    assert (verdict["seeds"], verdict["run"]["shapes"]) == ([0, 1, 2], ["d2"])
    holds, fails, exact = verdict["claims"]
    for claim in verdict["claims"]:
        assert set(claim) == {
            "text", "printed", "exact", "verdicts", "finding", "figures", "statistic", "outcome"
        }  # fmt: skip
    assert (holds["finding"], fails["outcome"], exact["verdicts"]) == ("of course", "does not hold", [])
    assert exact["figures"] == "of depths 7 to 12, the orders agree at 10, 11"
    (found,) = holds["verdicts"]
    assert set(found) == {"outcome", "against", "values", "mean", "low", "high", "reason"}
    assert len(found["values"]) == 3
    assert found["low"] <= found["mean"] <= found["high"]
    assert {entry["contender"]: entry["seeds"] for entry in verdict["table"]} == {"scratch": 3, "tleg": 3}
    assert all((tiny / "out" / "claims" / plot).exists() for plot in verdict["plots"])
    cells = contents(tiny / "out" / "cells")
    assert len(cells) == 6
    again = cli("reproduce", "tiny.one", "--data", images)
    assert (again.code, again.out.splitlines()) == (0, done.out.splitlines()[-5:])
    assert contents(tiny / "out" / "cells") == cells
    page, ledger = tiny / "page.html", tiny / "ledger.md"
    (tiny / "out" / "claims" / "broken.json").write_text("{")
    report = cli("report", "--results", tiny, "--out", page, "--markdown", ledger)
    assert report.code == 2
    broken = tiny / "out" / "claims" / "broken.json"
    assert report.err.splitlines() == [f"learngene: {broken}: damaged, it is no JSON; skipped"]
    assert report.out == f"1 verdict files of 2 groups: {page}, {ledger}\n"
    assert page.read_text().startswith("<!doctype html>")
    for text in (page.read_text(), ledger.read_text()):
        assert all(part in text for part in ("It is 201 points better", "of course", "does not hold", "no such thing"))
    assert "| It is shiny | a | not run | not run | not run |" in ledger.read_text()
    few = cli("reproduce", "tiny.one", "run.seeds=[0, 1]", "--data", images)
    outcomes = [line[:14].rstrip() for line in few.out.splitlines()[-5:-2]]
    assert (few.code, outcomes) == (0, ["inconclusive", "inconclusive", "holds"])
    assert json.loads(path.read_text())["claims"][0]["verdicts"][0]["reason"] == "fewer than 3 seeds: 2"


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "learngene cell"}', ""], ids=str)
def test_a_file_that_is_no_verdict_is_not_overwritten(
    text: str, refused: Callable[..., str], tiny: Path, images: Path
) -> None:
    path = tiny / "out" / "claims" / "tiny.one.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    line = refused("reproduce", "tiny.one", "--data", images)
    assert line == f"learngene: {path}: damaged or not a verdict; it was not overwritten: move it away"
    assert path.read_text() == text
    assert [entry.name for entry in (tiny / "out").iterdir()] == ["claims"]
    assert not (tiny / "store").exists()


def test_exact_claims_need_no_data(cli: CLI, tiny: Path) -> None:
    done = cli("reproduce", "tiny.exact")
    assert (done.code, done.out.splitlines()[0]) == (0, "holds          Both orders agree at 10 and 11")
    verdict = json.loads((tiny / "out" / "claims" / "tiny.exact.json").read_text())
    assert (verdict["claims"][0]["outcome"], verdict["run"], verdict["table"], verdict["seeds"]) == (
        "holds", None, [], []
    )  # fmt: skip


def test_the_cost_needs_no_data_and_runs_nothing(cli: CLI, tiny: Path) -> None:
    before = contents(tiny)
    sizes = "sizes={home: {images: 24, classes: 3}}"
    assert cli("reproduce", "tiny.one", sizes, "--cost").out.startswith("tiny.one: 1 ancestries, 3 genes, 6 cells; ")
    assert cli("reproduce", "tiny.exact", "--cost").out == "tiny.exact: exact tests only, nothing is trained\n"
    assert cli("reproduce", "tiny.one", "--cost").err.startswith("learngene: tiny.one: this protocol declares no sizes")
    assert contents(tiny) == before


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_group_or_scale_that_is_not_there_is_refused(refused: Callable[..., str]) -> None:
    assert refused("reproduce", "tleg.tabel2") == "learngene: no claims 'tleg.tabel2'; did you mean 'tleg.table2'?"
    line = refused("reproduce", "tleg.table2", "--scale", "labtop")
    assert line == "learngene: unknown scale 'labtop'; did you mean 'laptop'?"
    assert "say where that folder is with --data FOLDER" in refused("reproduce", "tleg.table2")
    line = refused("reproduce", "lets.fig4")
    assert line == "learngene: lets.fig4: is tested at gpu and paper scale, not at laptop scale; give that with --scale"


@pytest.mark.parametrize(("line", "holds"), [(0.19, True), (0.17, False)])
def test_real_weights_are_judged_by_what_was_measured(
    line: float, holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice 1 / 11 is 0.18."""
    (tmp_path / "claims").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LearngeneError, match=r"real_weights.json: no measurement of weights; benchmarks/real_weights"):
        EXACT_TESTS["real_matrices"]()
    shares = {"mean": 0.083, "line": line, "cubic": 0.3, "cosine": 0.01}
    tensors = dict.fromkeys((*MATRICES, "norm1.weight", "norm2.weight"), shares)
    model = {"linearity": 0.7, "independent": {"mean": 1 / 12, "line": 1 / 11, "cubic": 3 / 11}, "tensors": tensors}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "real_weights.json").write_text(json.dumps({"models": {"vit": model}}))
    for name in ("real_matrices", "real_norms"):
        found, figures = EXACT_TESTS[name]()
        assert (found, figures.startswith(f"{line} of the differences, 0.09 by chance;")) == (holds, True)
    assert EXACT_TESTS["real_first_component"]() == (True, "0.70, 0.09 by chance")


def test_all_groups_are_listed(cli: CLI) -> None:
    lines = cli("reproduce").out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(GROUPS)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no test": ({"claims": [{"text": "a"}]}, "claim: give statistic or exact"),
    "tested and not": (
        {"claims": [{**EXACT, "untested": "why"}]},
        "claim: give statistic or exact, or say in untested",
    ),
    "two tests": ({"claims": [{**BETTER, "exact": "sws_costs"}]}, "claim: give statistic or exact"),
    "unknown test": ({"claims": [{**EXACT, "exact": "sws_cost"}]}, "unknown exact test 'sws_cost'; did you mean 'sws_"),
    "no claim": ({"claims": []}, "claims: empty; give at least one"),
    "unknown key": ({"calims": []}, "unknown key 'calims'; did you mean 'claims'?"),
    "unknown scale": ({"scales": {"phone": {}}}, "scales.phone"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_group_that_cannot_be_tested_is_refused(case: str, tmp_path: Path) -> None:
    changes, line = CHANGES[case]
    path = tmp_path / "tiny" / "one.yaml"
    path.parent.mkdir()
    written(path, {**FIELDS, **RUN, **changes})
    with pytest.raises(LearngeneError) as error:
        load_claims(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_holds_no_claims_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    twice = json.dumps({**FIELDS, **RUN})
    for files, line in (
        ({}, "holds no claims"),
        ({"b": "- 1"}, r"b\.yaml: a recipe is a mapping"),
        ({"b": "a: ["}, r"b\.yaml: not valid YAML"),
        ({"b": twice, "c": twice}, r"c\.yaml: another file has the id 'tiny.one' already"),
    ):
        for name, text in files.items():
            (tmp_path / "a" / f"{name}.yaml").write_text(text)
        with pytest.raises(LearngeneError, match=line):
            load_claims(tmp_path)


def test_a_run_that_names_what_the_protocol_lacks_is_refused() -> None:
    group = validated(ClaimGroup, merge({**FIELDS, **RUN}, {"run": {"shapes": ["d99"]}}), "group")
    with pytest.raises(LearngeneError, match=r"tiny.one at laptop scale: run.shapes: no 'd99' is defined"):
        comparison_of(group, "laptop", declared=True)
