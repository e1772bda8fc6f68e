"""The elastic model: all paths of a pool in one module, which share one set of parameters."""

import copy
import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from learngene import Budget, ElasticViT, StitchedShape, ViTShape
from learngene.system.errors import LearngeneError
from learngene.training.stage import set_drop_path
from pico import batch, pico_gene
from pools import POOLS, full_names, pool, rows_of, shapes
from runs import state

every_pool = pytest.mark.parametrize("key", POOLS)


@functools.cache
def elastic_of(key: str) -> ElasticViT:
    """The elastic model of a pool, in evaluation mode and on whatever path; no test changes its tensors."""
    return ElasticViT(pool(*POOLS[key])).eval()


def some(paths: list[Any]) -> list[Any]:
    """All paths of a small pool, a dozen of a large one: of every length, from every row."""
    return paths[:: max(1, len(paths) // 10)]


# -- one function of the gene ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "changes"),
    [*((key, {}) for key in POOLS), ("two rows", {"class_token": True}), ("unequal depth", {"ending": "official"})],
    ids=str,
)
def test_every_path_computes_what_the_gene_and_the_descendant_do(key: str, changes: dict[str, Any]) -> None:
    elastic = ElasticViT(pool(*POOLS[key], **changes)).eval() if changes else elastic_of(key)
    gene, images = elastic.gene, batch(elastic.gene.shape)
    elastic.set_path(gene.shape)
    assert torch.equal(elastic(images), gene(images))
    seen = []
    for path, shape in some(list(zip(full_names(gene), shapes(gene), strict=True))):
        elastic.set_path(path)
        logits = elastic(images)
        assert elastic.shape == shape
        descendant = gene.expand(path)
        assert {name: tuple(value.shape) for name, value in descendant.state_dict().items()} == shape.all_params()
        assert descendant.learngene["fresh"] == []
        assert torch.equal(logits, descendant(images)), path
        assert torch.equal(logits, gene(images, shape)), path
        seen.append(logits)
    assert len({tuple(logits.flatten().tolist()) for logits in seen}) == len(seen)


def test_leaving_out_the_final_norm_changes_stitched_paths_alone() -> None:
    with_norm, without = pool(), pool(settings={"rows": (16, 32), "final_norm": False})
    images = batch(with_norm.shape)
    for path in full_names(with_norm):
        equal = torch.equal(with_norm.expand(path)(images), without.expand(path)(images))
        assert equal == ("+" not in path), path


# -- shared parameters -------------------------------------------------------------------------------------


def stores(module: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@every_pool
def test_all_paths_share_the_genes_parameters_and_the_state_lists_each_once(key: str) -> None:
    elastic = elastic_of(key)
    gene = elastic.gene
    own = {id(parameter) for parameter in gene.parameters()}
    assert {id(parameter) for view in elastic.views().values() for parameter in view.parameters()} == own
    assert [id(parameter) for parameter in elastic.parameters()] == [id(parameter) for parameter in gene.parameters()]
    assert len(elastic.views()) == len(shapes(gene))
    for path in some(full_names(gene)):
        elastic.set_path(path)
        assert list(elastic.state_dict()) == [f"gene.{key}" for key in gene.tensors()], path


def test_a_state_saved_on_one_path_loads_on_another() -> None:
    first, second = (ElasticViT(pico_gene("pool", {"rows": (16, 32)}, seed=seed, embed_dim=32, num_heads=4, depth=3))
                     for seed in (0, 1))  # fmt: skip
    first.set_path("2+1")
    second.set_path("16:1-3")
    second.load_state_dict(first.state_dict(), strict=True)
    images = batch(first.gene.shape)
    second.set_path("2+1")
    assert torch.equal(first.eval()(images), second.eval()(images))


def test_training_a_path_trains_the_gene() -> None:
    gene = pool()
    elastic = ElasticViT(gene)
    elastic.set_path("2+1")
    before = state(gene)
    elastic(batch(gene.shape)).square().mean().backward()
    torch.optim.SGD(elastic.parameters(), lr=0.1).step()
    moved = {key for key, value in state(gene).items() if not torch.equal(value, before[key])}
    assert "stitch.0.1.1.weight" in moved
    assert "row1.blocks.2.attn.proj.weight" in moved
    images = batch(gene.shape)
    assert torch.equal(elastic.eval()(images), gene.eval().expand("2+1")(images))


def views_share(elastic: ElasticViT) -> bool:
    own = {id(parameter) for parameter in elastic.gene.parameters()}
    return all(id(parameter) in own for view in elastic.views().values() for parameter in view.parameters())


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu")])
def test_paths_keep_sharing_when_the_model_is_converted(move: Any) -> None:
    elastic = move(ElasticViT(pool()))
    assert views_share(elastic)
    dtype = next(elastic.gene.parameters()).dtype
    for path in full_names(elastic.gene):
        elastic.set_path(path)
        assert elastic(batch(elastic.gene.shape).to(dtype)).dtype == dtype


def test_a_copy_shares_inside_and_with_nothing_else() -> None:
    elastic = ElasticViT(pool()).eval()
    elastic.set_path("2+1")
    other = copy.deepcopy(elastic)
    assert views_share(other)
    assert not stores(other) & stores(elastic)
    images = batch(elastic.gene.shape)
    before = elastic(images)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(elastic(images), before)
    assert torch.equal(other(images), other.gene.expand("2+1")(images))
    assert not torch.equal(other(images), before)


def test_nothing_is_allocated_by_switching() -> None:
    elastic = ElasticViT(pool())
    places = [parameter.data_ptr() for parameter in elastic.gene.parameters()]
    views = elastic.views()
    for path in full_names(elastic.gene) * 2:
        elastic.set_path(path)
        elastic(batch(elastic.gene.shape))
    assert [parameter.data_ptr() for parameter in elastic.gene.parameters()] == places
    assert all(views[shape] is view for shape, view in elastic.views().items())


# -- gradients ---------------------------------------------------------------------------------------------


@every_pool
def test_gradients_reach_exactly_what_is_on_the_path(key: str) -> None:
    elastic = elastic_of(key)
    gene, kind = elastic.gene, rows_of(elastic.gene)
    reached: set[str] = set()
    paths = kind.paths(gene.shape)
    # Whole rows and single stitches reach every tensor; of paths with more stitches some will do.
    single = [path for path in paths if len(path.segments) <= 2]
    for shape in [*single, *some([path for path in paths if path not in single])]:
        elastic.zero_grad(set_to_none=True)
        elastic.set_path(shape)
        elastic(batch(gene.shape)).square().sum().backward()
        found = {key for key, value in gene.tensors().items() if value.grad is not None and value.grad.any()}
        assert found == {key for key, value in gene.tensors().items() if value.grad is not None}
        rows = kind.row_shapes(gene.shape)
        norm = shape.norm_params()
        segments = [(kind.row_of(each), each.first - 1, each.last - 1) for each in shape.segments]
        first, last = segments[0][0], segments[-1][0]
        expected = {f"row{first}.{key}" for key in rows[0].stem_params()}
        expected |= {f"row{last}.{key}" for key in ("head.weight", "head.bias")}
        expected |= {f"row{last}.norm.{key.rpartition('.')[2]}" for key in norm}
        for row, begin, end in segments:
            expected |= {f"row{row}.blocks.{block}.{key}" for block in range(begin, end + 1)
                         for key in gene.shape.layer_params()}  # fmt: skip
        for (row, _, out), (entered, into, _) in pairwise(segments):
            layer = kind.stitches(gene.shape, row, entered)[out, into]
            expected |= {f"stitch.{row}.{entered}.{layer}.{part}" for part in ("weight", "bias")}
        assert found == expected, shape.path
        reached |= found
    assert reached == gene.tensors().keys()


# -- switching ---------------------------------------------------------------------------------------------


def test_a_path_is_set_by_name_shape_or_budget() -> None:
    gene = pool()
    elastic = ElasticViT(gene)
    assert elastic.shape == gene.shape
    shape = gene.method.named_shape(gene.shape, "2+1")
    for path in ("2+1", "16:1-2+32:3-3", "16:1-2+32:3", shape, Budget(max_params=shape.params())):
        elastic.set_path(gene.shape)
        assert elastic.shape == gene.shape
        elastic.set_path(path)
        assert elastic.shape == shape, path
    elastic.set_path(gene.shape.replace(embed_dim=16, num_heads=2))
    assert elastic.shape == gene.shape.replace(embed_dim=16, num_heads=2)


def test_a_budget_takes_what_scored_best() -> None:
    gene = pool()
    names = full_names(gene)
    gene.metadata["paths"] = [{"path": path, "blocks": "", "top1": 50.0 + (path == "16:1-1+32:2-3")} for path in names]
    elastic = ElasticViT(gene)
    elastic.set_path(Budget(max_macs=gene.shape.macs()))
    assert elastic.shape == gene.method.named_shape(gene.shape, "1+2")
    assert [candidate.top1 for candidate in elastic.paths()] == [51.0] + [50.0] * 8
    with pytest.raises(LearngeneError, match=r"elastic: no path fits Budget\(max_params=1.*paths\(\) lists them all"):
        elastic.set_path(Budget(max_params=1))
    assert elastic.shape == gene.method.named_shape(gene.shape, "1+2")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("1+1", "the pool has no path 1\\+1; the nearest of its 9 paths are"),
        ("three", "path 'three' is neither of the form"),
        (ViTShape(16, 2, 2, 2.0, 4, 8, 3, 3), "the pool has no path 16:1-2"),
        (StitchedShape(((24, 3, 1, 1), (32, 4, 2, 3)), 2.0, 4, 8, 3, 3), "no row has width 24"),  # type: ignore[arg-type]
        (pool().shape.replace(num_classes=5), "classes and image size are the gene's own; expand the path to change"),
        (pool().shape.replace(img_size=12), "classes and image size are the gene's own"),
        (pool().shape.replace(patch_size=2), "this gene has patch_size 4, not 2"),
    ],
    ids=str,
)
def test_what_is_no_path_is_refused_and_changes_nothing(path: Any, message: str) -> None:
    elastic = ElasticViT(pool())
    elastic.set_path("2+1")
    before = elastic.shape
    with pytest.raises(LearngeneError, match=message):
        elastic.set_path(path)
    assert elastic.shape == before


