"""What teachers say, shared by all that a comparison trains: the same genes, and no view asked about twice."""

from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import compare_fields
from hyper import PICO
from learngene.comparing import shared_targets
from learngene.comparing.run import compare
from learngene.genes.gene import Learngene
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.loading import build_recipe
from learngene.training.stored_targets import StoredTargets
from runs import same, state

VECTORS = {"distill": {"target": "features"}, "features": {"tokens": ["pooled"]}}
TAL = {"method": "tal", "ancestry": "vit", "settings": {**PICO, "task_dim": 16}}
ROWS: dict[str, Any] = {"method": "pool", "ancestry": "vit", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}}
ROWS["pool"] = {"terms": ["pred"], "stitches": "ls", "guide": "soft"}
SWS = {"method": "sws", "settings": {"stages": [2, 2]}, "ancestry": "vit"}

CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    # An empty image tells the size, and an epoch has three steps of 8.
    "logits": ({"sws": SWS}, [1, 8, 8, 8]),
    "a pool's rows and paths": ({"tleg": None, "pool": ROWS}, [1, 8, 8, 8]),
    # And images as evaluation sees them: all 24 for scales, and those that are held out.
    "features": (
        {"tleg": {"method": "tleg", "ancestry": "vit", **VECTORS}, "sws": {**SWS, **VECTORS}},
        [1, 24, 1, 12, 1, 8, 8, 8],
    ),
    "stage 1": ({"tleg": None, "tal": TAL, "other": {**TAL, "hyper": {"guidance": {"alpha": 0.5}}}}, [1, 8, 8, 8]),
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
