"""How stable searches are under different settings, and what their blocks are worth.

    learngene compare recipes/laptop/compare/lsamd-study.yaml --data FOLDER
    python benchmarks/search_study.py results/laptop/lsamd-study

Reads the cells of a comparison whose contenders differ in how blocks are searched, and writes ``stability.json`` and
``stability.md`` beside them: per contender how often base blocks are taken, how far the paths of different seeds agree
(Cohen's kappa over data sets and layers, mean over pairs of seeds), how far the selected blocks do (shared over all),
how good super nets are, and what descendants score.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

FIGURES = ("base_share", "kappa", "shared", "shared_by_choices", "super_nets")


def main() -> None:
    folder = Path(sys.argv[1])
    cells = [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))]
    names = dict.fromkeys(cell["contender"] for cell in cells)
    rows = [summary(name, [cell for cell in cells if cell["contender"] == name]) for name in names]
    rows.sort(key=lambda row: -row["mean_top1"])
    (folder / "stability.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "stability.md").write_text(table(rows))
    print(table(rows))


def summary(name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One contender's figures, over its seeds and tasks."""
    tasks = sorted({cell["task"] for cell in cells})
    out: dict[str, Any] = {"contender": name, "seeds": len({cell["seed"] for cell in cells})}
    for task in tasks:
        scores = [cell["last"]["top1"] for cell in cells if cell["task"] == task]
        out[task] = [statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None]
    out["mean_top1"] = statistics.fmean(cell["last"]["top1"] for cell in cells)
    searches = {cell["seed"]: cell["gene"]["search"] for cell in cells if cell["gene"] and "search" in cell["gene"]}
    if not searches:
        return out
    paths = [[used(task) for task in search["tasks"]] for search in searches.values()]
    flat = [list(itertools.chain(*path)) for path in paths]
    kept = [set(search["layers"]) for search in searches.values()]
    counted = [most_counted(search, len(layers)) for search, layers in zip(searches.values(), kept, strict=True)]
    pairs = list(itertools.combinations(range(len(flat)), 2))
    return out | {
        "base_share": statistics.fmean(itertools.chain(*flat)),
        "kappa": statistics.fmean(kappa(flat[a], flat[b]) for a, b in pairs) if pairs else None,
        "shared": shared(kept),
        "shared_by_choices": shared(counted),
        "super_nets": statistics.fmean(task["score"] for search in searches.values() for task in search["tasks"]),
        "layers": [sorted(layers) for layers in kept],
        "usage": [search["usage"] for search in searches.values()],
    }


def shared(kept: list[set[int]]) -> float | None:
    """Blocks that two seeds both keep over all that either keeps, mean over pairs of seeds."""
    pairs = list(itertools.combinations(kept, 2))
    return statistics.fmean(len(one & two) / len(one | two) for one, two in pairs) if pairs else None


def most_counted(search: dict[str, Any], count: int) -> set[int]:
    """The layers that most data sets take, ties by probability: what counting choices alone would keep."""
    usage, soft = search["usage"], search["soft_usage"]
    return {i + 1 for i in sorted(range(len(usage)), key=lambda i: (usage[i], soft[i]), reverse=True)[:count]}


def used(task: dict[str, Any]) -> list[int]:
    return [int(share >= 0.5) for share in task["share"]]


def kappa(one: list[int], two: list[int]) -> float:
    """Agreement beyond chance of two lists of 0 and 1; 1 if both never differ and never vary."""
    same = statistics.fmean(a == b for a, b in zip(one, two, strict=True))
    first, second = statistics.fmean(one), statistics.fmean(two)
    chance = first * second + (1 - first) * (1 - second)
    return 1.0 if chance == 1 else (same - chance) / (1 - chance)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, best descendants first."""
    tasks = [key for key in rows[0] if isinstance(rows[0][key], list) and key not in ("layers", "usage")]
    heads = [
        "setting",
        "base blocks taken",
        "agreement of seeds",
        "same blocks selected",
        "by choices",
        "super nets (%)",
        *tasks,
        "selected",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        figures = [f"{row[key]:.2f}" if row.get(key) is not None else "-" for key in FIGURES]
        figures += [f"{row[task][0]:.2f}" + (f" ± {row[task][1]:.2f}" if row[task][1] else "") for task in tasks]
        chosen = "; ".join(" ".join(map(str, layers)) for layers in row.get("layers", [])) or "-"
        lines.append(f"| {' | '.join([row['contender'], *figures, chosen])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
