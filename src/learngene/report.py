"""Plots and the HTML page, made from results and nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from learngene.system.files import write_file
from learngene.system.png import save_png

SERIES = {
    "tleg_tuned": ("TLEG, tuned", "#1b6ca8", "-", "o"),
    "tleg_untuned": ("TLEG, untuned", "#1b6ca8", ":", "o"),
    "sws_tuned": ("SWS, tuned", "#c4622d", "-", "s"),
    "sws_untuned": ("SWS, untuned", "#c4622d", ":", "s"),
    "scratch_3x": ("scratch, 3x epochs", "#6b6b6b", "-", "^"),
    "scratch": ("scratch, same epochs", "#6b6b6b", ":", "^"),
}


def demo_plot(result: dict[str, Any], path: Path) -> None:
    """Draws accuracy against depth, and what has to be stored for all depths.

    Args:
        result: The content of ``demo.json``.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, depths = result["rows"], [row["depth"] for row in result["rows"]]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    left.axhline(result["ancestry"]["top1"], color="#2e7d32", lw=1)
    left.text(depths[0], result["ancestry"]["top1"] + 0.8, "ancestry", color="#2e7d32", fontsize=9)
    left.axvline(result["auxiliary_depth"], color="#dddddd", lw=6, zorder=0)
    for key, (label, color, line, marker) in SERIES.items():
        values = [row[key] for row in rows]
        left.plot(depths, values, line, color=color, marker=marker, ms=5, lw=1.8, label=label)
    left.set(xlabel="depth of the descendant (grey: auxiliary model)", ylabel="top-1 on digits, %", xticks=depths)
    left.set_ylim(0, 105)
    left.legend(fontsize=8, ncols=3, loc="lower right", frameon=False)
    left.set_title(f"One gene, {len(depths)} depths, {result['tune_epochs']} epochs of tuning", fontsize=11, loc="left")

    singly = sum(row["params"] for row in rows) / 1e6
    names = ["TLEG gene", "SWS gene", f"{len(rows)} models"]
    sizes = [result["genes"]["tleg"]["params"] / 1e6, result["genes"]["sws"]["params"] / 1e6, singly]
    bars = right.barh(names, sizes, color=["#1b6ca8", "#c4622d", "#9a9a9a"])
    right.bar_label(bars, fmt="%.2f M", padding=4, fontsize=9)
    right.set_xlim(0, singly * 1.25)
    right.invert_yaxis()
    right.set_title("Parameters to store", fontsize=11, loc="left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def demo_page(result: dict[str, Any], plot: Path, path: Path) -> None:
    """Writes one self-contained HTML page with the plot and the table.

    Args:
        result: The content of ``demo.json``.
        plot: The PNG of ``demo_plot``.
        path: HTML file to write.
    """
    epochs = result["tune_epochs"]
    headings = [
        "depth",
        "params",
        "MACs",
        "stored",
        "TLEG untuned",
        f"TLEG, {epochs} epochs",
        "SWS untuned",
        f"SWS, {epochs} epochs",
        f"scratch, {epochs} epochs",
        f"scratch, {3 * epochs} epochs",
    ]
    body = "".join(
        f"<tr><td>{row['depth']}<td>{row['params'] / 1e6:.3f} M<td>{row['macs'] / 1e6:.2f} M"
        f"<td>{4 * row['params'] / 1e6:.2f} MB" + "".join(f"<td>{row[key]:.1f}" for key in list(row)[3:])
        for row in result["rows"]
    )
    genes = "".join(
        f"<li>{name.upper()}: {gene['params'] / 1e6:.3f} M parameters in {gene['bytes'] / 1e6:.2f} MB, "
        f"top-1 {gene['top1']:.1f} % at the auxiliary depth {result['auxiliary_depth']}"
        for name, gene in result["genes"].items()
    )
    budgets = "".join(f"<li>{html.escape(text)}: {depth} layers" for text, depth in result["budgets"].items())
    ancestry = result["ancestry"]
    intro = f"""The ancestry model ({html.escape(ancestry["name"])}, top-1 {ancestry["top1"]:.1f} % on scikit-learn's
digits) was condensed by distillation, without labels, into two small genes. Each gene was expanded into models of
{len(result["rows"])} depths, which were scored as they are, and after {epochs} epochs of fine-tuning."""
    after = f"""<p>Accuracies are top-1 in percent on the validation digits, one seed ({result["seed"]}).</p>
<h2>Budgets</h2><ul>{budgets}</ul>
<h2>Next</h2>
<p><code>learngene plan GENE --max-params 10M</code> lists the shapes that fit;
<code>learngene expand GENE --depth 10 --out DIR</code> makes one;
<code>learngene finetune --model DIR --data YOUR_IMAGES --out RUN</code> tunes it.</p>"""
    table = f"<table><tr>{''.join(f'<th>{heading}' for heading in headings)}{body}</table>"
    caption = "accuracy over depth, and parameters to store"
    text = _page("One model in, every depth out", intro, f"<ul>{genes}</ul>", plot, caption, table + after, result)
    write_file(path, lambda temporary: temporary.write_text(text))


def pool_plot(result: dict[str, Any], path: Path) -> None:
    """Draws accuracy against parameters for every path of a pool and of an SN-Net.

    Args:
        result: The content of the pool demo's ``demo.json``.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.axhline(result["ancestry"]["top1"], color="#2e7d32", lw=1)
    params = [row["params"] / 1e6 for row in rows]
    axis.text(params[0], result["ancestry"]["top1"] + 0.2, "ancestry", color="#2e7d32", fontsize=9)
    for key, label, color, marker in (("pool", "Learngene Pool", "#1b6ca8", "o"), ("sn_net", "SN-Net", "#c4622d", "s")):
        values = [row[key] for row in rows]
        axis.plot(params, values, "-", color=color, marker=marker, ms=5, lw=1.2, label=label)
    for row in (rows[0], rows[-1]):
        place: Any = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axis.annotate(row["blocks"], (row["params"] / 1e6, row["pool"]), **place)
    axis.set(xlabel="parameters of the path, M", ylabel="top-1 on digits, %")
    axis.legend(fontsize=8, loc="lower right", frameon=False)
    axis.set_title(f"One pool, {len(rows)} models", fontsize=11, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def pool_page(result: dict[str, Any], plot: Path, path: Path) -> None:
    """Writes one self-contained HTML page with the plot and the table of the pool demo.

    Args:
        result: The content of ``demo.json``.
        plot: The PNG of ``pool_plot``.
        path: HTML file to write.
    """
    epochs, ancestry = result["epochs"], result["ancestry"]
    intro = f"""A ViT of {ancestry["depth"]} layers (top-1 {ancestry["top1"]:.1f} % on scikit-learn's digits) was
distilled for {epochs["rows"]} epochs into two rows of blocks. Stitch layers lead from the narrow row to the wide one,
and paths through both were tuned together for {epochs["paths"]} epochs. Every path is a model; none was tuned by
itself. The SN-Net has the same rows, trained without an ancestry for {epochs["anchors"]} epochs."""
    body = "".join(
        f"<tr><td>{row['blocks']}<td>{row['path']}<td>{row['params'] / 1e6:.3f} M<td>{row['macs'] / 1e6:.2f} M"
        f"<td>{row['pool']:.1f}<td>{row['sn_net']:.1f}"
        for row in result["rows"]
    )
    headings = ("blocks", "path", "params", "MACs", "pool", "SN-Net")
    budgets = "".join(f"<li>{html.escape(text)}: {name}" for text, name in result["budgets"].items())
    after = f"""<p>Accuracies are top-1 in percent on the validation digits, one seed ({result["seed"]}). Blocks are
those taken of the narrow and of the wide row.</p><h2>Budgets</h2><ul>{budgets}</ul>"""
    table = f"<table><tr>{''.join(f'<th>{heading}' for heading in headings)}{body}</table>"
    text = _page("One pool, every size between", intro, "", plot, "accuracy over parameters", table + after, result)
    write_file(path, lambda temporary: temporary.write_text(text))


def lsamd_plot(result: dict[str, Any], path: Path) -> None:
    """Draws the scores of descendants over depth, one panel for every data set they were tuned on.

    Args:
        result: The content of the LSAMD demo's ``demo.json``.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs, tasks = result["epochs"]["tune"], list(dict.fromkeys(row["task"] for row in result["rows"]))
    series = {
        "lsamd": (f"LSAMD, {epochs} epochs", "#1b6ca8", "-", "o"),
        "scratch_3x": (f"scratch, {3 * epochs} epochs", "#6b6b6b", "-", "^"),
        "scratch": (f"scratch, {epochs} epochs", "#6b6b6b", ":", "^"),
    }
    figure = Figure(figsize=(4.5 * len(tasks), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        rows = [row for row in result["rows"] if row["task"] == task]
        depths = [row["depth"] for row in rows]
        for key, (label, color, line, marker) in series.items():
            values = [row[key] for row in rows]
            panel.plot(depths, values, line, color=color, marker=marker, ms=5, lw=1.8, label=label)
        panel.set(xlabel="depth of the descendant", ylabel=f"{rows[0]['metric']}, %", xticks=depths, ylim=(0, 100))
        panel.set_title(task, fontsize=11, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e4e4e4", lw=0.8)
    panels[0].legend(fontsize=8, loc="lower right", frameon=False)
    save_png(figure, path)


def lsamd_page(result: dict[str, Any], pictures: list[Path], path: Path) -> None:
    """Writes one self-contained HTML page with the heat map, the plot and the table of the LSAMD demo.

    Args:
        result: The content of ``demo.json``.
        pictures: The PNGs of ``usage_picture`` and of ``lsamd_plot``.
        path: HTML file to write.
    """
    epochs, ancestry, search = result["epochs"], result["ancestry"], result["search"]
    kept = ", ".join(str(layer) for layer in search["layers"])
    intro = f"""A ViT of {ancestry["depth"]} layers learned scikit-learn's digits (top-1 {ancestry["top1"]:.1f} %).
{len(search["tasks"])} data sets were made of the digits; the last has masks, and gives every pixel of a canvas a class.
For {epochs["search"]} epochs, each could take the ViT's own block in every layer, or train a copy of it. The
{len(search["layers"])} blocks that most data sets take as they are ({kept}) became the gene. It was expanded to several
depths, and the descendants were tuned for {epochs["tune"]} epochs."""
    body = "".join(
        f"<tr><td>{html.escape(row['task'])}<td>{row['depth']}<td>{' '.join(str(block) for block in row['blocks'])}"
        f"<td>{row['params'] / 1e6:.3f} M<td>{row['macs'] / 1e6:.2f} M"
        f"<td>{row['lsamd']:.1f}<td>{row['scratch']:.1f}<td>{row['scratch_3x']:.1f}"
        for row in result["rows"]
    )
    headings = ["data set", "depth", "blocks", "params", "MACs", f"LSAMD, {epochs['tune']} epochs"]
    headings += [f"scratch, {epochs['tune']} epochs", f"scratch, {3 * epochs['tune']} epochs"]
    after = f"""<p>Scores in percent on the validation images, one seed ({result["seed"]}): mean IoU on the canvas,
elsewhere top-1. The gene carries what the ancestry learned from the digits, which scratch has never seen. This page
does not show that these blocks are better than others of the same ViT.</p>"""
    table = f"<table><tr>{''.join(f'<th>{heading}' for heading in headings)}{body}</table>"
    heat_map = _picture(pictures[0], "data sets by layers, and who takes which base block")
    text = _page(
        "Blocks that data sets share", intro, heat_map, pictures[1], "scores over depth", table + after, result
    )
    write_file(path, lambda temporary: temporary.write_text(text))


def tal_plot(result: dict[str, Any], path: Path) -> None:
    """Draws untuned accuracy by task, and what becomes of it on the unseen task.

    Args:
        result: The content of the TAL demo's ``demo.json``.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, tuned, epochs = result["rows"], result["tuned"], result["epochs"]["tune"]
    unseen = {row["task"] for row in tuned}
    tasks = {row["task"]: row["classes"] for row in rows}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    series = {"tal": ("TAL", "#1b6ca8"), "logah": ("LoGAH v4", "#c4622d"), "random": ("random", "#9a9a9a")}
    for number, (key, (label, color)) in enumerate(series.items()):
        for place, task in enumerate(tasks):
            values = [row[key] for row in rows if row["task"] == task]
            at = place + 0.27 * (number - 1)
            mean = sum(values) / len(values)
            left.bar(at, mean, 0.25, color=color, alpha=0.75, label=label if place == 0 else None)
            left.plot([at] * len(values), values, ".", color="#222222", ms=4)
    names = [f"{task}\n{'unseen, ' * (task in unseen)}{classes} classes" for task, classes in tasks.items()]
    left.set_xticks(range(len(names)), names, fontsize=8)
    left.set(ylabel="top-1, %", ylim=(0, 115), yticks=range(0, 101, 20))
    left.legend(fontsize=8, ncols=3, loc="upper left", frameon=False)
    left.set_title("Untuned; dots: the depths", fontsize=11, loc="left")
    depths = [row["depth"] for row in tuned]
    before = {row["depth"]: row["tal"] for row in rows if row["task"] in unseen}
    lines = {
        f"TAL, {_epochs(epochs)}": ([row["tal"] for row in tuned], "#1b6ca8", "-", "o"),
        "TAL, untuned": ([before[depth] for depth in depths], "#1b6ca8", ":", "o"),
        f"LoGAH v4, {_epochs(epochs)}": ([row["logah"] for row in tuned], "#c4622d", "-", "s"),
        f"scratch, {_epochs(3 * epochs)}": ([row["scratch_3x"] for row in tuned], "#6b6b6b", "-", "^"),
        f"scratch, {_epochs(epochs)}": ([row["scratch"] for row in tuned], "#6b6b6b", ":", "^"),
    }
    for label, (values, color, line, marker) in lines.items():
        right.plot(depths, values, line, color=color, marker=marker, ms=5, lw=1.8, label=label)
    right.set(xlabel="depth of the descendant", xticks=depths, ylim=(0, 125), yticks=range(0, 101, 20))
    right.set_title(f"Unseen: {', '.join(unseen)}", fontsize=11, loc="left")
    right.legend(fontsize=7, ncols=2, loc="upper left", frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def _epochs(count: int) -> str:
    return f"{count} epoch" + "s" * (count > 1)


def tal_page(result: dict[str, Any], plot: Path, path: Path) -> None:
    """Writes one self-contained HTML page with the plot and the tables of the TAL demo.

    Args:
        result: The content of ``demo.json``.
        plot: The PNG of ``tal_plot``.
        path: HTML file to write.
    """
    epochs, ancestry = result["epochs"], result["ancestry"]
    unseen = {row["task"] for row in result["tuned"]}
    seen = len({row["task"] for row in result["rows"]} - unseen)
    trained = ", ".join(str(depth) for depth in result["trained_depths"])
    intro = f"""A ViT of {ancestry["depth"]} layers learned scikit-learn's digits (top-1 {ancestry["top1"]:.1f} %).
Under its guidance a hypernetwork learned for {epochs["home"]} epochs to predict ViTs of {trained} layers for digits.
For {epochs["tasks"]} more epochs it learned to predict them for {seen} tasks, of which it is told the ancestry's mean
features of their images. LoGAH v4 is the same without guidance and without task layers."""
    body = "".join(
        f"<tr><td>{html.escape(row['task'])}{' (unseen)' * (row['task'] in unseen)}<td>{row['classes']}"
        f"<td>{row['depth']}<td>{row['params'] / 1e6:.3f} M<td>{row['macs'] / 1e6:.2f} M"
        f"<td>{row['tal']:.1f}<td>{row['logah']:.1f}<td>{row['random']:.1f}"
        for row in result["rows"]
    )
    headings = ("task", "classes", "depth", "params", "MACs", "TAL", "LoGAH v4", "random")
    table = f"<table><tr>{''.join(f'<th>{heading}' for heading in headings)}{body}</table>"
    body = "".join(
        f"<tr><td>{html.escape(row['task'])}<td>{row['depth']}"
        f"<td>{row['tal']:.1f}<td>{row['logah']:.1f}<td>{row['scratch']:.1f}<td>{row['scratch_3x']:.1f}"
        for row in result["tuned"]
    )
    count = epochs["tune"]
    runs = [f"{name}, {_epochs(count)}" for name in ("TAL", "LoGAH v4", "scratch")]
    names = ["task", "depth", *runs, f"scratch, {_epochs(3 * count)}"]
    tuned = f"<table><tr>{''.join(f'<th>{name}' for name in names)}{body}</table>"
    after = f"""<h2>Untuned</h2>{table}<h2>Fine-tuned on an unseen task</h2>{tuned}
<p>Accuracies are top-1 in percent on the validation images, one seed ({result["seed"]}). Tasks with equal class counts
are the same input to LoGAH v4, so it predicts one and the same ViT for both. Both hypernetworks have seen digits, which
scratch has not.</p>"""
    text = _page("Weights on demand, task by task", intro, "", plot, "accuracy by task", after, result)
    write_file(path, lambda temporary: temporary.write_text(text))


def _picture(png: Path, caption: str) -> str:
    """A picture as part of a page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}" alt="{caption}">'


def _page(title: str, intro: str, before: str, plot: Path, caption: str, after: str, result: dict[str, Any]) -> str:
    """A self-contained page: a title and a paragraph, a picture, and HTML before and after it."""
    where = html.escape(f"{result['environment']['processor']}, torch {result['environment']['versions']['torch']}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>learngene demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd }} th {{ font-weight: 600 }}
code {{ background: #f4f4f4; padding: .1rem .3rem }} footer {{ color: #777; font-size: .85rem; margin-top: 2rem }}
</style>
<h1>{title}</h1>
<p>{intro}</p>
{before}
{_picture(plot, caption)}
{after}
<footer>{where}; everything on this page comes from demo.json.</footer>
</html>
"""
