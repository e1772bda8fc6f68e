"""Do the layers of a trained ViT lie on a line over depth, as TLEG's Figure 1 says? Writes results/real_weights.json.

    python benchmarks/real_weights.py FOLDER [FOLDER ...]

Each FOLDER holds a trained ViT as timm saves it. The ledger reads the first; of each the file's hash is told.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import timm

from learngene.system.environment import commit, environment
from learngene.vits.linearity import layer_shares, layer_state, linearity, random_shares

OUT = Path(__file__).parents[1] / "results" / "real_weights.json"


def measured(folder: Path) -> dict[str, Any]:
    """Shares of every tensor of a model's layers; of queries, keys and values by themselves, too."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    state, depth = layer_state(model)
    for i in range(depth):
        three = state[f"blocks.{i}.attn.qkv.weight"].chunk(3)
        state |= {f"blocks.{i}.attn.{name}.weight": part for name, part in zip("qkv", three, strict=True)}
    return {
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "depth": depth,
        "embed_dim": model.embed_dim,
        "linearity": linearity(state, depth),
        "independent": dataclasses.asdict(random_shares(depth)),
        "tensors": {name: dataclasses.asdict(shares) for name, shares in layer_shares(state, depth).items()},
    }


def main() -> None:
    folders = [Path(given) for given in sys.argv[1:]] or sys.exit(__doc__)
    models = {folder.name: measured(folder) for folder in folders}
    result = {"models": models, "environment": environment(), "commit": commit()}
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    for name, found in models.items():
        print(
            f"{name}: first components {found['linearity']:.2f} on a line, {found['independent']['line']:.2f} by chance"
        )
        for tensor, each in found["tensors"].items():
            print(f"  {tensor:20s}" + "".join(f"  {key} {value:.3f}" for key, value in each.items()))


if __name__ == "__main__":
    main()
