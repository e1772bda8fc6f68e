"""Ideas for one gene of every size, each condensed the same way. Writes results/any_size_ideas.json.

    python benchmarks/any_size_ideas.py IMAGES [--seeds 0,1,2] [--ideas NAME,NAME]

IMAGES is a set of ten classes, as a recipe's ``data.source``; Fashion-MNIST of 5,000 images in what is committed. What
has been measured is kept. All learn labels alone, ten epochs in all at six shapes in turn, without a teacher: what is
compared is how a gene makes weights. ``python benchmarks/pages.py`` makes docs/any-size-experiments.md of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import typer

import learngene as lg
from learngene.methods import METHODS
from learngene.methods.cutting import front
from learngene.methods.interpolation import interpolated
from learngene.methods.tiles import MATRICES
from learngene.methods.wave import WAVE
from learngene.system.environment import environment
from learngene.system.errors import ShapeError
from learngene.system.files import write_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OUT = Path(__file__).parents[1] / "results" / "any_size_ideas.json"
TRAINED = ((32, 4), (32, 8), (48, 6), (64, 8), (96, 4), (96, 8))
OTHER = ((32, 6), (48, 9), (64, 4), (80, 6))
EPOCHS = 10
FULL = 0.33
"""Value of an entry that is a template: with it a rate moves a weight as far as twelve templates move it."""


@dataclass(frozen=True)
class Varied(WAVE):
    """WAVE whose scalers, or other parameters, follow the size in further ways.

    Attributes:
        gains: Every kind of matrix has a learnt gain, log-linear in width and depth.
        trends: Scalers of matrices change along a line with the logarithm of the width.
        all_trends: And with that of the depth, and those of all other parameters do, too.
        one_set: All kinds of matrices have the same templates.
        whole: What is no matrix within a layer is stored whole, for every layer of the auxiliary model.
        full: Templates of matrices are single entries of a tile and not stored, so that scalers are the weights.
        ends: The first and the last layer have scalers of matrices that are added to theirs.
    """

    gains: bool = False
    trends: bool = False
    all_trends: bool = False
    one_set: bool = False
    whole: bool = False
    full: bool = False
    ends: bool = False

    name: ClassVar[str] = "varied"
    title: ClassVar[str] = "WAVE, varied"

    def gene_tensors(self, auxiliary: lg.ViTShape) -> dict[str, tuple[int, ...]]:
        """Those of WAVE, and what an idea adds."""
        out = super().gene_tensors(auxiliary)
        scaled = [name[2:] for name in out if name.startswith("S.")]
        for name in scaled:
            if self.gains and name in MATRICES:
                out[f"gain.{name}"] = (3,)
            if (self.trends and name in MATRICES) or self.all_trends:
                out[f"wide.{name}"] = out[f"S.{name}"]
            if self.all_trends:
                out[f"deep.{name}"] = out[f"S.{name}"]
            if self.ends and name in MATRICES:
                out[f"ends.{name}"] = (2, *out[f"S.{name}"][1:])
            if (self.one_set and name in MATRICES[1:]) or (self.full and name in MATRICES):
                del out[f"T.{name}"]
            if self.whole and name not in MATRICES and name in (sizes := auxiliary.layer_params()):
                del out[f"T.{name}"], out[f"S.{name}"]
                out[f"whole.{name}"] = (auxiliary.depth, *sizes[name])
        return out

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """What an idea adds starts without an effect."""
        import torch

        if self.full and name.removeprefix("S.") in MATRICES:
            return torch.empty(shapes[name]).normal_(std=0.02 / FULL, generator=generator)
        if name.startswith(("T.", "S.", "head.")):
            return super().initial(name, shapes, generator)
        norm = name.startswith("whole.") and "norm" in name and name.endswith("weight")
        return torch.ones(shapes[name]) if norm else torch.zeros(shapes[name])

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: lg.ViTShape, shape: Any, **options: Any
    ) -> dict[str, Tensor]:
        """WAVE's, of scalers that follow the size."""
        import torch

        given = dict(tensors)
        wide, deep = math.log2(shape.embed_dim / auxiliary.embed_dim), math.log2(shape.depth / auxiliary.depth)
        for name in [name[2:] for name in tensors if name.startswith("S.")]:
            for kind, value in (("wide", wide), ("deep", deep)):
                if (more := given.get(f"{kind}.{name}")) is not None:
                    given[f"S.{name}"] = given[f"S.{name}"] + value * more
            if (gain := given.get(f"gain.{name}")) is not None:
                given[f"S.{name}"] = given[f"S.{name}"] * torch.exp(gain[0] + gain[1] * wide + gain[2] * deep)
            if self.one_set and name in MATRICES:
                given[f"T.{name}"] = given[f"T.{MATRICES[0]}"]
            if self.full and name in MATRICES:
                side = self.side(auxiliary)
                given[f"T.{name}"] = FULL * torch.eye(side**2).view(-1, side, side)
            if (ends := given.get(f"ends.{name}")) is not None:
                between = torch.zeros(shape.depth - 2, *ends.shape[1:])
                given[f"S.{name}"] = interpolated(given[f"S.{name}"], shape.depth) + torch.cat(
                    [ends[:1], between, ends[1:]]
                )
        stored = {name.removeprefix("whole."): name for name in tensors if name.startswith("whole.")}
        for name in stored:  # WAVE makes it of nothing, and is overruled
            given[f"T.{name}"] = torch.zeros(1, self.side(auxiliary), 1)
            rows = auxiliary.layer_params()[name][0] // self.side(auxiliary)
            given[f"S.{name}"] = torch.zeros(auxiliary.depth, rows, 1, 1)
        out = super().weights(given, auxiliary, shape, **options)
        for name, source in stored.items():
            values = interpolated(tensors[source], shape.depth)
            size = shape.layer_params()[name]
            out |= {f"blocks.{i}.{name}": front(value, size, name) for i, value in enumerate(values.unbind())}
        return out


