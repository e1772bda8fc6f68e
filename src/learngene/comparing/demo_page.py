"""What a demo shows, made of ``demo.json`` alone: tables on the console, a picture and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from learngene.comparing.demo_tables import DEMOS, SIZES, Table
from learngene.comparing.html import write_page
from learngene.making.search.usage_map import usage_picture
from learngene.recipe.compare import SOURCE
from learngene.system.png import save_png
from learngene.system.speech import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1b6ca8", "#c4622d", "#6b6b6b")


def show(name: str, result: Mapping[str, Any], gene: Path, out: Path, epochs: int, console: Console) -> None:
    """Prints the tables of a demo, and writes its picture and its page."""
    demo, line, tables = DEMOS[name], partial(console.print, soft_wrap=True), []
    for key, table in demo.tables.items():
        title = table.title.format(epochs=epochs)
        shown = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for fact, heading in table.columns.items():
            shown.add_column(heading, justify="left" if fact in ("task", "blocks", "path") else "right", no_wrap=True)
        texts = [[_text(row, fact) for fact in table.columns] for row in result[key]]
        for row in texts:
            shown.add_row(*row)
        console.print(shown)
        tables.append((title, list(map(_one_line, table.columns.values())), texts))
    for text, pick in result["budgets"].items():
        line(f"{text}: {pick}{' layers' if isinstance(pick, int) else ''}")
    singly = sum(row["params"] for row in result["rows"])
    for contender, entry in result["genes"].items():
        line(
            f"{contender}: {entry['bytes'] / 1e6:.2f} MB stored for all; singly these models take "
            f"{4 * singly / 1e6:.2f} MB, {singly / entry['params']:.1f} times the parameters"
        )
    if macs := result["training_macs"]:
        least = min(macs, key=macs.__getitem__)
        for other in sorted(macs.keys() - {least}):
            line(
                f"{least}: condensed for all depths at {macs[least] / macs[other]:.2f} of the multiply-adds of {other}"
            )
    pictures = [(out / "demo.png", "scores of the descendants")]
    demo_picture(name, result, epochs, out / "demo.png")
    if "search" in result:
        usage_picture(result["search"], out / "search.png")
        pictures.insert(0, (out / "search.png", "data sets by layers, and who takes which base block"))
    ancestry = out / f"ancestry-{result['seed']}"
    commands = [command.format(gene=gene, ancestry=ancestry) for command in demo.next]
    images = [(path.read_bytes(), caption) for path, caption in pictures]
    values = {"name": name, "result": result, "epochs": epochs, "tables": tables, "pictures": images, "next": commands}
    write_page(out / "index.html", "demo.html", **values)
    written = [out / file for file in ("demo.json", "demo.png", "index.html")]
    text = f"Written in {result['seconds']:.0f} s: {', '.join(map(str, written))}"
    line()
    say(text, path=written[-1], files=list(map(str, written)), seconds=result["seconds"])
    line("\n".join(["Next, with your own budget and data:", *(f"  {command}" for command in commands)]))


def _text(row: Mapping[str, Any], key: str) -> str:
    """A cell of a table."""
    if key == "stored":
        return f"{4 * row['params'] / 1e6:.2f}"
    value = row[key]
    if key in SIZES:
        return f"{value / 1e6:.{3 if key == 'params' else 2}f}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if key == "task":
        return _task(row)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def demo_picture(name: str, result: Mapping[str, Any], epochs: int, path: Path) -> None:
    """Draws the tables of a demo: lines over depth or parameters by task; bars where there are many tasks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = []
    for key, table in DEMOS[name].tables.items():
        tasks = list(dict.fromkeys(row["task"] for row in result[key]))
        groups = [tasks] if len(tasks) > 2 else [[task] for task in tasks]
        panels += [(table, [row for row in result[key] if row["task"] in group]) for group in groups]
    alone = len(panels) == 1
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    shares = [2.2, 1] if alone else [1.7 if len({row["task"] for row in rows}) > 1 else 1 for _, rows in panels]
    axes = figure.subplots(1, len(shares), width_ratios=shares)
    for axis, (table, rows) in zip(axes, panels, strict=False):
        if len({row["task"] for row in rows}) > 1:
            _bars(axis, table, rows)
        else:
            _curves(axis, table, rows, epochs, result["ancestry"]["top1"] if alone else None)
        axis.legend(fontsize=8, ncols=3 if alone else 2, loc="lower right" if alone else "upper left", frameon=False)
    if alone:
        _stored(axes[-1], result)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def _curves(axis: Axes, table: Table, rows: Sequence[Mapping[str, Any]], epochs: int, ancestry: float | None) -> None:
    """A line for every column of scores; dotted where less was trained."""
    over = "depth" if "depth" in table.facts else "params"
    x = [row[over] / (1 if over == "depth" else 1e6) for row in rows]
    contenders = [name for name in dict.fromkeys(name for _, name, _ in table.scores.values()) if "scratch" not in name]
    for key, (heading, contender, score) in table.scores.items():
        number = contenders.index(contender) if contender in contenders else 2
        less = score == "untuned_top1" or contender == "scratch"
        look: dict[str, Any] = {"color": COLORS[number], "marker": "os^"[number], "label": _one_line(heading)}
        axis.plot(x, [row[key] for row in rows], ":" if less else "-", ms=5, lw=1.8, **look)
    if ancestry is not None:
        axis.axhline(ancestry, color="#2e7d32", lw=1)
        axis.text(x[0], ancestry + 0.3, "ancestry", color="#2e7d32", fontsize=9)
    tuned = f", after {epochs} epochs" if table.budget == "tuned" else ""
    axis.set(xlabel="depth of the descendant" if over == "depth" else "parameters of the descendant, M")
    axis.set(ylabel=f"{rows[0]['metric']}, %", title=f"{_task(rows[0])}{tuned}")
    if over == "depth":
        axis.set(xticks=x, ylim=(0, 105 if ancestry is not None else 125), yticks=range(0, 101, 20))


