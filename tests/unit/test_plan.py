"""Planning: limits combine, the deepest shape comes first, latency is measured once per machine, no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import learngene
from learngene import Budget, ViTShape, plan
from learngene.genes.gene_file import read_header
from learngene.genes.plan import measured_latency, misfit
from learngene.methods.base import DEEPEST
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from pico import pico_gene, pico_shape

GENE = pico_gene("sws", {"stages": (2, 1, 1)})


@pytest.fixture(scope="module")
def gene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "gene.safetensors"
    GENE.save(path)
    return path


def depths(budget: Budget | None = None, **options: Any) -> list[int]:
    return [candidate.shape.depth for candidate in plan(GENE, budget, **options)]


def at(depth: int) -> ViTShape:
    return pico_shape(depth=depth)


def test_without_a_budget_every_depth_the_method_can_make_is_listed_deepest_first() -> None:
    assert depths() == list(range(DEEPEST, 2, -1))
    assert [c.shape.depth for c in plan(pico_gene("tleg", {"first_layer": 3}))] == list(range(DEEPEST, 2, -1))
    assert [c.shape.depth for c in plan(pico_gene())][-1] == 1


def test_a_gene_its_header_and_its_file_give_the_same_plan(gene_file: Path) -> None:
    budget = Budget(max_params=at(9).params())
    expected = plan(GENE, budget)
    assert plan(gene_file, budget) == plan(str(gene_file), budget) == plan(read_header(gene_file), budget) == expected


def test_a_candidate_says_its_size_and_what_feeds_it() -> None:
    (first, *_, last) = plan(GENE, Budget(max_params=at(5).params()))
    assert (first.shape, first.params, first.macs, first.latency) == (at(5), at(5).params(), at(5).macs(), None)
    assert first.layers == ["stage0", "stage0", "stage1", "stage1", "stage2"]
    assert first.beyond_auxiliary
    assert not last.beyond_auxiliary


@pytest.mark.parametrize("limit", ["max_params", "max_macs"])
@pytest.mark.parametrize(("slack", "deepest"), [(0, 6), (1, 6), (-1, 5)])
def test_a_limit_is_met_exactly(limit: str, slack: int, deepest: int) -> None:
    size = {"max_params": at(6).params(), "max_macs": at(6).macs()}[limit]
    assert depths(Budget(**{limit: size + slack})) == list(range(deepest, 2, -1))


def test_a_limit_on_stored_size_counts_four_bytes_a_parameter() -> None:
    megabytes = 4 * at(6).params() / 1e6
    assert depths(Budget(max_size=megabytes)) == [6, 5, 4, 3]
    assert depths(Budget(max_size=0.999 * megabytes)) == [5, 4, 3]


def milliseconds(shape: ViTShape, batch_size: int, device: str) -> float:
    """A machine that needs a millisecond a layer and image."""
    assert device == "cpu"
    return shape.depth * batch_size


@settings(max_examples=30)
@given(
    params=st.none() | st.integers(1, 60_000),
    macs=st.none() | st.integers(1, 200_000),
    time=st.none() | st.floats(0.5, 60),
)
def test_limits_combine(params: int | None, macs: int | None, time: float | None) -> None:
    found = depths(Budget(params, macs, time), timer=milliseconds)
    expected = [
        d
        for d in range(DEEPEST, 2, -1)
        if (params is None or at(d).params() <= params)
        and (macs is None or at(d).macs() <= macs)
        and (time is None or d <= time)
    ]
    assert found == expected


def test_latency_is_measured_at_the_batch_size_and_reported() -> None:
    found = plan(GENE, Budget(max_latency=12, batch_size=3), timer=milliseconds)
    assert [(c.shape.depth, c.latency) for c in found] == [(4, 12.0), (3, 9.0)]


def test_only_what_fits_otherwise_is_timed() -> None:
    timed = []

    def timer(shape: ViTShape, batch_size: int, device: str) -> float:
        timed.append(shape.depth)
        return 1.0

    assert depths(Budget(max_params=at(5).params(), max_latency=5), timer=timer) == timed == [5, 4, 3]
    timed.clear()
    assert depths(Budget(max_params=at(5).params()), timer=timer) == [5, 4, 3]
    assert timed == []


def test_nothing_fits_gives_nothing() -> None:
    assert depths(Budget(max_params=10)) == []
    assert depths(Budget(max_latency=0.5), timer=milliseconds) == []


def test_the_task_counts_its_own_classes_and_pixels() -> None:
    (first, *_) = plan(GENE, Budget(max_params=at(5).params()), num_classes=100, img_size=16)
    assert first.shape == pico_shape(depth=first.shape.depth, num_classes=100, img_size=16)
    assert first.params == first.shape.params() <= at(5).params()
    assert first.shape.depth < 5
    assert plan(GENE, num_classes=0)[0].shape.num_classes == 0


def test_the_choices_of_the_method_are_the_plans() -> None:
    (first, *_) = plan(GENE, Budget(max_params=at(5).params()), order="front-last-mid")
    assert first.layers == ["stage0", "stage0", "stage1", "stage2", "stage2"]


def test_a_gene_deeper_than_the_rest_is_planned_to_its_own_depth() -> None:
    gene = pico_gene(embed_dim=2, num_heads=1, depth=60)
    assert plan(gene)[0].shape.depth == 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Budget(max_params=0), "max_params must be positive, not 0"),
        (lambda: Budget(max_macs=-1.0), "max_macs must be positive"),
        (lambda: Budget(max_latency=float("nan")), "max_latency must be positive"),
        (lambda: plan(GENE, ordr="x"), "unknown key 'ordr'; did you mean 'order'"),
        (lambda: plan(GENE, order="front"), "unknown order 'front'"),
        (lambda: plan(GENE, img_size=7), "img_size 7 is not divisible by patch_size 4"),
        (lambda: plan("/nowhere.safetensors"), "/nowhere.safetensors: no such gene file"),
        (lambda: plan(GENE, Budget(max_latency=1, device="cuda")), "device 'cuda' is not available"),
        (lambda: plan(GENE, Budget(max_latency=1, batch_size=0)), "batch_size must be 1 or more, not 0"),
    ],
)
def test_a_wrong_budget_or_choice_is_refused(call: Any, message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        call()


# -- measured latency --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_shape_is_timed_once_on_this_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def latency(shape: ViTShape, *, batch_size: int, device: str) -> float:
        calls.append((shape.depth, batch_size))
        return 0.25 * shape.depth

    monkeypatch.setattr("learngene.vits.speed.latency", latency)
    for _ in range(2):
        assert [c.latency for c in plan(GENE, Budget(max_params=at(4).params(), max_latency=9))] == [1.0, 0.75]
    assert calls == [(4, 1), (3, 1)]
    assert measured_latency(at(4), 2, "cpu") == 1.0
    assert calls[2:] == [(4, 2)]
    assert measured_latency(at(4).replace(num_classes=7), 1, "cpu") == 1.0  # the head costs next to nothing
    assert len(calls) == 3
    (path,) = cache.iterdir()
    content = json.loads(path.read_text())
    assert content["environment"]["processor"] == environment()["processor"]
    assert len(content["milliseconds"]) == 3


def test_another_environment_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learngene.vits.speed.latency", lambda shape, **_: 1.0)
    measured_latency(at(4), 1, "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("learngene.vits.speed.latency", lambda shape, **_: 2.0)
    assert measured_latency(at(4), 1, "cpu") == 2.0
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_memory_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learngene.vits.speed.latency", lambda shape, **_: 1.0)
    measured_latency(at(4), 1, "cpu")
    (path,) = cache.iterdir()
    for text in ("{", "[]", '{"milliseconds": 3}', ""):
        path.write_text(text)
        assert measured_latency(at(4), 1, "cpu") == 1.0


def test_latency_is_really_measured(cache: Path) -> None:
    assert measured_latency(at(2), 2, "cpu") > 0


# -- without torch -----------------------------------------------------------------------------------------

SLIM = """
import json, sys
import learngene
learngene.ViTShape(), learngene.Budget()
from learngene.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["learngene", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert bool(stop.code) == (arguments[-1] in ("train.epoch=1", "epochs=1")), (arguments, stop.code)
    heavy = {"torch", "timm", "numpy", "matplotlib", "sklearn", "accelerate"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
    print("-- end")
"""


def test_quick_commands_import_no_torch(gene_file: Path) -> None:
    gene, more = (
        str(gene_file),
        ["--max-params", "20K", "--max-macs", "1M", "--explain", "--set", "order=front-last-mid"],
    )
    quick = [["--help"], ["--version"], ["methods"], ["plan", gene], ["plan", gene, *more], ["info", gene]]
    quick += [["info", gene, "--verify", "--json"], ["condense", "--help"], ["finetune", "--help"]]
    recipe = gene_file.with_suffix(".yaml")
    shape = "shape: deit_base_patch16_224"
    recipe.write_text(f"{{kind: condense, method: tleg, {shape}, data: {{source: digits}}, distill: {{alpha: 0}}}}")
    wrong = [["check", str(recipe), "train.epoch=1"], ["eval", gene, "--data", "digits", "epochs=1"]]
    call = [sys.executable, "-c", SLIM, json.dumps([*quick, *wrong])]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(said.strip() for said in done.stdout.split("-- end\n")[: len(quick)])
    assert done.stdout.count("-- end\n") == len(quick) + 2
    assert "train: unknown key 'epoch'" in done.stderr


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    import learngene

    with pytest.raises(AttributeError, match="module 'learngene' has no attribute 'Learngenes'"):
        learngene.Learngenes  # noqa: B018
    assert all(getattr(learngene, name) is not None for name in learngene.__all__)


def test_every_public_name_can_be_completed() -> None:
    assert {"condense", "evaluate", "load", "stitches"} <= set(dir(learngene))


def test_a_gene_says_what_it_is_in_one_line() -> None:
    said = repr(pico_gene())
    assert re.fullmatch(r"Learngene\(TLEG\(.*\), auxiliary shape: 4 layers .*, [0-9.]+ M parameters\)", said)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_params": 1},
            "the smallest is depth 1 with [0-9.]+K params, more than 1 of max_params; the largest is depth 48",
        ),
        ({"max_params": 1e9, "max_macs": 1}, "^the smallest is depth 1 with [0-9.]+[KM] macs, more than"),
        (
            {"max_latency": 2},
            "^the fastest is depth 1 with 3 ms, more than 2 of max_latency; the largest is depth 48",
        ),
        ({"max_size": 0.001}, r"^the smallest is depth 1 with 0\.\d+ MB, more than 0\.001 of max_size; the largest is"),
        ({"max_params": 1, "max_latency": 2}, "of max_params; the largest is depth 48"),
    ],
)
def test_a_budget_that_nothing_fits_is_explained(
    limits: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learngene.genes.plan.measured_latency", lambda shape, *_: 3.0 * shape.depth)
    assert plan(pico_gene(), Budget(**limits)) == []
    assert re.search(message, misfit(pico_gene(), Budget(**limits)))


def test_what_belongs_to_the_shape_is_no_option() -> None:
    with pytest.raises(LearngeneError, match=r"depth belongs to the shape; in Python expand\(gene.shape.replace"):
        pico_gene().expand(depth=3)
    with pytest.raises(LearngeneError, match="max_params must be a number, not '200K'"):
        Budget(max_params="200K")  # type: ignore[arg-type]
    with pytest.raises(LearngeneError, match=r"batch_size must be 1 or more, not 1\.5"):
        Budget(batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(LearngeneError, match=r"plan: budget must be a Budget, such as .*, not 5"):
        plan(pico_gene(), 5)  # type: ignore[arg-type]
    assert len(pico_gene().expand(np.int64(3)).blocks) == 3
