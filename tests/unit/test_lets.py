"""LeTs: against plain loops over explicit matrices, and against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import learngene
from learngene.genes.gene import Learngene
from learngene.genes.plan import Budget, plan
from learngene.methods import method
from learngene.recipe.sections import Train
from learngene.system.errors import LearngeneError
from learngene.training.optimizer import make_optimizer
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from pico import CLI, batch, condense_fields, pico_gene, pico_shape

PICO: dict[str, Any] = {"width": 4, "sources": 4}
AUX: dict[str, Any] = {"embed_dim": 8, "num_heads": 4, "depth": 8}


def gene_of(**settings: Any) -> Learngene:
    """Width 4 (two heads of 2) and 4 layers for an auxiliary model of width 8 and 8 layers, all numbers random."""
    return pico_gene("lets", {**PICO, **settings}, **AUX)


def shape_of(heads: int = 4, **changes: Any) -> ViTShape:
    return pico_shape(**{**AUX, "embed_dim": 2 * heads, "num_heads": heads, **changes})


def plain(
    gene: Learngene, e: dict[str, Tensor], feeds: list[tuple[int, int]], positions: list[int]
) -> dict[str, Tensor]:
    """The equations, layer by layer and matrix by matrix; ``e`` has every E in full."""
    t = gene.tensors()
    out = {"pos_embed": t["pos_embed"][..., positions]}
    kernel = t["patch_embed.proj.weight"]
    out["patch_embed.proj.weight"] = (e["embed"] @ kernel.reshape(len(kernel), -1)).reshape(-1, *kernel.shape[1:])
    for name in ("patch_embed.proj.bias", "norm.weight", "norm.bias"):
        out[name] = e["embed"] @ t[name]
    out |= {"head.weight": t["head.weight"] @ e["head"].T, "head.bias": t["head.bias"]}
    for i, (pair, row) in enumerate(feeds):
        parts: dict[str, list[Tensor]] = {}
        for j, k in enumerate((2 * pair, 2 * pair + 1)):
            for name in [name for names in MODULE_PARAMS.values() for name in names]:
                module, kind = name.split(".")[-2:]
                value = t[f"layer{k}.{name}"]
                pieces = {"qkv"[n]: value[n * 4 : n * 4 + 4] for n in range(3)} if module == "qkv" else {module: value}
                for what, piece in pieces.items():
                    o = {"fc1": f"layer{k}.ffn"}.get(what, f"layer{k}.{what}" if what in "qkv" else "embed")
                    piece = e[o] @ piece
                    if kind == "weight" and "norm" not in what:
                        piece = piece @ e[{"proj": f"layer{k}.v", "fc2": f"layer{k}.ffn"}.get(what, "embed")].T
                    piece = t[f"G.row{row}.{what}.{kind}"][j] * piece
                    parts.setdefault(f"{name}:{what}", []).append(piece)
        for name in [name for names in MODULE_PARAMS.values() for name in names]:
            sums = [a + b for key, (a, b) in parts.items() if key.startswith(f"{name}:")]
            out[f"blocks.{i}.{name}"] = torch.cat(sums)
    return out


def expanders(gene: Learngene, rows: dict[str, list[int]]) -> dict[str, Tensor]:
    """E of every F: the identity and the rows that ``rows`` names by the end of F's name."""
    out = {}
    for name, value in gene.tensors().items():
        if name.startswith("F."):
            old = value.shape[1]
            out[name.removeprefix("F.")] = torch.cat([torch.eye(old), value[rows[name.rpartition(".")[2]]]])
    return out


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


# -- widths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("depth", [1, 3, 8, 11])
def test_every_weight_is_the_equation(heads: int, depth: int) -> None:
    gene, shape, new = gene_of(), shape_of(heads, depth=depth), 2 * heads - 4
    rows = {name: list(range(2 * new if name == "ffn" else new)) for name in ("embed", "head", "q", "k", "v", "ffn")}
    feeds = gene.method.feeds(gene.shape, shape)  # type: ignore[attr-defined]
    expected = plain(gene, expanders(gene, rows), feeds, list(range(2 * heads)))
    assert_same(gene.weights(shape), expected)
    assert torch.equal(gene(batch(shape), shape), gene.expand(shape)(batch(shape)))


