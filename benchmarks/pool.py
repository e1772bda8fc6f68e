"""What the paths of a pool cost: a training step, switching, extracting, and fitting stitch layers by least squares.

A step along one path of ``ElasticViT`` is compared with the same step of a stock model of the same blocks. Switching,
extracting and fitting are measured on the paper's pools, (12) and (18): rows 192 and 768 of 6 or 9 blocks, 224 px.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from bench import finish, paired_rounds, ratio, target
from creation import timed
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from learngene.genes.elastic import ElasticViT
from learngene.genes.gene import Learngene
from learngene.genes.plan import Budget
from learngene.methods import method
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape

SMALL = ViTShape(embed_dim=192, depth=6, num_heads=6, patch_size=4, img_size=32, num_classes=100)
SMALL_ROWS = (96, 192)
SMALL_PATHS = ("3+3", "6+0", "0+6")
BATCH = 32
STEPS = 40
POOLS = {"pool (12)": 6, "pool (18)": 9}
EXTRACTED = ("6+0", "4+2", "1+5", "0+6")
CREATIONS = 9
SWITCHES = 1000

FIT = """
import json, sys, time, torch
import timm.models.vision_transformer
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.making.pool.stitches import least_squares_stitches
from learngene.vits.shape import ViTShape
torch.set_num_threads(2)
shape = ViTShape.named("deit_base_patch16_224", depth=int(sys.argv[1]), class_token=True)
gene = Learngene(method("pool"), shape)
images = torch.randn(100, 3, 224, 224, generator=torch.Generator().manual_seed(0))
start = time.perf_counter()
least_squares_stitches(gene, images.split(10), print)
seconds = time.perf_counter() - start
# Not ru_maxrss, which begins with the peak of the process that started this one.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "gib": peak / 2**20}))
"""


def main() -> None:
    torch.set_num_threads(1)
    times, targets, stated = steps()
    genes = {name: paper_pool(depth) for name, depth in POOLS.items()}
    for part in (switches(genes), creations(genes["pool (12)"]), fits()):
        times |= part[0]
        targets += part[1]
        stated |= part[2]
    finish("pool", times, targets, **stated, batch_size=BATCH, shape=SMALL.to_dict())


Part = tuple[dict[str, list[float]], list[dict[str, Any]], dict[str, Any]]
"""Seconds by case, targets, and figures without a limit."""


def paper_pool(depth: int) -> Learngene:
    return Learngene(method("pool"), ViTShape.named("deit_base_patch16_224", depth=depth, class_token=True))


# -- a training step -------------------------------------------------------------------------------------


def steps() -> Part:
    """Forward, loss, backward and AdamW along one path, over the same of a stock model; CPU time."""
    gene = Learngene(method("pool", {"rows": SMALL_ROWS}), SMALL)
    elastic = ElasticViT(gene)
    shared = optimizer(elastic.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, SMALL.in_chans, SMALL.img_size, SMALL.img_size, generator=generator)
    labels = torch.randint(SMALL.num_classes, (BATCH,), generator=generator)
    times: dict[str, list[float]] = {}
    targets, noise = [], {}
    for name in SMALL_PATHS:
        shape = gene.method.named_shape(SMALL, name)
        plain = stock(shape, gene)
        sampled = step(elastic, shared, images, labels, lambda shape=shape: elastic.set_path(shape))
        alone = step(plain, optimizer(plain.parameters()), images, labels)
        # The stock model a second time: how far from 1 its ratio lies is the noise of this run.
        cases = {f"path {name}": sampled, f"stock {name}": alone, f"stock {name} again": alone}
        times |= paired_rounds(cases, STEPS, warm_up=3)
        targets.append(target(f"step of path {name} over stock", ratio(times, f"path {name}", f"stock {name}"), 1.03))
        noise[name] = ratio(times, f"stock {name} again", f"stock {name}")
    return times, targets, {"step_noise": noise}


class Stock(nn.Module):
    """A path by hand: timm's blocks and a linear layer, with nothing around them."""

    def __init__(self, shape: StitchedShape) -> None:
        super().__init__()
        first, last = shape.segments
        self.patch_embed = PatchEmbed(shape.img_size, shape.patch_size, shape.in_chans, first.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.num_tokens, first.embed_dim))
        self.before = nn.Sequential(*blocks(first.embed_dim, first.num_heads, first.depth))
        self.stitch = nn.Linear(first.embed_dim, last.embed_dim)
        self.behind = nn.Sequential(*blocks(last.embed_dim, last.num_heads, last.depth))
        self.norm = nn.LayerNorm(last.embed_dim, eps=1e-6)
        self.head = nn.Linear(last.embed_dim, shape.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.patch_embed(images) + self.pos_embed
        return self.head(self.norm(self.behind(self.stitch(self.before(tokens)))).mean(1))


def blocks(width: int, heads: int, depth: int) -> list[Block]:
    return [Block(width, heads, qkv_bias=True) for _ in range(depth)]


def stock(shape: Shape, gene: Learngene) -> nn.Module:
    """The stock model of a path, with the gene's weights; it is checked that both compute the same."""
    model = Stock(shape) if isinstance(shape, StitchedShape) else VisionTransformer(**shape.timm_kwargs())
    ours = gene.expand(shape)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), ordered(ours, shape), strict=True):
            mine.copy_(theirs)
        images = torch.randn(2, shape.in_chans, shape.img_size, shape.img_size)
        torch.testing.assert_close(model.eval()(images), ours(images), rtol=1e-4, atol=1e-5)
    return model.train()


