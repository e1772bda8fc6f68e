"""Accuracy of one any-size gene, untuned, at every width and depth. Writes results/any_size_map.json.

    python benchmarks/any_size_map.py GENE IMAGES

GENE is the file that ``recipes/laptop/compare/any-size.yaml`` makes of seed 0, and IMAGES its home task.
``python benchmarks/pages.py`` draws docs/any-size.png of it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import typer

import learngene as lg
from learngene.system.environment import environment
from learngene.system.files import write_file

OUT = Path(__file__).parents[1] / "results" / "any_size_map.json"
DEPTHS = range(2, 11)


def main(gene_file: Path, images: str) -> None:
    """Expands and evaluates every shape up to the auxiliary width."""
    gene, shapes = lg.load(gene_file), []
    auxiliary = gene.shape
    data = {"source": images, "img_size": auxiliary.img_size, "workers": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some lie outside of what was trained is the point
        for heads in range(2, auxiliary.num_heads + 1):
            for depth in DEPTHS:
                shape = auxiliary.replace(embed_dim=auxiliary.head_dim * heads, num_heads=heads, depth=depth)
                top1 = lg.evaluate(gene.expand(shape), data).top1
                size = {"embed_dim": shape.embed_dim, "depth": depth, "params": shape.params()}
                shapes.append(size | {"top1": round(top1, 2)})
                print(json.dumps(shapes[-1]), flush=True)
    trained = [{key: one[key] for key in ("embed_dim", "depth")} for one in gene.metadata["shapes"]]
    stored = sum(value.numel() for value in gene.tensors().values())
    found = {"stored": stored, "trained": trained, "shapes": shapes, "environment": environment()}
    write_file(OUT, lambda temporary: temporary.write_text(json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    typer.run(main)