class Idea(NamedTuple):
    """What is tried.

    Attributes:
        text: For the table.
        method: A method's name.
        settings: Of the method.
        largest: Width and depth of the auxiliary model.
        lr: Rate.
        alone: Epochs at which every shape is trained by itself instead; 0 trains one gene.
    """

    text: str
    method: str = "varied"
    settings: Mapping[str, Any] = {}
    largest: tuple[int, int] = (96, 8)
    lr: float = 3e-3
    alone: int = 0


IDEAS = {
    "wave": Idea("WAVE, scalers of the largest shape, cut and interpolated", "wave"),
    "wave-64x6": Idea("scalers of 64 x 6, repeated for wider models", "wave", largest=(64, 6)),
    "four-layers": Idea("scalers of four layers only", "wave", largest=(96, 4)),
    "templates-48": Idea("48 templates instead of 12", "wave", {"templates": (48,)}),
    "templates-96": Idea("96 templates", "wave", {"templates": (96,)}),
    "both": Idea("48 templates, 16 of what is no matrix", "wave", {"templates": (48,), "vectors": 16}),
    "full-2": Idea("every entry stored, of two layers", settings={"full": True, "templates": (256,)}, largest=(96, 2)),
    "full-4": Idea("every entry stored, of four layers", settings={"full": True, "templates": (256,)}, largest=(96, 4)),
    "96-of-3": Idea("96 templates, scalers of three layers", "wave", {"templates": (96,)}, largest=(96, 3)),
    "48-faster": Idea("48 templates, 6e-3", "wave", {"templates": (48,)}, lr=6e-3),
    "48-slower": Idea("48 templates, 1.5e-3", "wave", {"templates": (48,)}, lr=1.5e-3),
    "48-ends": Idea("48 templates, end layers of their own", settings={"ends": True, "templates": (48,)}),
    "one-set-ends": Idea(
        "48 templates for all kinds of matrices together, end layers of their own",
        settings={"one_set": True, "ends": True, "templates": (48,)},
    ),
    "one-set-of-4-ends": Idea(
        "48 templates for all kinds of matrices, scalers of four layers, end layers of their own",
        settings={"one_set": True, "ends": True, "templates": (48,)},
        largest=(96, 4),
    ),
    "48-gains": Idea("48 templates and the gains", settings={"gains": True, "templates": (48,)}),
    "48-one-set": Idea(
        "48 templates for all kinds of matrices, scalers of four layers",
        settings={"one_set": True, "templates": (48,)},
        largest=(96, 4),
    ),
    "96-one-set": Idea(
        "96 templates for all kinds of matrices, scalers of four layers",
        settings={"one_set": True, "templates": (96,)},
        largest=(96, 4),
    ),
    "32-one-set": Idea(
        "32 templates for all kinds of matrices, scalers of twelve layers",
        settings={"one_set": True, "templates": (32,)},
        largest=(96, 12),
    ),
    "48-one-set-both": Idea(
        "48 templates for all kinds of matrices, 16 of what is no matrix, scalers of four layers",
        settings={"one_set": True, "templates": (48,), "vectors": 16},
        largest=(96, 4),
    ),
    "48-of-4": Idea("48 templates, scalers of four layers", "wave", {"templates": (48,)}, largest=(96, 4)),
    "vectors-16": Idea("16 templates of what is no matrix instead of 4", "wave", {"vectors": 16}),
    "tile-8": Idea("tiles of half a head, 48 templates", "wave", {"tile": 8, "templates": (48,)}),
    "outer": Idea("templates as the coarse picture", "wave", {"layout": "outer"}),
    "frozen": Idea("templates as drawn (control)", "wave", {"frozen_templates": True}),
    "one-set": Idea("48 templates for all kinds of matrices together", settings={"one_set": True, "templates": (48,)}),
    "gains": Idea("a gain of every kind of matrix, log-linear in width and depth", settings={"gains": True}),
    "trends": Idea("scalers on a line over the width's logarithm", settings={"trends": True}),
    "all-trends": Idea("all scalers, over width and depth", settings={"trends": True, "all_trends": True}),
    "whole": Idea("norms and biases stored whole", settings={"whole": True}),
    "sweet": Idea("SWEET", "sweet"),
    "lets": Idea("LeTs from 32 x 4", "lets", {"width": 32, "sources": 4}, lr=1e-3),
    "nested": Idea("nested slices, 1e-3", "nested-slices", lr=1e-3),
    "nested-fast": Idea("nested slices, 3e-3", "nested-slices"),
    "alone-2": Idea("every shape by itself, two epochs", "pre-fin", alone=2, lr=1e-3),
    "alone-10": Idea("every shape by itself, ten epochs", "pre-fin", alone=10, lr=1e-3),
}


