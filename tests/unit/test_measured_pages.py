"""Tables of the docs are what was measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "page"), [("peers", "foundation.md"), ("replay", "teacher-cost.md")])
def test_the_table_is_that_of_the_result(name: str, page: str) -> None:
    program = runpy.run_path(str(ROOT / "benchmarks" / "pages.py"))
    text = (ROOT / "docs" / page).read_text()
    assert program["with_table"](name) == text
    result = json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())
    if name == "peers":
        peer = result["scores"]["peer"]["3"].values()
        assert f"| {sum(score['knn'] for score in peer) / len(peer):.1f}, " in text
    else:
        assert f"| step with stored logits | {result['seconds']['B/8 stored logits']['median']:.3f} s | " in text