def ordered(model: nn.Module, shape: Shape) -> list[Tensor]:
    """A path's parameters in the order of the stock model's."""
    named = dict(model.named_parameters())
    if not isinstance(shape, StitchedShape):
        return list(named.values())
    entered = shape.segments[0].depth
    stitch = [named.pop(f"blocks.{entered}.stitch.{kind}") for kind in ("weight", "bias")]
    before = [name for name in named if not name.startswith("blocks.") or int(name.split(".")[1]) < entered]
    stem = [name for name in before if not name.startswith(("blocks.", "norm.", "fc_norm.", "head."))]
    first = [name for name in before if name.startswith("blocks.")]
    rest = [name for name in named if name not in {*stem, *first}]
    return [*(named[name] for name in [*stem, *first]), *stitch, *(named[name] for name in rest)]


def optimizer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(parameters), lr=1e-5, fused=True)


def step(
    model: nn.Module,
    optim: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    before: Callable[[], object] = lambda: None,
) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        before()
        nn.functional.cross_entropy(model(images), labels).backward()
        optim.step()
        optim.zero_grad(set_to_none=True)
        return time.process_time() - start

    return run


# -- switching -------------------------------------------------------------------------------------------


def switches(genes: dict[str, Learngene]) -> Part:
    """Median time of a switch over all paths, and what a thousand switches leave in memory."""
    cases: dict[str, Callable[[], float]] = {}
    memory, targets = {}, []
    elastics = {name: ElasticViT(gene) for name, gene in genes.items()}
    for name, elastic in elastics.items():
        kind, shape = elastic.gene.method, elastic.gene.shape
        paths = kind.paths(shape)
        cases[f"{name}, switch by shape"] = switch(elastic, list(elastic.views()))
        cases[f"{name}, switch by full name"] = switch(elastic, [path.path for path in paths])
        cases[f"{name}, switch by counts"] = switch(elastic, [kind.counts(path) for path in paths])
        cases[f"{name}, switch by budget"] = switch(
            elastic, [Budget(max_params=each.params()) for each in elastic.views()]
        )
    times = paired_rounds(cases, 5)
    for name, elastic in elastics.items():
        for by in ("shape", "full name", "counts"):
            case = f"{name}, switch by {by}"
            targets.append(target(f"{case}, ms", 1000 * statistics.median(times[case]), 1.0))
        memory[name] = grown(elastic)
        for what, limit in (("python_kib", 64.0), ("resident_mib", 1.0), ("tensors_not_the_genes", 0.0)):
            targets.append(target(f"{name}, {SWITCHES} switches, {what}", memory[name][what], limit))
    return times, targets, {"memory_after_switches": memory}


def switch(elastic: ElasticViT, paths: list[Any]) -> Callable[[], float]:
    """Switches once to every path; the median."""

    def run() -> float:
        seconds = []
        for path in paths:
            start = time.perf_counter()
            elastic.set_path(path)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return run


def grown(elastic: ElasticViT) -> dict[str, float]:
    """What a thousand switches add to memory, and how many parameters of the paths are not the gene's own."""
    kind, shape = elastic.gene.method, elastic.gene.shape
    paths: list[Any] = [*elastic.views(), *(kind.counts(path) for path in kind.paths(shape))]
    for path in paths:
        elastic.set_path(path)
    tracemalloc.start()
    python, resident = tracemalloc.get_traced_memory()[0], resident_kib()
    for path in itertools.islice(itertools.cycle(paths), SWITCHES):
        elastic.set_path(path)
    python, resident = tracemalloc.get_traced_memory()[0] - python, resident_kib() - resident
    tracemalloc.stop()
    own = {tensor.data_ptr() for tensor in elastic.gene.parameters()}
    found = [tensor for view in elastic.views().values() for tensor in view.parameters()]
    foreign = sum(tensor.data_ptr() not in own for tensor in found)
    return {"python_kib": python / 1024, "resident_mib": resident / 1024, "tensors_not_the_genes": foreign}


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


# -- extracting ------------------------------------------------------------------------------------------


def creations(gene: Learngene) -> Part:
    """A path as a standalone model, over timm's creation of the same model."""
    times: dict[str, list[float]] = {}
    targets = []
    for name in EXTRACTED:
        shape = gene.method.named_shape(gene.shape, name)
        cases = {
            f"expand {name}": timed(lambda shape=shape: gene.expand(shape)),
            f"create {name}": timed(lambda shape=shape: timm.create_model(shape.architecture, **shape.timm_kwargs())),
        }
        times |= paired_rounds(cases, CREATIONS)
        value = ratio(times, f"expand {name}", f"create {name}")
        targets.append(target(f"expand {name} over create_model", value, 0.35))
    return times, targets, {}


# -- least squares ---------------------------------------------------------------------------------------


def fits() -> Part:
    """LS initialisation from 100 images in two threads, in a process of its own so that its peak can be read."""
    times: dict[str, list[float]] = {}
    targets, found = [], {}
    two = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    for name, depth in POOLS.items():
        command = [sys.executable, "-c", FIT, str(depth)]
        done = subprocess.run(command, env=two, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        times[f"{name}, least squares"] = [found[name]["seconds"]]
        targets.append(target(f"{name}, least squares of 100 images, s", found[name]["seconds"], 60.0))
        targets.append(target(f"{name}, the same, peak GiB", found[name]["gib"], 4.0))
    return times, targets, {"least_squares": found}


if __name__ == "__main__":
    main()