def shape_of(width: int, depth: int) -> lg.ViTShape:
    """On 32 px, with heads of 16."""
    return lg.ViTShape(embed_dim=width, depth=depth, num_heads=width // 16, patch_size=8, img_size=32, num_classes=10)


def measured(idea: Idea, images: str, seed: int) -> dict[str, Any]:
    """Accuracy at every shape, numbers that are stored, and CPU time."""
    data, start = {"source": images, "img_size": 32, "workers": 0}, time.process_time()

    def trained(width: int, depth: int, epochs: int, shapes: Any) -> lg.Learngene:
        settings = dict(idea.settings)
        return lg.condense(
            method=idea.method, settings=settings, shape=shape_of(width, depth), shapes=shapes, data=data,
            distill={"alpha": 0}, show=False, preset="laptop", epochs=epochs, eval_every=epochs, batch_size=64,
            lr=idea.lr, betas=[0.9, 0.98], clip_grad=1.0, seed=seed, schedule={"warmup_epochs": epochs / 10},
            augment={"preset": "none", "mixup": 0.4},
        )  # fmt: skip

    sizes = [{"embed_dim": width, "depth": depth} for width, depth in TRAINED]
    if idea.alone:
        genes = {size: trained(*size, idea.alone, None) for size in TRAINED}
    else:
        genes = dict.fromkeys((*TRAINED, *OTHER), trained(*idea.largest, EPOCHS, sizes))
    seconds = time.process_time() - start
    tops = {}
    for size, gene in genes.items():
        with contextlib.suppress(ShapeError):  # no method that cuts makes a deeper model than its largest
            tops[size] = lg.evaluate(gene.expand(shape_of(*size)), data).top1
    return {
        "top1": {f"{width}x{depth}": round(top, 2) for (width, depth), top in tops.items()},
        "stored": sum(value.numel() for gene in set(genes.values()) for value in gene.tensors().values()),
        "cpu_seconds": round(seconds, 1),
    }


def main(
    images: str,
    seeds: Annotated[str, typer.Option(help="in turn")] = "0",
    ideas: Annotated[str, typer.Option(help="all by default")] = "",
) -> None:
    """Measures what is not in the result yet."""
    METHODS[Varied.name] = Varied
    for seed in map(int, seeds.split(",")):
        for name in ideas.split(",") if ideas else IDEAS:
            found = json.loads(OUT.read_text()) if OUT.exists() else {"ideas": {}}
            runs = found["ideas"].setdefault(name, {})
            if str(seed) not in runs:
                new = measured(IDEAS[name], images, seed)
                found = json.loads(OUT.read_text()) if OUT.exists() else {"ideas": {}}  # others write, too
                found["ideas"].setdefault(name, {})[str(seed)] = new
                found["environment"] = environment()
                text = json.dumps(found, indent=1) + "\n"
                write_file(OUT, lambda temporary, text=text: temporary.write_text(text))
                print(name, seed, json.dumps(new), flush=True)


if __name__ == "__main__":
    typer.run(main)
