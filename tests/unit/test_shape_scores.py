"""Genes that were trained at several shapes: what was measured there ranks shapes, also those between."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learngene import Budget, load, plan
from learngene.genes.gene import Learngene
from learngene.system.errors import GeneFileError
from pico import CLI, pico_gene


def entry(width: int, depth: int, top1: float, name: str = "top1") -> dict[str, Any]:
    return {"embed_dim": width, "num_heads": width // 8, "depth": depth, name: top1}


def measured(*entries: dict[str, Any], width: int = 32, depth: int = 4) -> Learngene:
    gene = pico_gene("nested-slices", embed_dim=width, num_heads=width // 8, depth=depth)
    gene.metadata = {"shapes": list(entries)}
    return gene


def scores(gene: Learngene, **task: Any) -> dict[tuple[int, int], tuple[float | None, str | None]]:
    """By width and depth, best first."""
    return {(one.shape.embed_dim, one.shape.depth): (one.top1, one.known) for one in plan(gene, Budget(), **task)}


def test_depths_between_measured_ones_by_hand() -> None:
    gene = measured(entry(8, 1, 50.0), entry(8, 4, 80.0), entry(8, 2, 90.0), width=8, depth=5)
    assert scores(gene) == {
        (8, 2): (90.0, "measured"),
        (8, 3): (85.0, "between measured shapes"),
        (8, 4): (80.0, "measured"),
        (8, 1): (50.0, "measured"),
        (8, 5): (None, None),
    }
    assert list(scores(gene)) == [(8, 2), (8, 3), (8, 4), (8, 1), (8, 5)]


def test_widths_between_measured_ones_by_hand() -> None:
    """16 lies halfway from 8 to 32 in doublings; 24 is 1.585 doublings from 8, so 0.7925 of the way."""
    gene = measured(entry(8, 4, 60.0), entry(32, 4, 80.0))
    found = scores(gene)
    assert found[16, 4] == (pytest.approx(70.0), "between measured shapes")
    assert found[24, 4] == (pytest.approx(75.85, abs=0.01), "between measured shapes")
    assert list(found)[:4] == [(32, 4), (24, 4), (16, 4), (8, 4)]
    assert {known for _, known in list(found.values())[4:]} == {None}
    assert list(found)[4:7] == [(32, 3), (32, 2), (24, 3)]  # by size, as without measured shapes


def test_triangles_of_widths_and_depths_by_hand() -> None:
    """In the triangle of (8, 1), (32, 1) and (8, 3), (16, 2) halves its long side; what it leaves open goes by macs."""
    gene = measured(entry(8, 1, 40.0), entry(32, 1, 60.0), entry(8, 3, 80.0), depth=3)
    found = scores(gene)
    assert found[16, 1] == (pytest.approx(50.0), "between measured shapes")
    assert found[16, 2] == (pytest.approx(70.0), "between measured shapes")
    assert found[8, 2] == (pytest.approx(60.0), "between measured shapes")
    assert found[32, 3][0] == pytest.approx(60.0)  # more multiply-adds than all: that of the most


def test_on_one_line_multiply_adds_decide() -> None:
    gene = measured(entry(8, 1, 40.0), entry(32, 3, 80.0), depth=3)
    found = scores(gene)
    values = [found[8, 2][0], found[16, 2][0], found[32, 2][0]]
    assert None not in values
    assert 40 < values[0] < values[1] < values[2] < 80  # type: ignore[operator]


@pytest.mark.parametrize("task", [{"num_classes": 5}, {"img_size": 16}], ids=str)
def test_for_another_task_size_decides_as_ever(task: dict[str, Any]) -> None:
    gene = measured(entry(8, 1, 90.0), entry(32, 4, 50.0))
    found = scores(gene, **task)
    assert set(found.values()) == {(None, None)}
    assert next(iter(found)) == (32, 4)


def test_agreement_with_a_teacher_counts_for_any_classes() -> None:
    gene = measured(entry(8, 1, 90.0, "neighbours"), entry(32, 4, 50.0, "neighbours"))
    first, *_ = plan(gene, Budget(), num_classes=7)
    assert (first.shape.embed_dim, first.neighbours, first.known) == (8, 90.0, "measured")


def test_commands_say_what_was_measured(cli: CLI, tmp_path: Path) -> None:
    gene = measured(entry(16, 2, 70.25), entry(32, 4, 97.5))
    gene.save(tmp_path / "g.safetensors")
    assert load(tmp_path / "g.safetensors").metadata["shapes"] == gene.metadata["shapes"]
    told = cli("info", tmp_path / "g.safetensors").out
    ends = "top-1 70.25 % at 2 layers x 16 (2 heads) to top-1 97.50 % at 4 layers x 32 (4 heads)"
    assert f"shapes           2 measured, {ends}, see `learngene plan`" in told
    lines = cli("plan", tmp_path / "g.safetensors").out.splitlines()
    assert "depth   4  width   32" in lines[0]
    assert lines[0].endswith("  top-1  97.50 %  measured")
    assert any(line.endswith("%  between measured shapes") for line in lines)
    assert "macs  narrower and shallower than all that this gene was trained at; the nearest, 2 layers" in lines[-2]


SMALLEST = "the nearest, 2 layers x 16 (2 heads), has top-1 70.25 %, 27.25 points below its best"
LARGEST = "the nearest, 4 layers x 32 (4 heads), has top-1 97.50 %"


@pytest.mark.parametrize(
    ("width", "depth", "sides", "near"),
    [
        (8, 2, "narrower", SMALLEST),
        (8, 1, "narrower and shallower", SMALLEST),
        (40, 4, "wider", LARGEST),
        (24, 5, "deeper", LARGEST),
        (
            8,
            5,
            "narrower and deeper",
            "the nearest, 4 layers x 16 (2 heads), has top-1 71.25 %, 26.25 points below its best",
        ),
    ],
)
def test_what_lies_outside_of_all_that_was_trained_is_told(width: int, depth: int, sides: str, near: str) -> None:
    """(24, 5) is 0.415 and 0.32 doublings from (32, 4), and 0.585 and 0.32 from (16, 4)."""
    gene = measured(entry(16, 2, 70.25), entry(32, 4, 97.5), entry(16, 4, 71.25), width=40, depth=5)
    shape = gene.shape.replace(embed_dim=width, num_heads=width // 8, depth=depth)
    told = f"{sides} than all that this gene was trained at; {near}"
    with pytest.warns(
        UserWarning, match=re.escape(f"nested-slices: a model of {depth} layers x {width} is {told}") + "$"
    ):
        gene.expand(shape)
    found = {(one.shape.embed_dim, one.shape.depth): one.outside for one in plan(gene, num_classes=7)}
    assert (found[width, depth], found[24, 3], found[16, 2]) == (told, "", "")
    gene.expand(gene.shape.replace(embed_dim=24, num_heads=3, depth=3))


@pytest.mark.parametrize("shapes", [{}, [{"depth": 1}], [entry(8, 1, 200.0)],
                                    [entry(8, 1, 5.0), entry(8, 2, 5.0, "neighbours")]], ids=str)  # fmt: skip
def test_a_damaged_record_is_refused(shapes: Any, tmp_path: Path) -> None:
    gene = measured()
    gene.metadata = {"shapes": shapes}
    with pytest.raises(GeneFileError, match="'shapes' must be a list of sizes, each with 'top1' or each with"):
        gene.save(tmp_path / "g.safetensors")


@pytest.mark.parametrize(
    ("method", "size", "told"),
    [
        ("nested-slices", {"embed_dim": 8, "num_heads": 1}, "a model of 4 layers x 8 is narrower than the auxiliary"),
        ("nested-slices", {"depth": 2}, "a model of 2 layers x 32 is shallower than the auxiliary model, the only one"),
        ("wave", {"depth": 5}, "deeper than the auxiliary model, the only one that was trained; fine-tune it, or"),
        ("wave", {"depth": 2, "embed_dim": 40, "num_heads": 5}, "a model of 2 layers x 40 is wider and shallower than"),
        *(("tleg", {"depth": depth}, "") for depth in (2, 9)),
        ("lets", {"embed_dim": 24, "num_heads": 3}, ""),
    ],
)
def test_what_was_trained_at_one_size_serves_others_by_method_or_is_made_with_a_caution(
    method: str, size: dict[str, int], told: str
) -> None:
    own = {"sources": 2, "rank": 2} if method == "lets" else {}
    gene = pico_gene(method, own, embed_dim=32, num_heads=4, depth=4)
    gene.expand(other := gene.shape.replace(**size))
    gene.metadata = {"training": {"epochs": 1}}
    gene.expand(gene.shape)
    with pytest.warns(UserWarning, match=told) if told else contextlib.nullcontext():
        gene.expand(other)
    first = plan(gene)[0].shape
    assert (first.depth, first.embed_dim) == (4, 32)


def test_a_picture_shows_scores_over_width_and_depth(cli: CLI, tmp_path: Path) -> None:
    gene, path, out = (
        measured(entry(16, 2, 60.0), entry(8, 1, 40.0), entry(16, 4, 80.0)),
        tmp_path / "g",
        tmp_path / "s",
    )
    gene.save(path.with_suffix(".safetensors"))
    done = cli("picture", path.with_suffix(".safetensors"), "--out", out.with_suffix(".png"))
    assert (done.code, done.out) == (0, f"{out.with_suffix('.png')}\n")
    with Image.open(out.with_suffix(".png")) as image:
        colours = {rgb for _, rgb in image.convert("RGB").getcolors(1 << 20) or ()}
    assert {(68, 1, 84), (253, 231, 37)} <= colours  # both ends of viridis: 40 and 80 %
