"""Graph hypernetworks against a few lines of plain PyTorch: graphs by search, every pair of nodes, whole factors."""

import itertools
import math
from collections import deque
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyper import HYPER, TASK, hyper_gene, task_vector, token_shape
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.tal.encoder import encode
from learngene.methods.tal.graph import Graph, graph
from learngene.methods.tal.predict import graph_of, position_table, predict, predict_matrix
from learngene.vits.shape import ViTShape

CHANNELS = sorted({1, 3, 1000, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)})
SPATIAL = [*range(1, 14, 2), 14, 15, 16]


# -- the graph: an explicit list of edges, and a search from every node ------------------------------------


def plain_nodes(shape: ViTShape, attention: bool = False) -> list[tuple[str, str, list[int]]]:
    """Type, name of the (first) parameter, and size of every node."""
    d, p, s = shape.embed_dim, shape.patch_size, shape.grid_size
    out: list[tuple[str, str, list[int]]] = [
        ("input", "", []),
        ("conv", "patch_embed.proj.weight", [d, shape.in_chans, p, p]),
        ("bias", "patch_embed.proj.bias", [d, 1, 1, 1]),
        ("pos_enc", "pos_embed", [1, d, s, s]),
        ("sum", "", []),
    ]
    for i in range(shape.depth):
        halves = [[("norm1", d, 0), ("attn.qkv", 3 * d, d), ("msa", 0, 0), ("attn.proj", d, d)]]
        halves += [[("norm2", d, 0), ("mlp.fc1", shape.hidden_dim, d), ("mlp.fc2", d, shape.hidden_dim)]]
        for half in halves:
            for name, rows, columns in half:
                if name == "msa":
                    out += [("msa", "", [])] * attention
                elif not columns:
                    out += [("ln", f"blocks.{i}.{name}.weight", [rows, 1, 1, 1])]
                else:
                    out += [("conv", f"blocks.{i}.{name}.weight", [rows, columns, 1, 1])]
                    out += [("bias", f"blocks.{i}.{name}.bias", [rows, 1, 1, 1])]
            out += [("sum", "", [])]
    out += [("ln", f"{shape.norm_name}.weight", [d, 1, 1, 1])]
    return [
        *out,
        ("conv", "head.weight", [shape.num_classes, d, 1, 1]),
        ("bias", "head.bias", [shape.num_classes, 1, 1, 1]),
    ]


def plain_distances(types: list[str]) -> Tensor:
    """Shortest directed paths by breadth-first search; every sum also has an edge from the sum before it."""
    edges: list[list[int]] = [[] for _ in types]
    sums = [node for node, kind in enumerate(types) if kind == "sum"]
    for node in range(1, len(types)):
        if types[node] != "pos_enc":
            edges[node - 1].append(node)
    edges[2].append(4)
    for one, other in itertools.pairwise(sums):
        edges[one].append(other)
    out = torch.zeros(len(types), len(types), dtype=torch.long)
    for start in range(len(types)):
        seen, queue = {start: 0}, deque([start])
        while queue:
            node = queue.popleft()
            for after in edges[node]:
                if after not in seen:
                    seen[after] = seen[node] + 1
                    queue.append(after)
        for node, steps in seen.items():
            out[start, node] = steps
    return out


def plain_row(value: int, known: list[int]) -> int:
    """The nearest, the smaller of two that are as near."""
    return min(range(len(known)), key=lambda row: (abs(known[row] - value), known[row]))


def plain_sizes(sizes: list[list[int]]) -> Tensor:
    rows = []
    for size in sizes:
        channels = [plain_row(8 if 4 <= c <= 7 else c, CHANNELS) for c in size[:2]]
        rows.append([*channels, *(plain_row(3 if k in (2, 4) else k, SPATIAL) for k in size[2:])] if size else
                    [len(CHANNELS)] * 2 + [len(SPATIAL)] * 2)  # fmt: skip
    return torch.tensor(rows)


