"""Every place with a teacher, and runs of it that store, or read, what that says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from hyper import train_fields, written
from learngene.genes.gene import Learngene
from learngene.making.condense import run as run_condense
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from pico import MIXED, condense_fields, pico_shape

HARD: dict[str, Any] = {**MIXED, "drop_path": 0.2, "clip_grad": 1.0}
FEATURES = {"distill": {"target": "features"}, "shape": {**pico_shape().to_dict(), "num_classes": 0}}
ROWS = {"method": "pool", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}, "shape": pico_shape().to_dict()}

TAUGHT: dict[str, dict[str, Any]] = {
    "logits": {},
    "bf16": {"train": {**HARD, "precision": "bf16", "micro_batch": 4}, "distill": {"alpha": 0.5}},
    "features": {**FEATURES, "features": {"preset": "lightly-v3", "blocks": [[1, 2]]}},
    "two teachers": {
        **FEATURES,
        "features": {"tokens": ["pooled"]},
        "teachers": [{"source": "vit", "features": {"scale": "phi-s", "pooled_loss": "mse"}}],
    },
    "kept bridge": {**FEATURES, "features": {"tokens": ["pooled"], "bridge": "linear", "keep_bridge": True}},
    "rows and paths": {**ROWS, "pool": {"guide": "soft"}},
    "rows' features": {**ROWS, "distill": {"target": "features", "alpha": 0.5}},
    "rows without labels": {**ROWS, "shape": FEATURES["shape"], "distill": {"target": "features"}},
    "stage 1": {},
    "stage 1, patches": {"hyper": {"guidance": {"features": "channel-wise"}}},
}
"""Every place with a teacher: what its recipe says."""


class Home(NamedTuple):
    images: Path
    ancestry: Path
    tmp: Path

    def fields(self, replay: Any = None, case: str = "logits", **changes: Any) -> dict[str, Any]:
        common = {"train": HARD, **TAUGHT[case], **changes}
        if replay is not None:
            common["distill"] = {**common.get("distill", {}), "replay": replay}
        common |= {"teachers": [{**each, "source": str(self.ancestry)} for each in common.get("teachers", ())] or None}
        fields = train_fields if "stage 1" in case else condense_fields
        return {**fields(self.ancestry, self.images, self.tmp / "run"), **common}

    def run(self, replay: Any = None, case: str = "logits", *, keep: bool = False, **changes: Any) -> Learngene:
        recipe = build_recipe(self.fields(replay, case, **changes))
        assert isinstance(recipe, CondenseRecipe)
        return run_condense(recipe, keep=keep, show=False).gene

    def recipe(self, *args: Any, **changes: Any) -> Path:
        return written(self.fields(*args, **changes), self.tmp / "recipe.yaml")

    def files(self, store: Path) -> dict[str, int]:
        return {
            str(path.relative_to(store)): path.stat().st_mtime_ns for path in sorted(store.glob("*/*/*.safetensors"))
        }