@pytest.mark.parametrize("selection", ["top-l1", "top-l2", "bottom-l1", "bottom-l2"])
def test_rows_of_large_or_small_norm_are_the_same_on_both_sides(selection: str) -> None:
    """Three heads: of the new ones the first or the second, chosen once for q, k and v by the sum of their norms."""
    gene, shape = gene_of(), shape_of(3, depth=3)
    t, largest, power = gene.tensors(), selection.startswith("top"), int(selection[-1])
    feeds = gene.method.feeds(gene.shape, shape)  # type: ignore[attr-defined]

    def best(scores: list[float], count: int) -> list[int]:
        return sorted(sorted(range(len(scores)), key=lambda row: scores[row], reverse=largest)[:count])

    def norms(value: Tensor, group: int = 1) -> list[float]:
        return [sum(abs(x) ** power for x in block.flatten().tolist()) ** (1 / power) for block in value.split(group)]

    channels = best(norms(t["F.embed"]), 2)
    e = {name: torch.cat([torch.eye(4), t[f"F.{name}"][channels]]) for name in ("embed", "head")}
    for k in range(4):
        (head,) = best([sum(each) for each in zip(*(norms(t[f"F.layer{k}.{p}"], 2) for p in "qkv"), strict=True)], 1)
        for part in "qkv":
            e[f"layer{k}.{part}"] = torch.cat([torch.eye(4), t[f"F.layer{k}.{part}"][2 * head : 2 * head + 2]])
        ffn = t[f"F.layer{k}.ffn"]
        e[f"layer{k}.ffn"] = torch.cat([torch.eye(8), ffn[best(norms(ffn), 4)]])
    assert_same(
        gene.weights(shape, selection=selection), plain(gene, e, feeds, [0, 1, 2, 3, *(4 + c for c in channels)])
    )


def test_wider_and_narrower_than_what_was_trained() -> None:
    """Repeat: two more channels are F applied to channels 4 to 7. Slice: the first head and channels."""
    gene = gene_of()
    t = gene.tensors()
    feeds = gene.method.feeds(gene.shape, shape_of(5))  # type: ignore[attr-defined]
    e = {}
    for name, value in t.items():
        if name.startswith("F."):
            more = 4 if name.endswith("ffn") else 2
            e[name.removeprefix("F.")] = torch.cat([torch.eye(value.shape[1]), value, value[:more] @ value])
    expected = plain(gene, e, feeds, list(range(8)))
    extra = t["pos_embed"][..., 4:] @ t["F.embed"][:2].T
    expected["pos_embed"] = torch.cat([t["pos_embed"], extra], -1)
    with pytest.warns(UserWarning, match="width 10 is outside 4 to 8, where nothing was trained"):
        wide = gene.expand(shape_of(5), outside="repeat")
    assert_same(wide.state_dict(), expected)
    small = gene.weights(shape_of(1, depth=8), outside="slice")
    whole = gene.weights(shape_of(2, depth=8))
    assert torch.equal(small["blocks.3.attn.qkv.weight"], whole["blocks.3.attn.qkv.weight"][[0, 1, 4, 5, 8, 9]][:, :2])
    assert torch.equal(small["blocks.3.mlp.fc2.weight"], whole["blocks.3.mlp.fc2.weight"][:2, :4])
    assert torch.equal(small["pos_embed"], t["pos_embed"][..., :2])


def test_at_its_own_size_the_narrow_vit_comes_out() -> None:
    """With a coefficient of 1 for one source of each layer, 0 for the other, and a row for every layer."""
    gene = pico_gene("lets", {**PICO, "share": 1}, **{**AUX, "depth": 4})
    with torch.no_grad():
        for name, value in gene.tensors().items():
            if name.startswith("G."):
                value.copy_(torch.eye(2)[int(name[5]) % 2])
    weights = gene.weights(shape_of(2, depth=4))
    for i in range(4):
        for name in [name for names in MODULE_PARAMS.values() for name in names]:
            assert torch.equal(weights[f"blocks.{i}.{name}"], gene.tensors()[f"layer{i}.{name}"])
    assert torch.equal(weights["head.weight"], gene.tensors()["head.weight"])


