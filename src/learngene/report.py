"""Plots and the HTML page, made from results and nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from learngene.figure import save_png
from learngene.files import write_file

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
    picture = base64.b64encode(plot.read_bytes()).decode()
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
    where = html.escape(f"{result['environment']['processor']}, torch {result['environment']['versions']['torch']}")
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>learngene demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd }} th {{ font-weight: 600 }}
code {{ background: #f4f4f4; padding: .1rem .3rem }} footer {{ color: #777; font-size: .85rem; margin-top: 2rem }}
</style>
<h1>One model in, every depth out</h1>
<p>The ancestry model ({html.escape(ancestry["name"])}, top-1 {ancestry["top1"]:.1f} % on scikit-learn's digits) was
condensed by distillation, without labels, into two small genes. Each gene was expanded into models of
{len(result["rows"])} depths, which were scored as they are, and after {epochs} epochs of fine-tuning.</p>
<ul>{genes}</ul>
<img src="data:image/png;base64,{picture}" alt="accuracy over depth, and parameters to store">
<table><tr>{"".join(f"<th>{heading}" for heading in headings)}{body}</table>
<p>Accuracies are top-1 in percent on the validation digits, one seed ({result["seed"]}).</p>
<h2>Budgets</h2><ul>{budgets}</ul>
<h2>Next</h2>
<p><code>learngene plan GENE --max-params 10M</code> lists the shapes that fit;
<code>learngene expand GENE --depth 10 --out DIR</code> makes one;
<code>learngene finetune --model DIR --data YOUR_IMAGES --out RUN</code> tunes it.</p>
<footer>{where}; everything on this page comes from demo.json.</footer>
</html>
"""
    write_file(path, lambda temporary: temporary.write_text(text))
