"""The table of the page on foundation models is what was measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_result() -> None:
    program = runpy.run_path(str(ROOT / "benchmarks" / "peers" / "page.py"))
    page = (ROOT / "docs" / "foundation.md").read_text()
    result = json.loads((ROOT / "results" / "benchmarks" / "peers.json").read_text())
    assert program["with_table"](page, result) == page
    peer = result["scores"]["peer"]["3"].values()
    assert f"| {sum(score['knn'] for score in peer) / len(peer):.1f}, " in page
