"""Claims that follow from shapes and formulas alone: exact tests, without training and without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from learngene.comparing.claims.real_weights import real_first_component, real_matrices, real_norms
from learngene.methods import method
from learngene.methods.lsamd import LSAMD
from learngene.methods.pool import Pool
from learngene.methods.sws import SWS
from learngene.methods.tal import TAL
from learngene.methods.tal.ranges import sizes_of
from learngene.methods.tal.sizes import LARGEST
from learngene.system.errors import ShapeError
from learngene.vits.linearity import MATRICES
from learngene.vits.shape import ViTShape

TI, S, B = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
LETS = ViTShape(embed_dim=768, num_heads=12, depth=16)
DEIT_B = ViTShape.named(B, class_token=True)


def order_identity() -> tuple[bool, str]:
    """SWS Table 4: at depths 10 and 11 both cyclic orders lay out the stages alike, at 7, 8, 9 and 12 they do not."""
    orders = ("front-mid-last", "front-last-mid")
    stages = {depth: [SWS().stage_of_layer(depth, order) for order in orders] for depth in range(7, 13)}
    same = [depth for depth, (one, other) in stages.items() if one == other]
    return same == [10, 11], f"of depths 7 to 12, the orders agree at {', '.join(map(str, same))}"


def sws_storage() -> tuple[bool, str]:
    """SWS Table 2: 37.0 M parameters are stored instead of 759.3 M for ten models, about 20 times fewer."""
    gene = _stored("sws", ViTShape.named(B, depth=16))
    singly = sum(ViTShape.named(B, depth=depth).params() for depth in range(6, 16))
    figures = f"{gene / 1e6:.1f} M for the gene, {singly / 1e6:.1f} M for ten models, {singly / gene:.1f} times"
    return round(gene / 1e6, 1) == 37.0 and round(singly / 1e6, 1) == 759.3, figures


def tleg_storage() -> tuple[bool, str]:
    """TLEG Table 3: about 19 times fewer parameters stored than for five pretrained models of 4 to 12 layers."""
    shapes = [ViTShape.named(B, depth=depth, num_classes=0) for depth in (4, 6, 8, 10, 12)]
    # What is transferred: layers, patch projection and position embedding; the heads are new.
    norm = sum(2 * shape.embed_dim for shape in shapes)
    singly = sum(shape.params() for shape in shapes) - norm
    gene = _stored("tleg", shapes[-1]) - 2 * shapes[-1].embed_dim
    figures = f"{gene / 1e6:.1f} M for the gene, {singly / 1e6:.1f} M for five models, {singly / gene:.1f} times"
    return round(singly / gene) == 19, figures


def tleg_fixed_set() -> tuple[bool, str]:
    """TLEG Figure 4: the genes of Des-Ti/S/B hold 2.9 times fewer parameters than 6-layer models of these widths."""
    genes = models = 0
    for name in (TI, S, B):
        shape = ViTShape.named(name, depth=6, num_classes=0)
        norm = 2 * shape.embed_dim
        genes += _stored("tleg", shape) - norm
        models += shape.params() - norm
    figures = f"{genes / 1e6:.1f} M against {models / 1e6:.1f} M, {models / genes:.1f} times"
    return round(models / genes, 1) == 2.9, figures


def tleg_costs() -> tuple[bool, str]:
    """TLEG, main results: training costs are halved, in epochs, for ten Des-S and for ten Des-B."""
    small, base = (10 * 100) / (150 + 9 * 35 + 45), (10 * 100) / (100 + 10 * 40)
    return round(small) == 2 and round(base) == 2, f"{small:.2f} times for Des-S, {base:.2f} times for Des-B"


def sws_costs() -> tuple[bool, str]:
    """SWS, section 4.2: 6.6 times less training in all for ten Des-B than from scratch, counted with 5 epochs each."""
    five, ten = 10 * 100 / (100 + 10 * 5), 10 * 100 / (100 + 10 * 10)
    figures = f"{five:.2f} times with the 5 epochs of the sum, {ten:.2f} times with the 10 epochs of the set-up"
    return five >= 6.6, figures


def sws_costs_over_tleg() -> tuple[bool, str]:
    """SWS, section 4.2: 2.5 times less training in all for ten Des-B than TLEG, counted with 10 epochs each."""
    ratio = (100 + 10 * 40) / (100 + 10 * 10)
    return ratio == 2.5, f"{ratio:.2f} times"


def pool_storage() -> tuple[bool, str]:
    """Learngene Pool, main results: pools of 12 and 18 instances store 59.6 % and 40.1 % less than SN-Net's 118.4 M."""
    sn_net = _stored("sn-net", DEIT_B, rows=(192, 384, 768))
    pools = [_stored("pool", DEIT_B.replace(depth=depth)) for depth in (6, 9)]
    saved = [round(100 * (1 - pool / sn_net), 1) for pool in pools]
    sizes = " and ".join(f"{pool / 1e6:.2f} M ({less} % less)" for pool, less in zip(pools, saved, strict=True))
    exact = [round(pool / 1e6, 2) for pool in pools] == [47.83, 70.87] and round(sn_net / 1e6, 1) == 118.4
    return exact and saved == [59.6, 40.1], f"{sizes}, against {sn_net / 1e6:.2f} M"


