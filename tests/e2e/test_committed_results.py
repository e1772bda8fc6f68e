"""The committed results are still found: keys are what they were, and their rows give the committed verdicts."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comparisons import contents
from learngene.comparing.cells import lay_out_declared
from learngene.comparing.claims.groups import comparison_of, load_claims
from learngene.comparing.claims.reproduce import table
from learngene.comparing.claims.verdict_file import judge_claim
from learngene.comparing.results import collect
from learngene.shipping.page import verdict
from pico import CLI

RESULTS = Path(__file__).parents[2] / "results" / "laptop"
HERE = {name: group for name, group in load_claims().items() if "laptop" in group.tested_at}
GROUPS = {name: group for name, group in HERE.items() if group.needs_runs}


def decided(rows: list[dict[str, Any]], claims: list[dict[str, Any]]) -> Any:
    """What a group's results decide: its table, and every claim's figures and outcome."""
    verdicts = [[claim[name] for name in ("text", "verdicts", "outcome")] for claim in claims]
    return json.loads(json.dumps([rows, verdicts]))


def committed(path: Path) -> Any:
    verdict = json.loads(path.read_text())
    return decided(verdict["table"], verdict["claims"])


def test_every_group_has_a_verdict() -> None:
    assert [name for name in HERE if not (RESULTS / "claims" / f"{name}.json").exists()] == []


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_every_cell_of_a_group_is_there_and_gives_the_committed_verdict(name: str) -> None:
    seeds = json.loads((RESULTS / "claims" / f"{name}.json").read_text())["seeds"]  # of one that goes on, those it has
    overrides = [f"out={RESULTS}", f"run.seeds={seeds}"]
    recipe = comparison_of(GROUPS[name], "laptop", overrides=overrides, declared=True)
    found = collect(*lay_out_declared(recipe))
    assert ([cell.path.name for cell in found.missing], found.failed, found.foreign) == ([], {}, [])
    claims = [judge_claim(claim, found.rows, "laptop").model_dump(mode="json") for claim in GROUPS[name].claims]
    assert decided(table(found.rows), claims) == committed(RESULTS / "claims" / f"{name}.json")


@pytest.mark.parametrize("record", sorted((RESULTS.parent / "ship").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_of_a_shipped_job_is_that_of_its_record_and_has_no_images(record: Path) -> None:
    page = record.with_suffix(".html").read_text()
    assert f"<h1>{verdict(json.loads(record.read_text()))}</h1>" in page
    assert "data:image" not in page
    assert len(page) < 300_000
    assert "/" not in json.loads(record.read_text())["recipe"]["data"]["source"]


def test_a_study_is_resumed_and_runs_nothing(cli: CLI, tmp_path: Path) -> None:
    """Its data set is scikit-learn's digits, so that the whole command can run."""
    study = RESULTS / "tal-study"
    shutil.copytree(study / "cells", tmp_path / "cells")
    before = contents(tmp_path / "cells")
    done = cli("compare", "recipes/laptop/compare/tal-study.yaml", f"out={tmp_path}", f"store={tmp_path / 'store'}")
    assert (done.code, done.err) == (0, "")
    assert contents(tmp_path / "cells") == before
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    for name in ("results.csv", "results.md"):
        assert (tmp_path / name).read_bytes() == (study / name).read_bytes()


def test_a_group_is_resumed_and_runs_nothing(cli: CLI, tmp_path: Path) -> None:
    """With stand-ins for the images, as many as there were."""
    name, image = "tleg.fig1", io.BytesIO()
    Image.new("L", (1, 1)).save(image, "PNG")
    with tarfile.open(tmp_path / "fashion-mnist-28px.tar", "w") as tar:
        for split, count in (("train", 5000), ("val", 10)):
            for index in range(count):
                entry = tarfile.TarInfo(f"{split}/{index % 10}/{index}.png")
                entry.size = len(image.getvalue())
                tar.addfile(entry, io.BytesIO(image.getvalue()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cells").symlink_to(RESULTS / "cells")
    places = (f"out={tmp_path / 'out'}", f"store={tmp_path / 'store'}")
    before = {path.name for path in (RESULTS / "cells").iterdir()}
    done = cli("reproduce", name, *places, "--data", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in (RESULTS / "cells").iterdir()} == before
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    again, then = (folder / "claims" / f"{name}.json" for folder in (tmp_path / "out", RESULTS))
    assert committed(again) == committed(then)
