"""Which families of timm can be a teacher, a source and a descendant: what ``benchmarks/families.py`` found."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from learngene.system.files import in_package

COLUMNS = ("teacher", "source", "descendant")


def families_table() -> list[str]:
    """One line per family, and below why some are refused."""
    found = _record()
    rows = [("family", "stands for", *COLUMNS)]
    rows += [
        (each["name"], each["stands_for"], *(each[column].partition(":")[0] for column in COLUMNS))
        for each in found["families"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = ", ".join(f"{count} as {column}" for column, count in found["counts"].items())
    lines += ["", f"of {found['of']} families: {counts}; tried with timm {found['timm']}"]
    if (installed := version("timm")) != found["timm"]:
        lines[-1] += f", while {installed} is installed; benchmarks/families.py tries again"
    return lines + [f"{name}: {why}" for name, why in _reasons(found["families"]).items()]


def _reasons(families: list[dict[str, Any]]) -> dict[str, str]:
    """The first thing that is said against a family, by its name."""
    said = {each["name"]: [each[column] for column in COLUMNS if each[column] != "ok"] for each in families}
    return {name: texts[0].removeprefix("refused: ").removeprefix("shape: ") for name, texts in said.items() if texts}


def _record() -> dict[str, Any]:
    """The record of the installed package, or of a checkout."""
    path = in_package(Path(__file__).with_name("families.json"), "results/benchmarks/families.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record