def _bars(axis: Axes, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Bars of means over the shapes by task, with a dot for every shape."""
    tasks = {row["task"]: row for row in rows}
    for number, (key, (heading, _, _)) in enumerate(table.scores.items()):
        for place, task in enumerate(tasks):
            values = [row[key] for row in rows if row["task"] == task]
            at, label = place + 0.27 * (number - 1), _one_line(heading) if place == 0 else None
            axis.bar(at, sum(values) / len(values), 0.25, color=COLORS[number], alpha=0.75, label=label)
            axis.plot([at] * len(values), values, ".", color="#222222", ms=4)
    names = [f"{_task(row)}\n{row['classes']} classes" for row in tasks.values()]
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set(ylabel="top-1, %", ylim=(0, 115), yticks=range(0, 101, 20), title="untuned; dots: the depths")


def _stored(axis: Axes, result: Mapping[str, Any]) -> None:
    """Bars of the parameters to store: of each gene, and of all models one by one."""
    singly = sum(row["params"] for row in result["rows"]) / 1e6
    sizes = {f"{name} gene": entry["params"] / 1e6 for name, entry in result["genes"].items()}
    sizes[f"{len(result['rows'])} models"] = singly
    bars = axis.barh(list(sizes), list(sizes.values()), color=[*COLORS[: len(sizes) - 1], "#9a9a9a"])
    axis.bar_label(bars, fmt="%.2f M", padding=4, fontsize=9)
    axis.set(xlim=(0, singly * 1.25), title="parameters to store")
    axis.invert_yaxis()


def _one_line(heading: str) -> str:
    return " ".join(heading.split())


def _task(row: Mapping[str, Any]) -> str:
    name = "digits" if row["task"] == SOURCE else str(row["task"])
    return f"{name} (unseen)" if row["unseen"] else name
