"""What the demos show of their comparisons: tables, budgets, and commands to go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from learngene.genes.plan import Budget


@dataclass(frozen=True)
class Table:
    """A table with a line per task and shape."""

    title: str
    facts: Mapping[str, str]  # headings of what is known of a line, by its name in ``demo.json``
    scores: Mapping[str, tuple[str, str, str]]  # likewise: heading, contender, and which of the row's scores
    budget: str = "tuned"  # whose results are shown

    @property
    def columns(self) -> dict[str, str]:
        """The headings of facts and scores."""
        return {**self.facts, **{name: heading for name, (heading, _, _) in self.scores.items()}}


@dataclass(frozen=True)
class Demo:
    """What a demo shows of its comparison."""

    about: str
    tables: Mapping[str, Table]  # by the name of their lines in ``demo.json``
    gene: str  # name of the contender whose gene is planned with and used in the commands
    next: Sequence[str]
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # in words; ``plan`` picks a shape for each


SIZES = {"params": "params\nM", "macs": "MACs\nM"}
SCRATCH = {"scratch": ("scratch\n", "scratch", "last_top1"), "scratch_3x": ("scratch\nx3", "scratch-3x", "last_top1")}
DEMOS = {
    "genes": Demo(
        about="A LeViT learns digits; two genes are condensed from it, and become ViTs of six depths, next to scratch",
        tables={
            "rows": Table(
                "top-1 accuracy in percent",
                {"depth": "depth\n", **SIZES, "stored": "stored\nMB"},
                {
                    "tleg_untuned": ("TLEG\nuntuned", "tleg", "untuned_top1"),
                    "tleg_tuned": ("TLEG\ntuned", "tleg", "last_top1"),
                    "sws_untuned": ("SWS\nuntuned", "sws", "untuned_top1"),
                    "sws_tuned": ("SWS\ntuned", "sws", "last_top1"),
                    **SCRATCH,
                },
            )
        },
        gene="tleg",
        budgets={
            "at most 0.2 M parameters": Budget(max_params=0.2e6),
            "at most 0.3 M parameters and 6 M multiply-adds": Budget(max_params=0.3e6, max_macs=6e6),
            "at most 7 M multiply-adds": Budget(max_macs=7e6),
        },
        next=(
            "learngene plan {gene} --max-latency 2 --explain",
            "learngene expand {gene} --depth 10 --out my-model",
            "learngene finetune --model my-model --data digits --preset laptop --epochs 3 --out runs/mine "
            "train.augment.preset=none",
        ),
    ),
    "foundation": Demo(
        about="A LeViT that has learned digits stands in for a foundation model: its features, and no classes, become "
        "one gene for four depths, next to distilling every depth by itself",
        tables={
            "rows": Table(
                "kNN accuracy of frozen features in percent, on digits as nobody has seen them",
                {"task": "data set\n", "depth": "depth\n", **SIZES},
                {
                    "tleg": ("TLEG,\none run", "tleg", "last_top1"),
                    "distilled": ("distilled,\nfour runs", "distilled", "last_top1"),
                    "random": ("random\n", "scratch", "last_top1"),
                },
                budget="knn",
            )
        },
        gene="tleg",
        next=(
            "learngene expand {gene} --depth 5 --num-classes 10 --out my-model",
            "learngene finetune --model my-model --data digits --preset laptop --epochs 3 --out runs/mine",
            "learngene eval {gene} --data digits/thirds --knn --linear",
        ),
    ),
    "pool": Demo(
        about="A ViT learns digits; it is distilled into a pool of two rows, next to an SN-Net of as many parameters",
        tables={
            "rows": Table(
                "top-1 accuracy in percent, without tuning any model by itself",
                {"blocks": "blocks\n", "path": "path\n", **SIZES},
                {"pool": ("pool\n", "pool", "last_top1"), "sn_net": ("SN-Net\n", "sn-net", "last_top1")},
                budget="untuned",
            )
        },
        gene="pool",
        budgets={
            "at most 0.10 M parameters": Budget(max_params=0.10e6),
            "at most 0.20 M parameters": Budget(max_params=0.20e6),
            "at most 4 M multiply-adds": Budget(max_macs=4e6),
        },
        next=(
            "learngene plan {gene} --max-params 0.2M --explain",
            "learngene expand {gene} --path 4+2 --out my-model",
            "learngene picture {gene} --out pool.png",
        ),
    ),
    "lsamd": Demo(
        about="A ViT learns digits; six data sets choose between its blocks and copies of their own, and what they "
        "share becomes ViTs for two of the sets, next to scratch",
        tables={
            "rows": Table(
                "top-1 accuracy, on the canvas mean IoU, in percent",
                {"task": "data set\n", "depth": "depth\n", "blocks": "blocks\n", **SIZES},
                {"lsamd": ("LSAMD\n", "lsamd", "last_top1"), **SCRATCH},
            )
        },
        gene="lsamd",
        next=(
            "learngene plan {gene} --explain",
            "learngene expand {gene} --depth 7 --explain --out my-model",
            "learngene picture {gene} --out search.png",
        ),
    ),
    "tal": Demo(
        about="A ViT learns digits; two hypernetworks learn to predict ViTs for digits, then for five tasks: TAL "
        "guided by the ViT, LoGAH not",
        tables={
            "rows": Table(
                "top-1 accuracy in percent, untuned",
                {"task": "task\n", "classes": "classes\n", "depth": "depth\n", "params": "params\nM"},
                {
                    "tal": ("TAL\n", "tal", "untuned_top1"),
                    "logah": ("LoGAH v4\n", "logah", "untuned_top1"),
                    "random": ("random\n", "scratch", "untuned_top1"),
                },
                budget="untuned",
            ),
            "tuned": Table(
                "top-1 accuracy in percent on the unseen task after {epochs} epochs of fine-tuning",
                {"task": "task\n", "depth": "depth\n"},
                {"tal": ("TAL\n", "tal", "last_top1"), "logah": ("LoGAH v4\n", "logah", "last_top1"), **SCRATCH},
            ),
        },
        gene="tal",
        next=(
            "learngene plan {gene}",
            "learngene expand {gene} --depth 5 --task half --out my-model",
            "learngene expand {gene} --depth 5 --task YOUR_IMAGES --ancestry {ancestry} --out my-model",
        ),
    ),
}
