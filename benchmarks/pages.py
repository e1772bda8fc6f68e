"""Tables of the docs that are made of results alone, and the picture of ``docs/foundation.md``.

    python benchmarks/pages.py

writes the picture, and each table between its page's two marks.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
END = "<!-- end -->\n"
KINDS = {
    "lightly-v3": "one gene, same loss",
    "cosine": "one gene, default loss",
    "peer": "lightly-train, one by one",
    "untrained": "untrained",
}
COLORS = {"lightly-v3": "#1b6ca8", "cosine": "#7fb2d6", "peer": "#c4622d", "untrained": "#6b6b6b"}


def five_sizes(result: Mapping[str, Any]) -> str:
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


def teacher_cost(result: Mapping[str, Any]) -> str:
    """What a step takes with and without a teacher at hand, and how much faster several runs are together."""
    seconds, stated, sizes = result["seconds"], result["stated"], ("B/8", "S/14")
    ratios = {each["what"]: each["value"] for each in result["targets"]}

    def row(text: str, value: Callable[[str], str]) -> str:
        return f"| {text} | " + " | ".join(map(value, sizes)) + " |"

    def median(case: str) -> Callable[[str], str]:
        return lambda size: f"{seconds[f'{size} {case}']['median']:.3f} s"

    def over(what: str, digits: int = 2) -> Callable[[str], str]:
        return lambda size: f"{ratios[f'{size}: {what}']:.{digits}f}" if f"{size}: {what}" in ratios else ""

    def memory(size: str) -> str:
        found = stated[size].get("peak memory, MB")
        return f"{found['asking']:,} and {found['stored']:,} MB" if found else ""

    together = {size: stated[size]["times as fast, all runs together, logits"] for size in sizes}
    runs = list(together["B/8"])
    lines = [
        "| | ViT-B-like teacher, patch 8, 64 px, batch 16 | ViT-S/14 teacher, 56 px, batch 32 |",
        "|---|---|---|",
        row("step that asks for logits", median("asking for logits")),
        row("step with stored logits", median("stored logits")),
        row("the same, over the step that asks", over("step with stored logits over today's")),
        row(
            "step with stored class tokens, over the step that asks", over("step with stored class tokens over today's")
        ),
        row(
            "step with stored logits, over a bare loop of timm and PyTorch without teacher",
            over("step with stored logits over a bare student loop"),
        ),
        row("step that asks, over that bare loop", lambda size: f"{stated[size]['asking over bare']:.1f}"),
        row("share of a step that reading takes", over("share of reading, logits", 3)),
        row("writing, over running the teacher on the same batches", over("writing over running the teacher")),
        row(
            "four genes in one pass that asks, over four such runs",
            over("four genes in one pass over four runs, teacher not stored"),
        ),
        row("peak memory of the process, asking and on stored logits", memory),
        "",
        "The first run pays the teacher, so **nothing is saved for one run with fresh views**. All runs together are",
        "so many times as fast as without storing:",
        "",
        f"| runs on the same views | {' | '.join(runs)} |",
        "|---" * (1 + len(runs)) + "|",
        *(
            f"| {text} | {' | '.join(f'{together[size][each]:.2f}' for each in runs)} |"
            for text, size in (("ViT-B-like teacher", "B/8"), ("ViT-S/14 teacher", "S/14"))
        ),
    ]
    return "\n".join(lines) + "\n"


def tal_seeds(cells: Sequence[Mapping[str, Any]]) -> str:
    """How far TAL's untuned descendants are ahead of others', over all tasks and depths, seed by seed."""
    others = {"v4": "LoGAH v4", "tal-no-tsl": "TAL without task layers", "tal-no-anc": "TAL without guidance"}
    untuned = [cell for cell in cells if cell["train"] is None]
    seeds = sorted({cell["seed"] for cell in untuned if cell["contender"] == "tal"})

    def mean_of(contender: str, seed: int) -> float:
        mine = [cell for cell in untuned if (cell["contender"], cell["seed"]) == (contender, seed)]
        assert len(mine) == len({(cell["task"], cell["shape"]["depth"]) for cell in mine}) == 18
        return fmean(cell["untuned"]["top1"] for cell in mine)

    tal = {seed: mean_of("tal", seed) for seed in seeds}
    lines = ["| seed | TAL, mean top-1 | " + " | ".join(f"over {text}" for text in others.values()) + " |"]
    lines.append("|---" * (2 + len(others)) + "|")
    for seed in seeds:
        ahead = [f"{tal[seed] - mean_of(name, seed):+.2f}" for name in others]
        lines.append(f"| {seed} | {tal[seed]:.2f} | " + " | ".join(ahead) + " |")
    return "\n".join(lines) + "\n"


def any_size_ideas(result: Mapping[str, Any]) -> str:
    """Every idea's accuracy, best first: the means over seeds of what was trained and of what was not."""
    ideas = runpy.run_path(str(ROOT / "benchmarks/any_size_ideas.py"))
    kinds, names = ("TRAINED", "OTHER"), ("32x4", "96x8", "80x6")
    rows = []
    for name, runs in result["ideas"].items():
        tops = {size: fmean(run["top1"][size] for run in runs.values()) for size in next(iter(runs.values()))["top1"]}
        groups = [[tops[f"{w}x{d}"] for w, d in ideas[kind] if f"{w}x{d}" in tops] for kind in kinds]
        means = [fmean(group) if group else None for group in groups]
        figures = [f"{value:.1f}" if value is not None else "" for value in (*means, *map(tops.get, names))]
        stored = fmean(run["stored"] for run in runs.values())
        text = f"| {ideas['IDEAS'][name].text} | {len(runs)} | {stored:,.0f} | " + " | ".join(figures) + " |"
        rows.append((means[0], text))
    head = [
        "idea",
        "seeds",
        "stored numbers",
        "six trained",
        "four others",
        *(each.replace("x", " x ") for each in names),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(text for _, text in sorted(rows, reverse=True))]
    return "\n".join(lines) + "\n"