def pool_smallest() -> tuple[bool, str]:
    """Learngene Pool, introduction: the smallest models have 3.05 M and 4.38 M parameters, SN-Net's has 5.7 M."""
    narrow = DEIT_B.replace(embed_dim=192, num_heads=3)
    small, large, theirs = (narrow.replace(depth=depth).params() / 1e6 for depth in (6, 9, 12))
    figures = f"{small:.2f} M and {large:.2f} M, against {theirs:.1f} M"
    return (round(small, 2), round(large, 2), round(theirs, 1)) == (3.05, 4.38, 5.7), figures


def pool_costs() -> tuple[bool, str]:
    """Learngene Pool, main results: 150 + 200 + 50 epochs against 150 for each of 18 and of 27 paths."""
    paths = [len(Pool().paths(DEIT_B.replace(depth=depth))) for depth in (6, 9)]
    ratios = [150 * count / (150 + 200 + 50) for count in paths]
    figures = f"{ratios[0]:.2f} times for {paths[0]} paths, {ratios[1]:.3f} times for {paths[1]}"
    return paths == [18, 27] and ratios[0] == 6.75 and round(ratios[1], 1) == 10.1, figures


def lsamd_storage() -> tuple[bool, str]:
    """LSAMD, costs: 36.11 M parameters are stored instead of 787.03 M for models of 5 to 15 layers, 95.41 % less."""
    shape, count = DEIT_B.replace(num_classes=100), len(LSAMD().layers)
    gene = shape.replace(depth=count).params_without_positions()
    singly = sum(shape.replace(depth=depth).params_without_positions() for depth in range(5, 16))
    saved = 100 * (1 - gene / singly)
    figures = f"{gene / 1e6:.2f} M for the gene, {singly / 1e6:.2f} M for eleven models, {saved:.2f} % less"
    return (round(gene / 1e6, 2), round(singly / 1e6, 2), round(saved, 2)) == (36.11, 787.03, 95.41), figures


def lsamd_costs() -> tuple[bool, str]:
    """LSAMD, costs: 1.36 times less training for five models, 50 x 10 + 50 x 5 epochs against 150 x 5."""
    theirs, pretrained, six = 50 * 10 + 50 * 5, 150 * 5, 50 * 6 + 50 * 5
    figures = f"{pretrained} epochs against {theirs}, {pretrained / theirs:.2f} times; "
    figures += f"{pretrained / six:.2f} times if six data sets were searched instead of ten"
    return round(pretrained / theirs, 2) == 1.36, figures


def tal_sizes() -> tuple[bool, str]:
    """TAL: LoGAH-small has 21.40 M parameters, and 22.39 M with task layers for a ViT-B's 768 features."""
    counts = [_stored(name, DEIT_B) - LARGEST for name in ("logah", "tal")]  # less the row that is never trained
    figures = " and ".join(f"{count / 1e6:.2f} M" for count in counts)
    return [round(count / 1e6, 2) for count in counts] == [21.40, 22.39], figures


def tal_all_sizes() -> tuple[bool, str]:
    """TAL, section 4: 3-Ti to 12-S come from one hypernetwork that was trained on none of them."""
    kind = TAL()
    trained = set(sizes_of(kind.architectures))
    wanted = [(depth, width, heads) for width, heads in ((192, 3), (384, 6)) for depth in (3, 6, 12)]
    for depth, width, heads in wanted:
        kind.refuse(DEIT_B, DEIT_B.replace(depth=depth, embed_dim=width, num_heads=heads))
    seen = [size for size in wanted if size in trained]
    figures = f"{len(trained)} sizes are trained, {len(seen)} of the six descendants among them"
    named = " and ".join(f"{depth} layers of width {width}" for depth, width, _ in seen)
    return not seen, figures + (f": {named}" if seen else "")


