"""The table and the picture of ``docs/foundation.md``, made of ``results/benchmarks/peers.json`` alone.

    python benchmarks/peers/page.py

writes the picture, and the table between the page's two marks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT, PAGE, PICTURE = (
    ROOT / name for name in ("results/benchmarks/peers.json", "docs/foundation.md", "docs/foundation.png")
)
BEGIN, END = "<!-- from results/benchmarks/peers.json -->\n", "<!-- end -->\n"
KINDS = {
    "lightly-v3": "one gene, same loss",
    "cosine": "one gene, default loss",
    "peer": "lightly-train, one by one",
    "untrained": "untrained",
}
COLORS = {"lightly-v3": "#1b6ca8", "cosine": "#7fb2d6", "peer": "#c4622d", "untrained": "#6b6b6b"}


def table(result: Mapping[str, Any]) -> str:
    """KNN and linear accuracy in percent of every depth, the mean over sets, and what all depths cost."""
    lines = ["| depth | " + " | ".join(f"{text}: kNN, linear" for text in KINDS.values()) + " |"]
    lines.append("|---|" + "---|" * len(KINDS))
    depths = list(result["scores"]["peer"])
    for depth in depths:
        cells = [f"{mean(result, kind, depth, 'knn'):.1f}, {mean(result, kind, depth, 'linear'):.1f}" for kind in KINDS]
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    means = [f"{result['means'][kind]['knn']:.1f}, {result['means'][kind]['linear']:.1f}" for kind in KINDS]
    lines.append("| mean | " + " | ".join(means) + " |")
    costs = result["cpu_seconds"]
    seconds = [f"{costs[kind]:.0f} s" if kind in costs else "" for kind in KINDS]
    lines.append("| CPU time of all | " + " | ".join(seconds) + " |")
    return "\n".join(lines) + "\n"


def mean(result: Mapping[str, Any], kind: str, depth: str, what: str) -> float:
    """The mean over the judged sets."""
    scores = [score[what] for score in result["scores"][kind][depth].values()]
    return float(sum(scores) / len(scores))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """KNN over depth, a panel per judged set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(next(iter(result["scores"]["peer"].values())))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, len(sets)), sets, strict=True):
        for kind, text in KINDS.items():
            scores = result["scores"][kind]
            knn = [score[name]["knn"] for score in scores.values()]
            axis.plot([int(depth) for depth in scores], knn, "o-", ms=4, color=COLORS[kind], label=text)
        axis.set(title=name, xlabel="depth", ylabel="kNN, %", xticks=[int(depth) for depth in scores])
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def with_table(page: str, result: Mapping[str, Any]) -> str:
    """The page with its table as the result has it."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table(result) + END + rest.partition(END)[2]


if __name__ == "__main__":
    found = json.loads(RESULT.read_text())
    PAGE.write_text(with_table(PAGE.read_text(), found))
    draw(found, PICTURE)