def test_numbers_by_hand() -> None:
    """One head becomes two: q = 2, F.embed = (3), F.q = (5), coefficients 0.5 and 0.25 of equal sources."""
    gene = pico_gene("lets", {"width": 1, "sources": 2}, embed_dim=2, num_heads=2, depth=2, mlp_ratio=1.0)
    with torch.no_grad():
        for name, value in gene.tensors().items():
            value.fill_(2 if name.startswith("layer") else 3)
            if name.endswith((".q", ".k", ".v", ".ffn")):
                value.fill_(5)
            if name.startswith("G."):
                value.copy_(torch.tensor([0.5, 0.25]))
    weights = gene.weights()
    assert weights["blocks.1.attn.qkv.weight"].tolist() == [[1.5, 4.5], [7.5, 22.5]] * 3
    assert weights["blocks.1.attn.proj.weight"].tolist() == [[1.5, 7.5], [4.5, 22.5]]
    assert weights["blocks.0.mlp.fc1.bias"].tolist() == [1.5, 7.5]
    assert weights["blocks.0.norm2.weight"].tolist() == [1.5, 4.5]
    assert weights["head.weight"].tolist() == [[3.0, 9.0]] * 3


def test_rank_makes_every_matrix_a_product_of_two() -> None:
    gene, whole = gene_of(rank=3), gene_of()
    t = gene.tensors()
    assert t["F.layer2.ffn.A"].shape == (8, 3)
    assert t["F.embed.B"].shape == (3, 4)
    with torch.no_grad():
        for name, value in whole.tensors().items():
            value.copy_(t[f"{name}.A"] @ t[f"{name}.B"] if name.startswith("F.") else t[name])
    for options in ({}, {"selection": "top-l1"}):
        assert_same(gene.weights(shape_of(3), **options), whole.weights(shape_of(3), **options))


# -- depths --------------------------------------------------------------------------------------------------


def published(**changes: Any) -> tuple[Any, ViTShape]:
    """The method and the shape of the authors' command: 384 x 8 for 768 x 16."""
    return method("lets"), ViTShape(embed_dim=768, num_heads=12, depth=16, **changes)


@pytest.mark.parametrize(
    ("depth", "options", "pairs", "rows"),
    [
        (16, {}, "0000111122223333", "0011223344556677"),
        (12, {}, "001111222233", "012233445567"),
        (12, {"layer": "0,1,4,5,6,7,8,9,10,11,12,13", "coef": [0, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 14]},
         "001111222233", "012233445567"),
        (8, {}, "00112233", "01234567"),
        (4, {}, "0123", "0246"),
        (10, {"order": "front-last-mid"}, "0001122333", "0012345677"),
        (10, {"order": "front-mid-last"}, "0000112233", "0011234567"),
        (18, {}, "000011111222223333", "001122333444556677"),
    ],
    ids=str,
)  # fmt: skip
def test_which_sources_and_rows_feed_a_layer(depth: int, options: dict[str, Any], pairs: str, rows: str) -> None:
    """The authors' table for 16 layers, and their two lists for 12, which the default gives too."""
    kind, auxiliary = published()
    feeds = kind.feeds(auxiliary, auxiliary.replace(depth=depth), **options)
    assert ("".join(str(pair) for pair, _ in feeds), "".join(str(row) for _, row in feeds)) == (pairs, rows)