def which_method(result: Mapping[str, Any]) -> str:
    """Mean top-1 over the sizes of every way, a line for each job and budget, and what the table advises there."""
    from learngene.shipping.evidence import advise, job_of
    from learngene.shipping.ways import WAYS

    ways = [name for name in WAYS if any(cell["method"] == name for cell in result["cells"])]
    jobs: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for cell in result["cells"]:
        key = (cell["data"], cell["teacher"], cell["sizes"], cell["budget"])
        jobs.setdefault(key, {}).setdefault(cell["method"], []).append(cell)
    head = ["set", "images", "teacher", "sizes", "CPU seconds", "epochs each", "seeds", *ways, "advice there"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (data, teacher, sizes, budget), found in sorted(jobs.items()):
        one = next(iter(found.values()))[0]
        means = {name: fmean(cell["mean"] for cell in cells) for name, cells in found.items()}
        best = max(means.values())
        texts = [f"{means[name]:.1f}" if name in means else "" for name in ways]
        texts = [f"**{text}**" if text == f"{best:.1f}" else text for text in texts]
        start = [data, f"{one['images']:,}", teacher, sizes, budget, f"{one['epochs']:.0f}", len(found["scratch"])]
        lines.append(
            "| " + " | ".join(map(str, [*start, *texts, advise(job_of(one), ways, result["cells"]).method])) + " |"
        )
    return "\n".join(lines) + "\n"


TUNED = {
    ("home", "untuned"): "untuned",
    ("home", "short"): "two epochs",
    ("gtsrb", "transfer"): "eight epochs of traffic signs",
    ("cifar10", "transfer"): "eight epochs of CIFAR-10",
}
"""What task and budget mean in the comparisons of six shapes."""


def six_shapes(verdict: Mapping[str, Any]) -> str:
    """Top-1 of every contender at every shape, before and after tuning, means over seeds; and what each stores."""
    rows = {(row["contender"], (row["task"], row["budget"]), row["shape"]): row for row in verdict["table"]}
    shapes = list(dict.fromkeys(shape for _, _, shape in rows))
    lines = ["| | seeds | stored numbers | " + " | ".join(shapes) + " | mean |", "|---" * (4 + len(shapes)) + "|"]
    params = {shape: next(row["params"] for (*_, name), row in rows.items() if name == shape) for shape in shapes}
    lines.append("| parameters | | | " + " | ".join(f"{params[shape]:,}" for shape in shapes) + " | |")
    for contender in dict.fromkeys(contender for contender, _, _ in rows):
        for tuning, text in TUNED.items():
            mine = [rows[contender, tuning, shape] for shape in shapes if (contender, tuning, shape) in rows]
            if len(mine) == len(shapes):
                tops = [row["last_top1"][0] for row in mine]
                alone = contender.startswith("distilled")
                stored = sum(row["stored_params"] for row in mine) if alone else mine[0]["stored_params"]
                figures = " | ".join(f"{top:.1f}" for top in (*tops, fmean(tops)))
                lines.append(f"| {contender}, {text} | {mine[0]['seeds']} | {stored:,} | {figures} |")
    return "\n".join(lines) + "\n"


def devices(result: Mapping[str, Any]) -> str:
    """How many times as fast as eager PyTorch one image goes through every runtime, and what else was timed."""
    over, seconds = result["over_eager"], result["seconds"]
    cases = list(dict.fromkeys(case for found in over.values() for case in found))
    rounds = next(iter(seconds.values()))["rounds"]
    words = {where: where.replace("1 threads", "one thread").replace("2 threads", "two") for where in over}
    lines = [f"Times as fast as eager PyTorch, one image; medians of {rounds} rounds:", ""]
    lines += ["| | " + " | ".join(words.values()) + " |", "|---" * (1 + len(over)) + "|"]
    for case in cases:
        in_words = f", in {result['computed_in'][case]}" if case == "OpenVINO, its default precision" else ""
        row = [f"{found[case]:.2f}" if case in found else "" for found in over.values()]
        lines.append(f"| {case}{in_words} | " + " | ".join(row) + " |")
    lines += ["", "| ratio of times within one run, or seconds | value | goal, at most |", "|---|---|---|"]
    lines += [f"| {each['what']} | {each['value']:.2f} | {each['limit']:.2f} |" for each in result["targets"]]
    lines += [f"\nNot here: {case}, {reason}." for case, reason in result["skipped"].items()]
    where = result["environment"]
    has = [name for name, present in result["cpu"].items() if present]
    return "\n".join([*lines, "", f"On {where['cores']} cores of {where['processor']} with {', '.join(has)}."]) + "\n"


def device_files(result: Mapping[str, Any]) -> str:
    """Size, latency, agreement and accuracy of every descendant's files, and errors of genes in half."""
    images = next(each["images"] for each in result["files"] if "images" in each)
    lines = [
        f"On {images} digits that no training saw:",
        "",
        "| layers | target | precision | computed in | kB | ms | same guess, % | accuracy, % | of the model, % |",
    ]
    lines.append("|---" * 9 + "|")
    missing = {}
    for each in result["files"]:
        if "missing" in each:
            missing[each["target"], each["precision"]] = each["missing"]
            continue
        figures = f"{each['bytes'] / 1e3:,.0f} | {each['milliseconds']:.2f} | {each['top1_agreement']:.1f}"
        figures += f" | {each['score']:.1f} | {each['model_score']:.1f}"
        names = (each["depth"], each["target"], each["precision"], each["computed_in"])
        lines.append(f"| {' | '.join(map(str, names))} | {figures} |")
    lines += [f"\nNot here: {target} in {precision}, {why}." for (target, precision), why in missing.items()]
    lines += ["", "The same gene stored in half, expanded to 12 layers:", ""]
    lines += ["| gene in | bytes of float32's | error of a layer | of what lies between two | of layers in half |"]
    lines.append("|---" * 5 + "|")
    for dtype, half in result["gene"]["half"].items():
        least, most = min(half["layers"]), max(half["layers"])
        between, others = fmean(half["between"]), fmean(half["between_one_by_one"])
        figures = f"{half['bytes_over_float32']:.2f} | {least:.3%} to {most:.3%} | {between:.3%} | {others:.2%}"
        lines.append(f"| {dtype} | {figures} |")
    return "\n".join(lines) + "\n"


def int8_training(result: Mapping[str, Any]) -> str:
    """What int8 costs untuned descendants, and those that were tuned with and without rounding: means over seeds."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for each in result["models"]:
        found.setdefault((each["depth"], each["way"]), []).append(each)
    seeds, images = len({each["seed"] for each in result["models"]}), result["models"][0]["images"]
    told = f"{images} digits, {result['train']['epochs']} epochs, means of {seeds} seeds"
    lines = [
        f"Descendants of the demo's TLEG gene on {told}:",
        "",
        "| layers | | model, % | int8, % | lost, points | guessed otherwise, % | largest difference of a logit, % |",
        "|---" * 7 + "|",
    ]
    for (depth, way), each in found.items():
        model, file, same = (fmean(one[key] for one in each) for key in ("model_score", "score", "top1_agreement"))
        far = 100 * fmean(one["relative_difference"] for one in each)
        lines.append(
            f"| {depth} | {way} | {model:.2f} | {file:.2f} | {model - file:.2f} | {100 - same:.2f} | {far:.1f} |"
        )
    return "\n".join(lines) + "\n"


def variants(cells: Sequence[Mapping[str, Any]]) -> str:
    """Genes of every size and variants of them: means over the shapes, and over the seeds that all of them have."""
    names = ("any-size", "any-size-8", "any-size-8-depths", "wave", "wave-depths")
    trained, others = ((32, 4), (48, 6), (64, 8), (96, 8)), ((64, 5), (80, 6))
    tops: dict[str, dict[int, dict[tuple[Any, ...], float]]] = {name: {} for name in names}
    for cell in cells:
        if cell["contender"] in names and cell["task"] == "home":
            key = (cell["train"] is not None, cell["shape"]["embed_dim"], cell["shape"]["depth"])
            tops[cell["contender"]].setdefault(cell["seed"], {})[key] = (cell["last"] or cell["untuned"])["top1"]
    seeds = sorted(set.intersection(*(set(of) for of in tops.values())))
    parts = [(False, trained), (False, others), (True, trained), (True, others)]
    head = ["untuned, four trained", "untuned, two others", "two epochs, four trained", "two epochs, two others"]
    lines = ["| | seeds | " + " | ".join(head) + " |", "|---" * 6 + "|"]
    for name, of in tops.items():
        figures = [fmean(of[seed][tuned, *shape] for seed in seeds for shape in shapes) for tuned, shapes in parts]
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")
    return "\n".join(lines) + "\n"


def draw_any_size(every: Mapping[str, Any], verdict: Mapping[str, Any], path: Path) -> None:
    """Accuracy over parameters: one gene at every width and depth, and students that were distilled one by one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    trained = {(size["embed_dim"], size["depth"]) for size in every["trained"]}
    widths = sorted({one["embed_dim"] for one in every["shapes"]})
    for number, width in enumerate(widths):
        line = [one for one in every["shapes"] if one["embed_dim"] == width]
        color = str(0.72 - 0.5 * number / (len(widths) - 1))
        axis.plot([one["params"] for one in line], [one["top1"] for one in line], "-", color=color, lw=1)
        for kind in (True, False):
            some = [one for one in line if ((width, one["depth"]) in trained) == kind]
            look: dict[str, Any] = {"ms": 8 if kind else 4, "mec": "#1b6ca8" if kind else color, "mfc": "#1b6ca8"}
            axis.plot([one["params"] for one in some], [one["top1"] for one in some], "o", ls="", **look)
        end = line[-1]
        axis.annotate(f"width {width}", (end["params"], end["top1"]), (4, -3), textcoords="offset points", fontsize=7)
    alone = [("distilled", "#c4622d", "as many epochs each as the gene in all"),
             ("distilled-equal", "#6b6b6b", "for the gene's cost, all six together")]  # fmt: skip
    for contender, color, text in alone:
        rows = [row for row in verdict["table"] if (row["contender"], row["budget"]) == (contender, "untuned")]
        points = sorted((row["params"], row["last_top1"][0]) for row in rows)
        axis.plot(*zip(*points, strict=True), "s--", color=color, ms=5, lw=1, label=f"distilled one by one, {text}")
    stored = f"one gene of {every['stored']:,} numbers, untuned (large: trained there)"
    axis.plot([], [], "o", color="#1b6ca8", ms=6, label=stored)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axis.set(xlabel="parameters of the model", ylabel="top-1 on Fashion-MNIST (5,000 images), %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


PAGES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "results/benchmarks/devices.json": ("docs/devices.md", devices),
    "results/device_files.json": ("docs/devices.md", device_files),
    "results/int8_training.json": ("docs/devices.md", int8_training),
    "results/benchmarks/peers.json": ("docs/foundation.md", five_sizes),
    "results/benchmarks/replay.json": ("docs/teacher-cost.md", teacher_cost),
    "results/laptop/tal-more-seeds": ("docs/tal.md", tal_seeds),
    "results/ship_evidence.json": ("docs/which-method.md", which_method),
    "results/any_size_ideas.json": ("docs/any-size-experiments.md", any_size_ideas),
    "results/laptop/claims/any-size.six-shapes.json": ("docs/any-size-experiments.md", six_shapes),
    "results/laptop/claims/any-size.fresh-seeds.json": ("docs/any-size-experiments.md", six_shapes),
    "results/laptop": ("docs/any-size-experiments.md", variants),
}
"""The page of a result, and what makes its table; of a comparison, its cells and those of the ledger."""


def with_table(source: str) -> str:
    """A page with its table as the result has it."""
    page, table = PAGES[source]
    path = ROOT / source
    cells = path.is_dir() and [*path.glob("cells/*.json"), *path.parent.glob("cells/*.json")]
    begin = f"<!-- from {source} -->\n"
    before, found, rest = (ROOT / page).read_text().partition(begin)
    assert found, f"{page} has no mark {begin}"
    result = [json.loads(cell.read_text()) for cell in cells] if cells else json.loads(path.read_text())
    return before + begin + table(result) + END + rest.partition(END)[2]


if __name__ == "__main__":
    for source, (page, _) in PAGES.items():
        (ROOT / page).write_text(with_table(source))
    draw(json.loads((ROOT / "results/benchmarks/peers.json").read_text()), ROOT / "docs/foundation.png")
    names = ("any_size_map.json", "laptop/claims/any-size.six-shapes.json")
    every, verdict = (json.loads((ROOT / "results" / name).read_text()) for name in names)
    draw_any_size(every, verdict, ROOT / "docs/any-size.png")