def test_a_gene_without_paths_is_refused() -> None:
    with pytest.raises(LearngeneError, match="elastic: a gene of method tleg has no paths to switch between"):
        ElasticViT(pico_gene())


def test_training_mode_follows_from_path_to_path() -> None:
    elastic = ElasticViT(pool())
    for view in elastic.views().values():
        set_drop_path(view, 0.9)
    images = batch(elastic.gene.shape, 16)

    def random(path: str) -> bool:
        elastic.set_path(path)
        return not torch.equal(elastic(images), elastic(images))

    paths = full_names(elastic.gene)
    elastic.train()
    torch.manual_seed(0)
    assert [random(path) for path in paths] == [True] * 9
    elastic.eval()
    assert [random(path) for path in paths] == [False] * 9
    elastic.train()
    assert [random(path) for path in paths] == [True] * 9
    assert all(any(isinstance(m, DropPath) for m in view.modules()) for view in elastic.views().values())


def test_an_elastic_model_is_read_from_a_gene_file(tmp_path: Path) -> None:
    gene = pool()
    gene.save(tmp_path / "pool.safetensors")
    images = batch(gene.shape)
    for source in (tmp_path / "pool.safetensors", str(tmp_path / "pool.safetensors")):
        elastic = ElasticViT(source).eval()
        elastic.set_path("3+1")
        assert torch.equal(elastic(images), gene.expand("3+1")(images))


def test_positions_and_class_tokens_of_every_row_do_not_decay() -> None:
    elastic = ElasticViT(pool(class_token=True))
    names = {"pos_embed", "cls_token"}
    assert elastic.no_weight_decay() == {f"gene.row{row}.{name}" for row in (0, 1) for name in names}
    assert elastic.no_weight_decay() <= dict(elastic.named_parameters()).keys()