def test_two_layers_share_a_row_and_no_memory_once_expanded() -> None:
    gene = gene_of()
    weights = gene.weights()
    model = gene.expand().state_dict()
    for r in range(4):
        for name in [name for names in MODULE_PARAMS.values() for name in names]:
            first, second = f"blocks.{2 * r}.{name}", f"blocks.{2 * r + 1}.{name}"
            assert weights[first] is weights[second]
            assert torch.equal(model[first], model[second])
    assert len({value.untyped_storage().data_ptr() for value in model.values()}) == len(model)
    assert gene.expand(shape_of(3, depth=2)).learngene["layers"] == [
        "layer0 and layer1 by row 0, 4 wide and 2 new",
        "layer2 and layer3 by row 2, 4 wide and 2 new",
    ]


# -- the gene ------------------------------------------------------------------------------------------------


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    kind, auxiliary = published()
    sizes = {name: math.prod(size) for name, size in kind.gene_tensors(auxiliary).items()}
    parts = {part: sum(size for name, size in sizes.items() if name.startswith(part)) for part in ("F.", "G.")}
    assert parts == {"F.": 22_708_224, "G.": 256}
    assert sum(sizes.values()) == 37_735_784
    assert sum(sizes.values()) - sum(parts.values()) == 15_027_304


@pytest.mark.parametrize(
    ("heads", "settings", "width"), [(4, {}, 4), (3, {}, 2), (2, {}, 2), (5, {"width": 6}, 6), (12, {}, 12)], ids=str
)
def test_the_narrow_vit_has_half_of_the_heads_unless_its_width_is_given(
    heads: int, settings: dict[str, Any], width: int
) -> None:
    """Heads of 2; of three heads one."""
    gene = pico_gene("lets", {"sources": 4, **settings}, **{**AUX, "embed_dim": 2 * heads, "num_heads": heads})
    t = gene.tensors()
    assert (t["layer0.attn.proj.weight"].shape, t["F.embed"].shape) == ((width, width), (2 * heads - width, width))


def test_an_auxiliary_model_of_one_head_is_refused() -> None:
    with pytest.raises(
        LearngeneError, match="lets: the auxiliary model must have 2 heads or more, of which the narrow"
    ):
        pico_gene("lets", {"sources": 4}, embed_dim=8, num_heads=1, depth=4)


def test_a_fresh_gene_starts_as_the_narrow_vit_with_nearly_silent_channels() -> None:
    gene = Learngene(method("lets", {"width": 48, "sources": 4}), pico_shape(embed_dim=96, num_heads=12, depth=8))
    t = gene.tensors()
    assert torch.allclose(t["F.layer1.ffn"].sum(1), torch.ones(96))
    assert t["F.embed"].min() >= 0
    for name, value in t.items():
        if name.startswith("G."):
            assert value.sum().item() == pytest.approx(1)
            assert value[0] > 0.97 > 0.03 > value[1]
    query = gene.weights()["blocks.0.attn.qkv.weight"]
    assert query[:48, :48].std().item() == pytest.approx(0.02, rel=0.1)
    assert query[48:96, 48:].std().item() < 0.001
    low = Learngene(method("lets", {"width": 48, "sources": 4, "rank": 5}), gene.shape)
    assert torch.allclose((low.tensors()["F.embed.A"] @ low.tensors()["F.embed.B"]).sum(1), torch.ones(48))


def test_weight_decay_is_on_f_and_not_on_coefficients() -> None:
    gene = gene_of()
    decayed = {id(p) for group in make_optimizer(gene, Train()).param_groups if group["weight_decay"]
               for p in group["params"]}  # fmt: skip
    names = {name for name, value in gene.tensors().items() if id(value) in decayed}
    matrices = {name for name, value in gene.tensors().items() if value.ndim > 1 and name != "pos_embed"}
    assert names == matrices
    assert "F.layer0.ffn" in names


def test_plan_goes_over_depth_and_width_and_the_file_keeps_the_gene(tmp_path: Path) -> None:
    gene = gene_of()
    gene.save(tmp_path / "g.safetensors")
    found = plan(tmp_path / "g.safetensors", Budget(max_params=2000))
    assert {candidate.shape.embed_dim for candidate in found} == {4, 6, 8}
    assert {c.shape.embed_dim for c in plan(gene, Budget(max_params=9000), outside="slice")} == {2, 4, 6, 8}
    shape = found[0].shape
    loaded = learngene.load(tmp_path / "g.safetensors").weights(shape)
    assert all(torch.equal(value, loaded[name]) for name, value in gene.weights(shape).items())


