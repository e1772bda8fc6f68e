"""Weight selection: the published rule entry by entry and over whole models, and the rule that respects heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from learngene import Budget, plan
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.cutting import spaced
from learngene.system.errors import LearngeneError, ShapeError
from pico import pico_gene

WIDTHS = (192, 384, 576, 768, 1024, 1152, 1536, 2304, 3072)


def linspaced(larger: int, smaller: int) -> list[int]:
    """The authors' line for a dimension that does not divide evenly."""
    return torch.round(torch.linspace(0, larger - 1, smaller)).long().tolist()


def published(teacher: Mapping[str, Tensor], student: Mapping[str, Sequence[int]], head: bool) -> dict[str, Tensor]:
    """The published selection, one dimension after the other; the same names are the first layers."""
    out = {}
    for name, size in student.items():
        if "head" in name and not head:
            continue
        value = teacher[name]
        for dim, smaller in enumerate(size):
            larger = value.shape[dim]
            even = larger % smaller == 0
            index = torch.arange(smaller) * (larger // smaller) if even else torch.tensor(linspaced(larger, smaller))
            value = value.index_select(dim, index)
        out[name] = value
    return out


def counted(gene: Learngene) -> Learngene:
    """Every entry of a layer tensor is its own place, so that a selection shows what it took."""
    with torch.no_grad():
        for value in gene.tensors().values():
            value.copy_(torch.arange(value.numel()).view_as(value))
    return gene


# -- one dimension -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("larger", "smaller", "expected"),
    [
        (11, 4, [0, 3, 7, 10]),
        (10, 4, [0, 3, 6, 9]),
        (6, 4, [0, 2, 3, 5]),
        (12, 4, [0, 3, 6, 9]),  # divides: starts at 0, the last entries are not used
        (8, 4, [0, 2, 4, 6]),
        (5, 5, [0, 1, 2, 3, 4]),
        (7, 2, [0, 6]),
        (7, 1, [0]),
        (6, 5, [0, 1, 2, 4, 5]),  # 2.5 is rounded to the even 2
        (8, 5, [0, 2, 4, 5, 7]),  # 3.5 to the even 4
    ],
)
def test_one_dimension_by_hand(larger: int, smaller: int, expected: list[int]) -> None:
    assert spaced(larger, smaller) == expected


