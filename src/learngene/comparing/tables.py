"""Tables of a comparison: means over seeds as Markdown, and every cell as a line of CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from learngene.comparing.results import ResultRow, Results
from learngene.system.files import write_file


def group(rows: Iterable[ResultRow], *fields: str) -> dict[tuple[Any, ...], list[ResultRow]]:
    """Rows by the values of some fields, in their order."""
    out: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        out.setdefault(tuple(getattr(row, field) for field in fields), []).append(row)
    return out


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of a single value is NaN."""
    numbers = list(values)
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else math.nan


def save_tables(results: Results, folder: Path, remarks: Sequence[str] = ()) -> list[Path]:
    """Writes ``results.csv`` (one line per cell) and ``results.md`` (means over seeds, and remarks below them)."""
    table, markdown = folder / "results.csv", folder / "results.md"
    write_file(table, lambda temporary: temporary.write_text(as_csv(results.rows)))
    text = as_markdown(results.rows) + "".join(f"\n{flat(remark)}\n" for remark in remarks)
    write_file(markdown, lambda temporary: temporary.write_text(text))
    return [table, markdown]


def as_csv(rows: Iterable[ResultRow]) -> str:
    """The columns of timm's results files (``param_count`` in millions, percentages with three digits), then ours."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    preparation = ["img_size", "crop_pct", "interpolation"]
    rows = list(rows)
    absent = (
        *preparation,
        "curve",
        "choices",
        "val_images",
        *(() if any(row.judge != "head" for row in rows) else ("judge",)),
    )
    own = [name for name in ResultRow.__dataclass_fields__ if name not in absent]
    writer.writerow(["model", "top1", "top1_err", "top5", "top5_err", "param_count", *preparation, *own, "curve"])
    for row in rows:
        scores = [row.last_top1, 100 - row.last_top1, *((row.last_top5, 100 - row.last_top5) if row.guesses else ())]
        shown = [f"{score:.3f}" for score in scores] + [""] * (4 - len(scores))
        values = [getattr(row, name) for name in own]
        writer.writerow(
            [
                f"{row.contender}_d{row.depth}_w{row.embed_dim}",
                *shown,
                f"{row.params / 1e6:.3f}",
                *(getattr(row, name) for name in preparation),
                *(f"{value:.6g}" if isinstance(value, float) else value for value in values),
                " ".join(f"{value:.2f}" for value in row.curve),
            ]
        )
    return text.getvalue()


def as_markdown(rows: Iterable[ResultRow]) -> str:
    """The table of ``means``."""
    return "\n".join(markdown_table(*means(rows))) + "\n"


def means(rows: Iterable[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of means over seeds, with the standard deviation where there is more than one."""
    headings = [
        "task", "budget", "shape", "contender", "params (M)", "stored (M)", "untuned top-1", "after 1 epoch",
        "last top-1", "last top-5", "last loss", "epochs", "total cost (T multiply-adds)", "seconds", "seeds",
    ]  # fmt: skip
    lines = []
    for (task, budget, shape, contender), some in group(rows, "task", "budget", "shape", "contender").items():
        one = some[0]
        lines.append(
            [
                task if one.guesses else f"{task} ({one.metric})",
                budget,
                shape,
                contender,
                f"{one.params / 1e6:.3f}",
                f"{one.stored_params / 1e6:.3f}",
                _mean(row.untuned_top1 for row in some),
                _mean(row.first_top1 for row in some) if one.epochs else "-",
                _mean(row.last_top1 for row in some),
                _mean(row.last_top5 for row in some) if one.guesses else "-",
                _mean((row.last_loss for row in some), 3) if one.judge == "head" else "-",
                str(one.epochs),
                f"{one.total_macs / 1e12:.3g}",
                f"{statistics.fmean(row.seconds for row in some):.1f}",
                str(len(some)),
            ]
        )
    return headings, lines


def _mean(values: Iterable[float], digits: int = 2) -> str:
    """``mean ± standard deviation`` as text."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; lines of a cell's text are kept apart."""
    out = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return out + [f"| {' | '.join('<br>'.join(map(flat, cell.splitlines())) for cell in row)} |" for row in rows]


def flat(text: str) -> str:
    """Markdown text on one line in which neither a bar nor an angle bracket means anything."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
