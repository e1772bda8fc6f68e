"""What training with the rounding of int8 (``train.quantize``) is worth. Writes results/int8_training.json.

    python benchmarks/int8_training.py demo-output

Descendants of the demo's TLEG gene, untuned, and fine-tuned for equally long with and without rounding: what the model
scores on digits, and what its int8 file does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import learngene as lg
from learngene.recipe.loading import read_fields
from learngene.system.environment import commit, environment

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "int8_training.json"
DEPTHS, SEEDS = (3, 4, 5, 6, 7, 8), (0, 1, 2)
EPOCHS = 3
DATA = {"source": "digits", "workers": 0}
WAYS: dict[str, dict[str, Any] | None] = {"untuned": None, "fine-tuned": {}, "with rounding": {"quantize": "int8"}}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1]) / "tleg-0.safetensors"
    torch.set_num_threads(1)
    train = {**read_fields(ROOT / "recipes/laptop/tleg/digits-descendant.yaml")["train"], "epochs": EPOCHS}
    models: list[dict[str, Any]] = []
    for depth in DEPTHS:
        for way, more in WAYS.items():
            for seed in SEEDS[: 1 if more is None else None]:
                model = lg.load(path).expand(depth)
                if more is not None:
                    lg.finetune(model, data=DATA, show=False, **train, **more, seed=seed)
                models.append({"depth": depth, "way": way, "seed": seed, **int8(model)})
                print(models[-1], flush=True)
    gene = lg.load(path).metadata["digest"]
    result = {"gene": gene, "train": train, "models": models, "environment": environment(), "commit": commit()}
    OUT.write_text(json.dumps(result, indent=2) + "\n")


def int8(model: Any) -> dict[str, Any]:
    """What the int8 file says of the val split, beside what the model says."""
    with tempfile.TemporaryDirectory() as folder:
        said = lg.export(model, Path(folder) / "m.onnx", precision="int8", data=DATA, keep_worse=True)
    kept = ("top1_agreement", "relative_difference", "score", "model_score", "images")
    return {"notes": said.notes, **{key: said.agreement[key] for key in kept}}


if __name__ == "__main__":
    main()