TYPES = {"conv": 4, "msa": 5, "sum": 7, "input": 9, "bias": 10, "ln": 12, "pos_enc": 13}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12])
def test_the_graph_is_that_of_a_search_over_its_edges(depth: int, attention: bool) -> None:
    shape = token_shape(depth=depth, embed_dim=40, num_heads=4, img_size=24, num_classes=97)
    nodes = plain_nodes(shape, attention)
    found = graph(shape, tuple(CHANNELS), attention_node=attention)
    assert len(nodes) == 8 + (13 if attention else 12) * depth == len(found.types)
    assert found.types.tolist() == [TYPES[kind] for kind, _, _ in nodes]
    assert [names[0] if names else "" for names in found.names] == [name for _, name, _ in nodes]
    assert torch.equal(found.sizes, plain_sizes([size for _, _, size in nodes]))
    assert torch.equal(found.distances, plain_distances([kind for kind, _, _ in nodes]))
    assert len(found.nodes) == 6 + 10 * depth
    if not attention:
        assert found.distances.max() == 8 + 2 * depth


def test_paths_beyond_the_cut_off_count_as_none() -> None:
    found = graph(token_shape(depth=24), tuple(CHANNELS)).distances
    expected = plain_distances([kind for kind, _, _ in plain_nodes(token_shape(depth=24))])
    assert expected.max() == 56
    assert torch.equal(found, expected.where(expected <= 50, 0))


@pytest.mark.parametrize(
    ("count", "row"),
    [(1, 1), (2, 1), (3, 3), *((c, 8) for c in (4, 5, 6, 7, 8, 12)), (13, 16), (60, 56), (61, 64), (88, 80), (89, 96),
     (104, 96), (105, 112), (992, 992), (996, 992), (997, 1000), (1000, 1000), (1004, 1000), (1005, 1008), (4112, 4096),
     (4113, 4128), (8192, 8192), (9000, 8192)],
)  # fmt: skip
def test_channels_go_to_the_nearest_row(count: int, row: int) -> None:
    sizes = graph(token_shape(num_classes=count), tuple(CHANNELS)).sizes
    assert CHANNELS[int(sizes[-2, 0])] == CHANNELS[int(sizes[-1, 0])] == row
    assert method("tal").config.channels == tuple(CHANNELS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("side", "row"), [(1, 1), (2, 3), (3, 3), (4, 3), (8, 7), (14, 14), (16, 16), (32, 16)])
def test_sides_go_to_the_nearest_row(side: int, row: int) -> None:
    found = graph(token_shape(patch_size=side, img_size=3 * side), tuple(CHANNELS)).sizes
    assert [SPATIAL[int(i)] for i in found[1, 2:]] == [row, row]
    assert [SPATIAL[int(i)] for i in found[3, 2:]] == [3, 3]
    assert torch.equal(found[0], torch.tensor([len(CHANNELS)] * 2 + [len(SPATIAL)] * 2))


# -- the encoder: one look-up per pair of nodes, attention spelled out -------------------------------------