def tal_equal_counts() -> tuple[bool, str]:
    """A hypernetwork without task layers sees of a task only its number of classes, to the nearest that it knows."""
    import torch

    from learngene.genes.gene import Learngene

    shape = ViTShape(embed_dim=32, depth=2, num_heads=2, patch_size=8, img_size=32, num_classes=100, class_token=True)
    gene = Learngene(method("logah", {"size": "pico", "expansion": 512}), shape)
    with torch.no_grad():
        first, *others = (gene.weights(shape.replace(num_classes=count)) for count in (100, 101, 102))
    body = [name for name in first if not name.startswith("head")]
    same = all(torch.equal(first[name], other[name]) for other in others for name in body)
    heads = all(torch.equal(first["head.weight"], other["head.weight"][:100]) for other in others)
    figures = "100, 101 and 102 classes (CIFAR-100 and Aircraft, UCF101, Flowers102): "
    figures += "the same body and the same first 100 rows of the head" if same and heads else "different weights"
    return same and heads, figures


def _stored(name: str, shape: ViTShape, **settings: Any) -> int:
    return sum(math.prod(size) for size in method(name, settings).gene_tensors(shape).values())


def lets_size() -> tuple[bool, str]:
    """LeTs: 37.7 M numbers are trained, 15.0 M of them those of the narrow ViT."""
    sizes = method("lets").gene_tensors(LETS)
    gene = sum(map(math.prod, sizes.values()))
    narrow = sum(math.prod(size) for name, size in sizes.items() if not name.startswith(("F.", "G.")))
    return (round(gene / 1e6, 1), round(narrow / 1e6, 1)) == (37.7, 15.0), f"{gene / 1e6:.1f} M, {narrow / 1e6:.1f} M"


def lets_storage() -> tuple[bool, str]:
    """LeTs Table 2: about 20 times fewer parameters than the printed 758 M of twelve descendants."""
    gene = _stored("lets", LETS)
    return round(758e6 / gene) == 20, f"{gene / 1e6:.1f} M for the gene, 758 M as printed, {758e6 / gene:.1f} times"


def wave_sizes() -> tuple[bool, str]:
    """WAVE: one gene makes 6, 8 and 12 layers at the widths of DeiT-Ti, S and B."""
    shapes = [ViTShape.named(name, depth=depth) for name in (TI, S, B) for depth in (6, 8, 12)]
    made = {name: sum(_makes(name, {}, shape) for shape in shapes) for name in ("wave", "tleg", "sws", "vanilla-lg")}
    figures = f"of {len(shapes)} sizes " + ", ".join(f"{name} makes {count}" for name, count in made.items())
    return made.pop("wave") == len(shapes) > max(made.values()), figures


def sweet_core() -> tuple[bool, str]:
    """SWEET: one core for all matrices, and any number of heads, where WAVE has templates of each and whole tiles."""
    shapes = [ViTShape.named(B, embed_dim=64 * heads, num_heads=heads) for heads in range(1, 13)]
    sweet, tiled = (sum(_makes(*each, shape) for shape in shapes) for each in (("sweet", {}), ("wave", {"tile": 128})))
    cores = [name for name in method("sweet").gene_tensors(ViTShape.named(B)) if name.startswith("core")]
    sets = [name for name in method("wave").gene_tensors(ViTShape.named(B)) if name.removeprefix("T.") in MATRICES]
    figures = f"{len(cores)} core, {len(sets)} sets of templates; of 12 numbers of heads SWEET makes {sweet}, "
    figures += f"WAVE with tiles of 128 makes {tiled}"
    return len(cores) == 1 < len(sets) and sweet == 12 > tiled, figures


def any_size_storage() -> tuple[bool, str]:
    """An any-size gene stores at most a tenth of the numbers of six models that it makes."""
    largest = ViTShape(embed_dim=96, depth=8, num_heads=6, img_size=32, patch_size=8, num_classes=10)
    sizes = ((32, 4), (48, 6), (64, 5), (64, 8), (80, 6), (96, 8))
    singly = sum(
        largest.replace(embed_dim=width, depth=depth, num_heads=width // 16).params() for width, depth in sizes
    )
    gene = _stored("any-size", largest)
    return 10 * gene <= singly, f"{gene:,} for the gene, {singly:,} for six models, {singly / gene:.1f} times"


def _makes(name: str, settings: Mapping[str, Any], shape: ViTShape) -> bool:
    """Whether a gene of DeiT-B makes a shape."""
    try:
        method(name, settings).refuse(ViTShape.named(B), shape)
    except ShapeError:
        return False
    return True


EXACT_TESTS: dict[str, Callable[[], tuple[bool, str]]] = {
    test.__name__: test
    for test in (
        order_identity, sws_storage, tleg_storage, tleg_fixed_set, tleg_costs, sws_costs, sws_costs_over_tleg,
        pool_storage, pool_smallest, pool_costs, lsamd_storage, lsamd_costs, tal_sizes, tal_all_sizes, tal_equal_counts,
        lets_size, lets_storage, wave_sizes, sweet_core, any_size_storage,
        real_first_component, real_matrices, real_norms,
    )
}  # fmt: skip
"""By name; each says whether its claim is true, and the figures that say so."""
