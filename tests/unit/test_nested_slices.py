"""Nested slices: smaller models are the front of the gene's one ViT."""

from typing import Any

import pytest
import torch

from learngene import Budget, plan
from learngene.methods import method
from learngene.system.errors import LearngeneError, ShapeError
from pico import batch, pico_gene


def counted() -> Any:
    """A gene 6 wide, of 3 heads, each of whose tensors counts its entries from 0 on."""
    gene = pico_gene("nested-slices", embed_dim=6, num_heads=3)
    with torch.no_grad():
        for value in gene.tensors().values():
            value.copy_(torch.arange(value.numel()).reshape(value.shape))
    return gene


def test_slices_by_hand() -> None:
    """6 wide with 3 heads to 4 wide with 2: rows 0 to 3 of each of q, k and v, which lie 6 apart; hidden 12 to 8."""
    gene = counted()
    model = gene.expand(gene.shape.replace(embed_dim=4, num_heads=2, depth=2))
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    rows = [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]
    assert state["blocks.1.attn.qkv.bias"] == rows
    assert state["blocks.1.attn.qkv.weight"] == [[6 * row + column for column in range(4)] for row in rows]
    assert state["blocks.1.attn.proj.weight"] == [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15], [18, 19, 20, 21]]
    assert state["blocks.0.mlp.fc1.weight"] == [[6 * row + column for column in range(4)] for row in range(8)]
    assert state["blocks.0.mlp.fc2.weight"] == [[12 * row + column for column in range(8)] for row in range(4)]
    assert state["head.weight"] == [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15]]
    assert state["head.bias"] == [0, 1, 2]
    assert state["norm.weight"] == state["blocks.0.norm2.bias"] == state["patch_embed.proj.bias"] == [0, 1, 2, 3]
    assert state["pos_embed"] == [[[6 * token + channel for channel in range(4)] for token in range(4)]]
    assert model.learngene["layers"] == [f"layer{i}, first 4 of 6 channels" for i in (0, 1)]


def test_layers_are_the_first_or_evenly_spaced() -> None:
    given = {rule: pico_gene("nested-slices", {"kept_layers": rule}, depth=7) for rule in ("first", "spaced")}
    layers = {rule: gene.expand(3).learngene["layers"] for rule, gene in given.items()}
    assert layers == {"first": ["layer0", "layer1", "layer2"], "spaced": ["layer0", "layer3", "layer6"]}


def test_what_a_slice_leaves_out_has_no_gradient() -> None:
    gene = pico_gene("nested-slices")
    gene(batch(gene.shape), gene.shape.replace(embed_dim=8, num_heads=1, depth=3)).square().sum().backward()
    gradient = gene.tensors()["layer2.attn.qkv.weight"].grad
    assert gradient is not None
    used = gradient.unflatten(0, (3, 2, 8)).any(2).any(2)
    assert used.tolist() == [[True, False]] * 3  # by q, k and v and by head
    assert not gradient[:, 8:].any()
    assert gene.tensors()["layer3.attn.qkv.weight"].grad is None


def test_plan_offers_depths_by_widths() -> None:
    found = plan(pico_gene("nested-slices", embed_dim=24, num_heads=3, depth=2), Budget())
    assert sorted((one.shape.depth, one.shape.embed_dim, one.shape.num_heads) for one in found) == [
        (depth, 8 * heads, heads) for depth in (1, 2) for heads in (1, 2, 3)
    ]


def test_expanding_says_how_many_heads_fit(cli: Any, tmp_path: Any) -> None:
    pico_gene("nested-slices").save(tmp_path / "g.safetensors")
    made = cli("expand", tmp_path / "g.safetensors", "--embed-dim", 8, "--depth", 2, "--out", tmp_path / "des")
    assert "2 layers x 8 (1 heads)" in made.out
    refused = cli("expand", tmp_path / "g.safetensors", "--embed-dim", 12, "--out", tmp_path / "other")
    assert (refused.code, "heads are 8 wide, and 12 is no multiple of that; give" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "nested-slices: heads are kept whole, so embed_dim / num_heads must be 8, not 4"),
        ({"depth": 5}, "depth 5 is beyond the gene's 4; it can only be cut, not grown"),
        ({"embed_dim": 24, "num_heads": 3}, "embed_dim 24 is beyond the gene's 16"),
    ],
    ids=str,
)
def test_what_cannot_be_sliced_is_refused(changes: dict[str, int], message: str) -> None:
    gene = pico_gene("nested-slices")
    with pytest.raises(LearngeneError, match=message):
        gene.expand(gene.shape.replace(**changes))


def test_another_rule_for_layers_is_refused() -> None:
    with pytest.raises(ShapeError, match="unknown kept_layers 'frist'; did you mean 'first'"):
        method("nested-slices", {"kept_layers": "frist"})