def linear(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = x @ t[f"{name}.weight"].T
    return out + t[f"{name}.bias"] if f"{name}.bias" in t else out


def norm(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def plain_encoder(gene: Learngene, found: Graph, task: Tensor | None = None) -> Tensor:
    t, kind = gene.tensors(), gene.method
    heads, layers = kind.encoder_heads, kind.encoder_layers  # type: ignore[attr-defined]
    distance = found.distances
    x = t["encoder.types"][found.types]
    tables = [t[f"encoder.{name}"] for name in ("channels", "channels", "spatial", "spatial")]
    x = x + torch.cat([table[found.sizes[:, i]] for i, table in enumerate(tables)], dim=1)
    x = x + t["encoder.in_degrees"][(distance == 1).sum(0)] + t["encoder.out_degrees"][(distance == 1).sum(1)]
    x = x + t["encoder.input_distances"][distance[0]]
    edges = t["encoder.distances"]
    pairs = torch.cat([edges[distance + 2], edges[distance.T + 2]], dim=2)
    bias = linear(t, "encoder.edge2", linear(t, "encoder.edge1", pairs).relu())
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        h = norm(t, f"{name}.norm1", x)
        if task is not None:
            h = (1 + linear(t, f"{name}.scale", task)) * h + linear(t, f"{name}.shift", task)
        q, k, v = (part.unflatten(1, (heads, -1)) for part in linear(t, f"{name}.qkv", h).chunk(3, dim=1))
        scores = torch.einsum("ihc,jhc->ijh", q, k) / q.shape[-1] ** 0.5 + bias
        mixed = torch.einsum("ijh,jhc->ihc", scores.softmax(dim=1), v).flatten(1)
        x = x + linear(t, f"{name}.proj", mixed)
        x = x + linear(t, f"{name}.fc2", F.gelu(linear(t, f"{name}.fc1", norm(t, f"{name}.norm2", x))))
    return norm(t, "encoder.norm", x)


SHAPES: dict[str, dict[str, Any]] = {
    "as trained": {},
    "deeper": {"depth": 5},
    "wider": {"embed_dim": 24, "num_heads": 3, "mlp_ratio": 4.0, "depth": 1},
    "classes": {"num_classes": 20},
    "more classes": {"num_classes": 51, "embed_dim": 12, "num_heads": 3},
    "patches": {"patch_size": 2, "img_size": 10},
    "one patch, many classes": {"embed_dim": 32, "patch_size": 1, "img_size": 1, "num_classes": 100},
    "no head": {"num_classes": 0},
    "grey": {"in_chans": 1},
}
every_shape = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)


def assert_near(found: Tensor, expected: Tensor, what: str = "") -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("task", [None, task_vector()], ids=["no task", "task"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_encoder_is_a_graphormer_with_task_layers(layers: int, task: Tensor | None, attention: bool) -> None:
    gene = hyper_gene("tal", {"encoder_layers": layers, "attention_node": attention})
    found = graph_of(gene.method.config, token_shape(depth=3))  # type: ignore[attr-defined]
    tasks = None if task is None else task[None]
    assert_near(encode(gene.method.config, gene.tensors(), [found], tasks)[0], plain_encoder(gene, found, task))  # type: ignore[attr-defined]


@pytest.mark.parametrize("tasked", [False, True])
def test_a_padded_batch_of_graphs_is_each_alone(tasked: bool) -> None:
    gene = hyper_gene("tal", {"encoder_layers": 2})
    shapes = [token_shape(depth=depth, num_classes=classes) for depth, classes in ((2, 3), (5, 9), (1, 40))]
    tasks = torch.stack([task_vector(seed) for seed in range(3)]) if tasked else None
    graphs = [graph_of(gene.method.config, shape) for shape in shapes]  # type: ignore[attr-defined]
    together = encode(gene.method.config, gene.tensors(), graphs, tasks)  # type: ignore[attr-defined]
    weights = predict(gene.method.config, gene.tensors(), shapes, tasks)  # type: ignore[attr-defined]
    for i, found in enumerate(graphs):
        task = None if tasks is None else tasks[i]
        assert_near(together[i, : len(found.types)], plain_encoder(gene, found, task))
        alone = gene.weights(shapes[i], task=task)
        assert alone.keys() == weights[i].keys()
        for name, value in alone.items():
            assert_near(weights[i][name], value, name)


# -- the decoders: whole factors, then what the size needs -------------------------------------------------


def tile(w: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cropped, or from the start again."""
    for dim, count in enumerate(size):
        w = w.index_select(dim, torch.arange(count) % w.shape[dim])
    return w


def rounded(n: int, m: int) -> int:
    n = min(n, m)
    n = n * 4 // 3 if n % 3 == 0 else n
    return m if n >= m / 2 else n


class PlainLowRank:
    """All 2r latents of a node, all expanded to K numbers."""

    def __init__(self, gene: Learngene) -> None:
        self.t, kind = gene.tensors(), gene.method
        self.r, self.k, self.m = kind.rank, kind.expansion, kind.max_shape  # type: ignore[attr-defined]
        self.transposed = kind.layout == "transposed"  # type: ignore[attr-defined]

    def factors(self, node: Tensor) -> tuple[Tensor, Tensor]:
        hidden = linear(self.t, "decoder.fc2", linear(self.t, "decoder.fc1", node).relu()).relu()
        latents = linear(self.t, "decoder.fc3", hidden).reshape(2 * self.r, self.r).relu()
        expanded = linear(self.t, "decoder.expand", latents)
        if self.transposed:
            return expanded[: self.r].T, expanded[self.r :].T
        both = expanded.reshape(2 * self.k, self.r)
        return both[: self.k], both[self.k :]

    def kernel(self, node: Tensor, o: int, i: int, height: int, width: int, rounds: bool = True) -> Tensor:
        a, b = self.factors(node)
        o, i = (rounded(n, self.m) if rounds else n for n in (o, i))
        assert max(o * height, i * width) <= self.k
        product = a[: o * height] @ b[: i * width].T
        return product.reshape(o, height, i, width).permute(0, 2, 1, 3)

    def matrix(self, node: Tensor, name: str, o: int, i: int) -> Tensor:
        return self.kernel(node, o, i, 1, 1)[:, :, 0, 0]

    def position(self, node: Tensor, width: int, side: int) -> Tensor:
        return self.kernel(node, 1, width, side, side, rounds=False)

    def vector(self, node: Tensor, name: str, n: int, half: int) -> Tensor:
        a, b = self.factors(node)
        n = rounded(n, self.m)
        assert 2 * n <= self.k
        return (a[: 2 * n] @ b[0]).reshape(2, n)[half]


class PlainDense:
    """The whole 16 x 16 kernel, cropped in its middle."""

    def __init__(self, gene: Learngene) -> None:
        self.t, self.hid, self.m = gene.tensors(), gene.method.hid, gene.method.max_shape  # type: ignore[attr-defined]

    def kernel(self, node: Tensor, o: int, i: int, height: int, width: int) -> Tensor:
        height, width = min(height, 16), min(width, 16)
        x = linear(self.t, "decoder.fc", node).relu().reshape(4 * self.hid, 16, 16)
        top, left = 8 - height // 2, 8 - width // 2
        out = torch.empty(self.m, self.m, height, width)
        for row in range(height):
            for column in range(width):
                hidden = linear(self.t, "decoder.conv1", x[:, top + row, left + column]).relu()
                out[:, :, row, column] = linear(self.t, "decoder.conv2", hidden).reshape(self.m, self.m)
        return out

    def matrix(self, node: Tensor, name: str, o: int, i: int) -> Tensor:
        block = self.kernel(node, o, i, 1, 1)[:, :, 0, 0]
        if name != "head.weight":
            return block
        return self.t["decoder.classes.weight"] @ block.relu() + self.t["decoder.classes.bias"][:, None]

    def position(self, node: Tensor, width: int, side: int) -> Tensor:
        return tile(self.kernel(node, 1, width, side, side)[:1], (1, width, side, side))

    def vector(self, node: Tensor, name: str, n: int, half: int) -> Tensor:
        halves = linear(self.t, "decoder.vector2", linear(self.t, "decoder.vector1", node).relu())
        out = halves[half * self.m : (half + 1) * self.m]
        return linear(self.t, "decoder.class_bias", out.relu()) if name == "head.bias" else out


def plain_weights(gene: Learngene, shape: ViTShape, task: Tensor | None = None) -> dict[str, Tensor]:
    """All weights of one ViT, one tensor after the other."""
    found = graph_of(gene.method.config, shape)  # type: ignore[attr-defined]
    nodes = plain_encoder(gene, found, task)
    plain: Any = (PlainDense if gene.method.name == "ghn3" else PlainLowRank)(gene)
    width, side = shape.embed_dim, shape.grid_size
    class_row = gene.tensors()["class_position"][:width].reshape(1, 1, width)
    out = {"cls_token": torch.zeros(1, 1, width)}
    for node, (kind, first, size) in zip(nodes, plain_nodes(shape, gene.method.attention_node), strict=True):  # type: ignore[attr-defined]
        if not first or (first.startswith("head") and not shape.num_classes):
            continue
        if kind == "pos_enc":
            kernel = plain.position(node, width, side)[0]
            patches = [kernel[:, row, column] for row in range(side) for column in range(side)]
            out[first] = torch.cat([class_row, torch.stack(patches)[None]], dim=1)
        elif kind == "conv" and first.startswith("patch"):
            out[first] = tile(plain.kernel(node, *size), tuple(size)) * math.sqrt(2 / math.prod(size[1:]))
        elif kind == "conv":
            o, i = size[:2]
            out[first] = tile(plain.matrix(node, first, o, i), (o, i)) * math.sqrt(2 / i)
        elif kind == "bias":
            out[first] = torch.tanh(0.2 * tile(plain.vector(node, first, size[0], 1), (size[0],)))
        else:
            weight, bias = (tile(plain.vector(node, first, width, half), (width,)) for half in (0, 1))
            out[first] = 2 * torch.sigmoid(weight / 2)
            out[first.replace("weight", "bias")] = torch.tanh(0.2 * bias)
    return out


def assert_same(gene: Learngene, shape: ViTShape, task: Tensor | None = None) -> None:
    found, expected = gene.weights(shape, task=task), plain_weights(gene, shape, task)
    assert found.keys() == expected.keys() == shape.all_params().keys()
    for name, value in expected.items():
        assert tuple(found[name].shape) == shape.all_params()[name], name
        assert_near(found[name], value, name)


@every_shape
@pytest.mark.parametrize(
    ("name", "most"), [*(("logah", most) for most in (2048, 64, 20, 10)), ("logah-transposed", 20)]
)
def test_low_rank_weights_are_products_of_whole_factors(name: str, most: int, changes: dict[str, Any]) -> None:
    """Also where sizes beyond ``max_shape`` are copies, and where sizes are rounded."""
    gene = hyper_gene(name, {"expansion": 1024, "max_shape": most})
    assert_same(gene, token_shape(**changes))


@pytest.mark.parametrize(("rank", "expansion"), [(4, 256), (7, 131), (3, 4096), (12, 200)])
@pytest.mark.parametrize("name", ["logah", "logah-transposed"])
def test_any_rank_and_expansion_is_reinterpreted_alike(name: str, rank: int, expansion: int) -> None:
    gene = hyper_gene(name, {"expansion": expansion, "rank": rank})
    for changes in ({}, {"num_classes": 17}, {"embed_dim": 12, "num_heads": 3, "num_classes": 40}):
        assert_same(gene, token_shape(**changes))


@every_shape
@pytest.mark.parametrize("most", [16, 11])
def test_dense_weights_are_tiled_blocks(most: int, changes: dict[str, Any]) -> None:
    assert_same(hyper_gene("ghn3", {"max_shape": most, "vocabulary": 30}), token_shape(**changes))


@pytest.mark.parametrize("changes", [{"patch_size": 18, "img_size": 36}, {"patch_size": 1, "img_size": 18}], ids=str)
def test_kernels_and_grids_beyond_16_are_tiled_by_the_dense_decoder(changes: dict[str, Any]) -> None:
    assert_same(hyper_gene("ghn3", {"hid": 8}), token_shape(depth=1, **changes))


@pytest.mark.parametrize("seed", [1, 2])
def test_weights_for_a_task(seed: int) -> None:
    gene = hyper_gene("tal", {"expansion": 512, "encoder_layers": 2, "attention_node": seed == 2})
    assert_same(gene, token_shape(depth=3, num_classes=7), task_vector(seed))


@pytest.mark.parametrize("name", HYPER)
def test_one_more_matrix_is_decoded_like_any_other(name: str) -> None:
    gene, vector = hyper_gene(name), task_vector(3, 16)
    plain: Any = (PlainDense if name == "ghn3" else PlainLowRank)(gene)
    expected = tile(plain.matrix(vector, "", 24, 16), (24, 16)) * math.sqrt(2 / 16)
    assert_near(predict_matrix(gene.method.config, gene.tensors(), vector, 24, 16), expected)  # type: ignore[attr-defined]


# -- by hand: which cell of a decoder's kernel lands where -------------------------------------------------


def test_a_position_table_has_a_row_per_patch_and_a_column_per_channel() -> None:
    """Two channels of a 2 x 2 image; patches are read row by row, as timm flattens them."""
    kernel = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert position_table(kernel).tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]


def weights_that_move(cell: tuple[int, int], shape: ViTShape) -> dict[str, Tensor]:
    """Of GHN-3, by how much each weight changes when one cell of the decoded 16 x 16 kernel does."""
    gene = hyper_gene("ghn3", {"hid": 32, "max_shape": 32})
    before = gene.weights(shape)
    with torch.no_grad():
        gene.tensors()["decoder.fc.bias"].view(-1, 16, 16)[:, cell[0], cell[1]] += 1
    moved = {name: (value - before[name]).abs() for name, value in gene.weights(shape).items()}
    return {name: value for name, value in moved.items() if value.max() > 0}


@pytest.mark.parametrize(("cell", "token"), [((4, 4), 0), ((4, 5), 1), ((5, 4), 8), ((11, 11), 63)], ids=str)
def test_a_cell_of_the_dense_kernel_is_one_token(cell: tuple[int, int], token: int) -> None:
    """An 8 x 8 grid takes rows and columns 4 to 11 of the kernel; the class token stands before all."""
    moved = weights_that_move(cell, token_shape(embed_dim=32, num_heads=4, img_size=32, patch_size=4))
    tokens = moved["pos_embed"][0].amax(1).nonzero().flatten().tolist()
    assert tokens == [token + 1]


def test_the_dense_kernel_is_cropped_where_the_authors_crop() -> None:
    """``8 - k // 2``: a matrix is cell (8, 8); a patch of 4 x 4 is rows 6 to 9, one of 3 x 3 is rows 7 to 9."""
    matrix, four = "blocks.0.attn.qkv.weight", token_shape(img_size=32, patch_size=4)
    three, kernel = token_shape(img_size=24, patch_size=3), "patch_embed.proj.weight"
    assert matrix in weights_that_move((8, 8), four)
    assert matrix not in weights_that_move((7, 7), four)
    assert [kernel in weights_that_move((row, row), four) for row in (5, 6, 9, 10)] == [False, True, True, False]
    assert [kernel in weights_that_move((row, row), three) for row in (6, 7, 9, 10)] == [False, True, True, False]


# -- what a hypernetwork without a task cannot tell apart --------------------------------------------------


def without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("head")}


@pytest.mark.parametrize(("name", "one", "other"), [("logah", 90, 100), ("logah", 89, 104), ("ghn3", 92, 97)])
def test_tasks_with_about_as_many_classes_are_one_to_a_task_free_network(name: str, one: int, other: int) -> None:
    gene = hyper_gene(name, {"expansion": 512})
    few, many = (gene.weights(token_shape(num_classes=classes)) for classes in (one, other))
    for key, value in without_head(few).items():
        assert torch.equal(value, many[key]), key
    assert_near(few["head.weight"], many["head.weight"][:one])
    wider = gene.weights(token_shape(num_classes=105))
    assert not torch.equal(few["blocks.0.attn.qkv.weight"], wider["blocks.0.attn.qkv.weight"])


def test_zero_task_layers_are_the_network_without_them() -> None:
    gene = Learngene(method("tal", {**HYPER["tal"], "task_dim": TASK}), token_shape())
    with_task, without = gene.weights(task=task_vector()), gene.weights()
    assert all(torch.equal(value, without[name]) for name, value in with_task.items())