def test_it_is_condensed_at_several_sizes_and_expanded_on_the_command_line(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    """Distilled by the preset of its own, and expanded between its widths and below them."""
    sizes = [{"embed_dim": 4, "depth": 3}, {"embed_dim": 6, "depth": 4}, {"embed_dim": 8, "depth": 8}]
    fields = condense_fields(ancestry_folder, images, tmp_path / "run", method="lets", settings=PICO, shapes=sizes)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**fields, "shape": pico_shape(**AUX).to_dict()}))
    assert cli("condense", recipe).code == 0
    gene = learngene.load(tmp_path / "run.safetensors")
    assert gene.metadata["training"]["recipe"]["distill"]["preset"] == "lets-official"
    assert "selection" in cli("methods").out.split("lets ")[1].split("tal ")[0]
    lists = ("--set", "layer=0,1,4", "--set", "coef=0,2,4")
    done = cli(
        "expand", tmp_path / "run.safetensors", "--embed-dim", 6, "--depth", 3, *lists, "--out", tmp_path / "des"
    )
    assert done.code == 0, done.err
    expected = gene.expand(shape_of(3, depth=3), layer=[0, 1, 4], coef=[0, 2, 4]).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in load_file(tmp_path / "des" / "model.safetensors").items()
    )
    done = cli("expand", tmp_path / "run.safetensors", "--embed-dim", 2, "--out", tmp_path / "small")
    assert (done.code, "outside=slice takes its first channels" in done.err) == (2, True)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"width": 8},
            "width 8 must be below the auxiliary model's 8 and a multiple of its heads' 2; set another",
        ),
        ({"width": 3}, "width 3 must be below the auxiliary model's 8 and a multiple of its heads' 2"),
        ({"sources": 3}, "lets: 3 sources do not come in pairs; use 4"),
        ({"sources": 18}, "8 layers do not use all 9 pairs of sources; use 16 sources or fewer"),
        ({"width": -2}, "lets: width must be an integer of at least 0, not -2"),
        ({"rank": 5}, "lets: rank 5 is beyond width 4; use 4 or less"),
        ({"share": 0}, "lets: share must be a positive integer, not 0"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        gene_of(**settings)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"embed_dim": 2, "num_heads": 1}, {}, "width 2 is below the narrow ViT's 4; outside=slice takes its first"),
        ({"embed_dim": 10, "num_heads": 5}, {}, "width 10 is beyond the auxiliary model's 8; outside=repeat applies"),
        ({"embed_dim": 10, "num_heads": 5}, {"outside": "slice"}, "width 10 is beyond the auxiliary model's 8"),
        ({"embed_dim": 6, "num_heads": 2}, {}, "embed_dim / num_heads must be 2, not 3; use 3 heads"),
        ({}, {"selection": "top-l3"}, "unknown selection 'top-l3'; did you mean 'top-l"),
        ({}, {"outside": "slices"}, "unknown outside 'slices'; did you mean 'slice'"),
        ({}, {"order": "middle-last"}, "unknown order 'middle-last'"),
        ({}, {"order": "0,1"}, "order 0,1 must name each of the rows 0 to 3 once"),
        ({"depth": 2}, {"layer": [0, 1]}, "give layer and coef, or order"),
        ({"depth": 2}, {"layer": "0,9", "coef": "0,2"}, "layer 0,9 must list 2 layers of .* each of 0 to 7"),
        ({"depth": 2}, {"layer": 0, "coef": "0,2"}, "layer 0 must list 2 layers of the auxiliary model"),
        ({"depth": 2}, {"layer": "0,2", "coef": "0,3"}, "coef 3 is no layer with coefficients .* those are 0, 2"),
        ({"mlp_ratio": 4.0}, {}, "this gene has mlp_ratio 2.0, not 4.0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_made_is_refused(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        gene_of().expand(shape_of().replace(**changes), **options)