def test_one_dimension_is_the_published_line() -> None:
    """Where an entry falls exactly between two, float32 rounds either way; then any neighbour is right.

    That takes an odd number of entries, and the widths of Vision Transformers are even.
    """
    ties = 0
    for larger in (*range(2, 120), *WIDTHS):
        for smaller in range(2, larger) if larger < 120 else [w for w in WIDTHS if w < larger]:
            found, theirs = spaced(larger, smaller), linspaced(larger, smaller)
            if larger % smaller == 0:
                assert found == list(range(0, larger, larger // smaller)), (larger, smaller)
            elif found != theirs:
                ties += 1
                assert smaller % 2 == 1, (larger, smaller)
                for k, (mine, other) in enumerate(zip(found, theirs, strict=True)):
                    tie = 2 * k * (larger - 1) % (2 * (smaller - 1)) == smaller - 1
                    assert mine == other or (tie and abs(mine - other) == 1 and mine % 2 == 0), (larger, smaller, k)
    assert ties < 200


# -- whole models ------------------------------------------------------------------------------------------

SMALLER: dict[str, dict[str, Any]] = {
    "half as wide": {"embed_dim": 12, "num_heads": 3},
    "a third": {"embed_dim": 8, "num_heads": 2},
    "drifting": {"embed_dim": 16, "num_heads": 4, "depth": 2},  # 72 rows of q, k and v to 48: not a multiple
    "drifting far": {"embed_dim": 22, "num_heads": 2, "depth": 3},
    "thinner mlp": {"mlp_ratio": 1.5},
    "shallower": {"depth": 1},
    "other heads": {"num_heads": 2},
    "the same": {},
    "official ending": {"embed_dim": 10, "num_heads": 2, "ending": "official"},
}


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("changes", SMALLER.values(), ids=SMALLER)
@pytest.mark.parametrize("head", [True, False])
def test_a_whole_model_is_the_published_selection(changes: dict[str, Any], class_token: bool, head: bool) -> None:
    if class_token and "ending" in changes:
        changes = {"embed_dim": 10, "num_heads": 2}
    gene = pico_gene("weight-selection", {"head": head}, embed_dim=24, num_heads=6, class_token=class_token)
    teacher = gene.weights()
    if "ending" in changes:
        teacher = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
                   for name, value in teacher.items()}  # fmt: skip
    shape = gene.shape.replace(**changes)
    expected = published(teacher, shape.all_params(), head)
    model = gene.expand(shape)
    state = model.state_dict()
    assert model.learngene["fresh"] == ([] if head else ["head.weight", "head.bias"])
    assert expected.keys() == state.keys() - set(model.learngene["fresh"])
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_fused_rows_drift_across_q_k_and_v() -> None:
    """24 to 22 wide takes 66 of 72 rows evenly, and so leaves out other entries of q than of k and v."""
    gene = counted(pico_gene("weight-selection", embed_dim=24, num_heads=6))
    rows = gene.expand(gene.shape.replace(embed_dim=22, num_heads=2)).state_dict()["blocks.0.attn.qkv.bias"].long()
    assert rows.tolist() == linspaced(72, 66)
    left_out = set(range(72)) - set(rows.tolist())
    assert [sorted(row % 24 for row in left_out if row // 24 == part) for part in range(3)] == [
        [6, 18],
        [6, 17],
        [5, 17],
    ]


# -- the rule that respects heads --------------------------------------------------------------------------


def test_the_aligned_rule_by_hand() -> None:
    """12 wide, 3 heads of 4, to 4 wide, 2 heads of 2: heads 0 and 2, entries 0 and 2 within each."""
    gene = counted(pico_gene("weight-selection", embed_dim=12, num_heads=3))
    state = gene.expand(gene.shape.replace(embed_dim=4, num_heads=2), rule="aligned").state_dict()
    inside, width, hidden = [0, 2, 8, 10], [0, 3, 6, 9], list(range(0, 24, 3))
    rows = [*inside, *(12 + k for k in inside), *(24 + k for k in inside)]

    def places(rows: list[int], columns: list[int], row_length: int) -> list[list[int]]:
        return [[row * row_length + column for column in columns] for row in rows]

    assert state["blocks.1.attn.qkv.bias"].tolist() == rows
    assert state["blocks.1.attn.qkv.weight"].tolist() == places(rows, width, 12)
    assert state["blocks.1.attn.proj.weight"].tolist() == places(width, inside, 12)
    assert state["blocks.1.attn.proj.bias"].tolist() == width
    assert state["blocks.1.mlp.fc1.weight"].tolist() == places(hidden, width, 12)
    assert state["blocks.1.mlp.fc2.weight"].tolist() == places(width, hidden, 24)
    assert state["norm.weight"].tolist() == width


# -- head, plan, refusals ----------------------------------------------------------------------------------


def test_plan_offers_every_depth_and_whole_heads() -> None:
    found = plan(pico_gene("weight-selection", embed_dim=24, num_heads=3, depth=2), Budget())
    sizes = [(c.shape.depth, c.shape.embed_dim, c.shape.num_heads) for c in found]
    assert sorted(sizes) == [(d, 8 * h, h) for d in (1, 2) for h in (1, 2, 3)]
    assert [c.params for c in found] == sorted((c.params for c in found), reverse=True)
    assert found[-1].layers == ["layer0, 8 of 24 wide"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"depth": 5}, {}, "depth 5 is beyond the ancestry's 4; it can only be cut, not grown"),
        ({"embed_dim": 32}, {}, "embed_dim 32 is beyond the ancestry's 16"),
        ({"mlp_ratio": 2.5}, {}, "hidden_dim 40 is beyond the ancestry's 32"),
        ({"embed_dim": 8, "num_heads": 1, "mlp_ratio": 5.0}, {}, "hidden_dim 40 is beyond"),
        ({"patch_size": 2}, {}, "has patch_size 4, not 2"),
        ({"in_chans": 1}, {}, "has in_chans 3, not 1"),
        ({"class_token": True}, {}, "has class_token False, not True"),
        ({"num_heads": 4}, {"rule": "aligned"}, "4 heads of 4 do not fit into the ancestry's 2 heads of 8"),
        ({"num_heads": 1}, {"rule": "aligned"}, "1 heads of 16 do not fit into the ancestry's 2 heads of 8"),
        ({}, {"rule": "alligned"}, "unknown rule 'alligned'; did you mean 'aligned'"),
        ({}, {"rules": "aligned"}, "unknown key 'rules'; did you mean 'rule'"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    gene = pico_gene("weight-selection")
    with pytest.raises(LearngeneError, match=message):
        gene.expand(gene.shape.replace(**changes), **options)


def test_a_head_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(ShapeError, match="head must be true or false, not 1"):
        method("weight-selection", {"head": 1})
