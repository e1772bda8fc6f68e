"""What teachers say, shared by all that a comparison trains: the same genes, and no view asked about twice."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import compare_fields, recipe_of, results
from hyper import PICO
from learngene.comparing import condense, shared_targets
from learngene.comparing.run import compare
from learngene.genes.gene import Learngene
from learngene.making.together import run_together
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.genes import GenesRecipe
from learngene.recipe.loading import build_recipe
from learngene.system import processes
from learngene.system.errors import InterruptedRun
from learngene.training.stored_targets import StoredTargets
from learngene.training.student import Student
from runs import same, state

VECTORS = {"distill": {"target": "features"}, "features": {"tokens": ["pooled"]}}
TAL = {"method": "tal", "ancestry": "vit", "settings": {**PICO, "task_dim": 16}}
ROWS: dict[str, Any] = {"method": "pool", "ancestry": "vit", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}}
ROWS["pool"] = {"terms": ["pred"], "stitches": "ls", "guide": "soft"}
SWS: dict[str, Any] = {"method": "sws", "settings": {"stages": [2, 2]}, "ancestry": "vit"}
APART = {"train": {"micro_batch": 4}}
"""Of the same views, but not trained in the same pass."""

CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    # An empty image tells the size, and an epoch has three steps of 8.
    "logits": ({"sws": {**SWS, **APART}}, [1, 8, 8, 8]),
    "a pool's rows and paths": ({"tleg": None, "pool": ROWS}, [1, 8, 8, 8]),
    # And images as evaluation sees them: all 24 for scales, and those that are held out.
    "features": (
        {"tleg": {"method": "tleg", "ancestry": "vit", **VECTORS}, "sws": {**SWS, **APART, **VECTORS}},
        [1, 24, 1, 12, 1, 8, 8, 8],
    ),
    "stage 1": (
        {"tleg": None, "tal": TAL, "other": {**TAL, **APART, "hyper": {"guidance": {"alpha": 0.5}}}},
        [1, 8, 8, 8],
    ),
}
"""What contenders learn, and how many images the one teacher is asked about in turn."""


@pytest.mark.parametrize("case", CASES)
def test_what_comes_second_in_a_comparison_does_not_run_its_teacher(
    case: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders, expected = CASES[case]
    asked: list[int] = []
    ask, genes = StoredTargets._ask, {}

    def counted(self: StoredTargets, batch: torch.Tensor) -> Any:
        asked.append(len(batch))
        return ask(self, batch)

    monkeypatch.setattr(StoredTargets, "_ask", counted)
    for name, most in (("shared", shared_targets.MOST_BYTES), ("each", 0)):
        monkeypatch.setattr(shared_targets, "MOST_BYTES", most)
        fields = compare_fields(
            tmp_path / name, images, run={"skip_impossible": True}, budgets={"untuned": {"epochs": 0}}
        )
        fields["contenders"] |= contenders
        fields["contenders"] = {key: value for key, value in fields["contenders"].items() if value}
        del fields["budgets"]["one"]
        fields["shapes"] = {"d4": {"depth": 4}}
        if case == "stage 1":
            fields["shape"] |= {"class_token": True, "depth": 2}
            fields["shapes"] = {"d2": {"depth": 2}}
        recipe = build_recipe(fields)
        assert isinstance(recipe, CompareRecipe)
        outcome = compare(recipe, say=lambda _: None)
        assert (outcome.failed, outcome.faults) == ({}, [])
        genes[name] = {path.name: Learngene.load(path) for path in (tmp_path / name / "store").glob("*.safetensors")}
        assert asked == expected  # where none share, nothing is stored
    assert genes["shared"].keys() == genes["each"].keys()
    for name, gene in genes["each"].items():
        shared = genes["shared"][name]
        assert same(state(gene), state(shared))
        for said in ("accuracy", "agreement", "paths"):
            assert gene.metadata.get(said) == shared.metadata.get(said)
        for part in ("train", "distill"):
            assert gene.metadata["training"]["recipe"][part] == shared.metadata["training"]["recipe"][part]


def test_genes_that_see_the_same_are_condensed_in_one_pass(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and gone on with; one that diverges fails its own cells, one without memory is tried alone."""
    step, passes = Student.step, []

    def stop(student: Student, *given: Any) -> None:
        step(student, *given)
        if len(passes) == 1 and student.progress.updates == 2 and student.stage.name.startswith("gene sws"):
            os.kill(os.getpid(), signal.SIGINT)
        if len(passes) == 3 and student.stage.name.startswith("gene tleg"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def counted(recipe: GenesRecipe, **given: Any) -> Any:
        passes.append([one.method for one in recipe.genes.values()])
        return run_together(recipe, **given)

    fields = {
        name: compare_fields(
            tmp_path / name,
            images,
            contenders={"sws": SWS, "wild": {**SWS, "train": {"lr": 1e30, "clip_grad": None}}},
            run={"seeds": [0, 1], "skip_impossible": True},
        )
        for name in ("together", "alone")
    }
    for each in fields.values():
        del each["budgets"]["one"], each["shapes"]["d3"]
    monkeypatch.setattr(Student, "step", stop)
    monkeypatch.setattr(condense, "run_together", counted)
    with pytest.raises(InterruptedRun):
        compare(recipe_of(fields["together"]), say=lambda _: None)
    said: list[str] = []
    outcomes = {"together": compare(recipe_of(fields["together"]), say=said.append)}
    assert passes == [["tleg", "sws", "sws"]] * 3  # stopped, gone on with, and another seed
    assert sum("; beside it sws d4 seed" in line for line in said) == 2
    assert not (tmp_path / "together" / "store" / shared_targets.FOLDER).exists()
    monkeypatch.setattr(condense, "_alike", lambda *_: [])
    outcomes["alone"] = compare(recipe_of(fields["alone"]), say=lambda _: None)
    assert len(passes) == 3
    for outcome in outcomes.values():
        assert len(outcome.failed) == 2  # a seed each
        assert all("the loss became" in reason for reason in outcome.failed.values())
    kept = {name: (tmp_path / name / "store").glob("*.safetensors") for name in outcomes}
    genes = {name: {path.name: state(Learngene.load(path)) for path in paths} for name, paths in kept.items()}
    assert genes["together"].keys() == genes["alone"].keys()
    assert all(same(gene, genes["alone"][name]) for name, gene in genes["together"].items())
    cells = {name: results(tmp_path / name / "out") for name in outcomes}
    assert cells["together"].keys() == cells["alone"].keys()
    assert all(cell["untuned"] == cells["alone"][name]["untuned"] for name, cell in cells["together"].items())


def test_processes_take_their_shares_of_what_one_pass_could_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.fair_share(5) == 5
    monkeypatch.setattr(processes, "_beside", [2])
    assert [processes.fair_share(count) for count in (1, 4, 5)] == [1, 2, 3]
