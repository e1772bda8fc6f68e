"""The notebooks of the documentation run, in this process, and have been run as they stand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUN: dict[str, Any] = runpy.run_path(str(ROOT / "docs/notebooks/run.py"))
NOTEBOOKS: list[Path] = RUN["notebooks"]()


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in RUN["read"](path)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows_as_much_as_it_did(path: Path) -> None:
    run: Callable[[Path], list[str]] = RUN["run"]
    for cell, text in zip(code(path), run(path), strict=True):
        assert len(text.splitlines()) == len(RUN["shown"](cell).splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_was_run_from_its_first_cell_to_its_last(path: Path) -> None:
    assert [cell["execution_count"] for cell in code(path)] == list(range(1, len(code(path)) + 1))
    assert "/tmp" not in path.read_text(encoding="utf-8")


def test_there_are_notebooks_of_three_kinds() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["five-sizes", "reading-the-ledger", "your-own-data"]
