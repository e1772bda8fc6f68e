"""Five sizes from one teacher without classes: one condensing against one distillation per size by lightly-train.

    python benchmarks/peers/head_to_head.py OUT --teacher FOLDER --images FOLDER --judged FOLDER ... --peer PYTHON

Every run is a process of its own with one thread; its CPU time is what it costs. What stands in OUT already is not run
again. Same teacher, images, crops, flips, mixing, student architecture, optimizer and rate; the peer's loss is its own
default. Genes are condensed with the same loss (``lightly-v3``), and with our default. ``PYTHON`` is that of an
environment with lightly-train, timm and safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import load_file
from timm.data import resolve_data_config

import learngene as lg

HERE = Path(__file__).parent
SAME, *_ = PRESETS = ("lightly-v3", "cosine")
"""Losses of genes: first that of the peer."""

SHARE = 0.35
"""Of the peer's CPU time, at most, for all sizes."""


def spent(command: list[str], log: Path) -> float:
    """Runs a command with one thread and gives its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as out:
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=out)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}, see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Experiment:
    """The runs of one teacher, their costs and their scores."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out = given, Path(given.out)
        self.out.mkdir(parents=True, exist_ok=True)
        teacher = timm.create_model(f"local-dir:{given.teacher}", pretrained=False)
        config = resolve_data_config({}, model=teacher)
        self.data = {"mean": list(config["mean"]), "std": list(config["std"])}
        sizes = {"img_size": given.img_size, "patch_size": given.patch_size}
        self.sizes = {**sizes, "embed_dim": given.width, "num_heads": given.heads, "num_classes": 0}

    def once(self, name: str, run: Any) -> dict[str, Any]:
        """A result that stands in the folder, or is made and put there."""
        path = self.out / f"{name}.json"
        if not path.exists():
            found = run()
            path.write_text(json.dumps(found))
            print(name, found, flush=True)
        return dict(json.loads(path.read_text()))

    def condensed(self, name: str, epochs: int, preset: str, **changes: Any) -> dict[str, Any]:
        """A gene that learnt the teacher's features."""
        recipe: dict[str, Any] = {
            "ancestry": {"source": self.given.teacher},
            "shape": self.sizes | changes.pop("shape"),
            "data": {"source": self.given.images, "labels": False, "workers": 0, **self.data},
            "distill": {"target": "features"},
            "features": {"preset": preset, "resize": "bilinear", "img_size": self.given.img_size},
            "train": {
                **{"epochs": epochs, "batch_size": self.given.batch_size, "lr": self.given.lr, "lr_batch": None},
                **{"weight_decay": 0.04, "clip_grad": 1.0, "eval_every": epochs, "seed": self.given.seed},
                "schedule": {"warmup_epochs": 0.1 * epochs, "min_lr": 0},
                "augment": {"preset": "light", "scale": [0.14, 1.0], "mixup": 1.0},
            },
            "out": str(self.out / name),
            **changes,
        }
        (self.out / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        command = [self.command, "condense", str(self.out / f"{name}.yaml")]
        return {"cpu_seconds": spent(command, self.out / f"{name}.log"), "epochs": epochs}

    def expanded(self, gene: str, depth: int) -> dict[str, Any]:
        """A descendant."""
        folder = self.out / f"{gene}-d{depth}"
        command = [self.command, "expand", str(self.out / f"{gene}.safetensors"), "--depth", str(depth)]
        return {"cpu_seconds": spent([*command, "--out", str(folder)], self.out / "expand.log")}

    def peer(self, depth: int) -> dict[str, Any]:
        """A student of lightly-train."""
        name, given = f"peer-d{depth}", self.given
        (self.out / name).mkdir(exist_ok=True)
        student = {**self.sizes, "depth": depth, "class_token": False, "global_pool": "avg", "fc_norm": False}
        settings = {
            **{"out": str(self.out / name), "teacher": given.teacher, "images": given.images, "student": student},
            **{"img_size": given.img_size, "epochs": given.epochs, "batch_size": given.batch_size},
            # Its rate is that of 1536 images, scaled by the square root; ours is the rate itself.
            **{"lr": given.lr * (1536 / given.batch_size) ** 0.5, "weight_decay": 0.04, "min_scale": 0.14},
            **{"seed": given.seed, **self.data},
        }
        (self.out / f"{name}-settings.json").write_text(json.dumps(settings))
        command = [given.peer, str(HERE / "lightly_student.py"), str(self.out / f"{name}-settings.json")]
        return {"cpu_seconds": spent(command, self.out / f"{name}.log"), "epochs": given.epochs}

    @property
    def command(self) -> str:
        """The program, of this environment."""
        return str(Path(sys.executable).with_name("learngene"))

    def model(self, kind: str, depth: int) -> torch.nn.Module:
        """A student as a plain timm model."""
        if kind in PRESETS:
            return timm.create_model(f"local-dir:{self.out / f'gene-{kind}-d{depth}'}", pretrained=True)
        own = {"class_token": False, "global_pool": "avg", "fc_norm": False}
        model = timm.create_model("vit_tiny_patch16_224", **self.sizes, **own, depth=depth)
        if kind == "peer":
            model.load_state_dict(load_file(self.out / f"peer-d{depth}" / "student.safetensors"))
        return model

    def judged(self, kind: str, depth: int) -> dict[str, Any]:
        """KNN and linear accuracy of a student's frozen features, in percent, by set."""
        torch.manual_seed(depth)
        model, out = self.model(kind, depth).eval(), {}
        for folder in self.given.judged:
            data = {"source": folder, "workers": 0, "img_size": self.given.img_size, **self.data}
            found = lg.probe(model, data, knn=True, linear=True, seeds=1)
            out[Path(folder).name] = {"knn": found.knn, "linear": found.linear.top1 if found.linear else None}
        return out

    def run(self) -> dict[str, Any]:
        """All runs, in turns, and what they give."""
        given, depths = self.given, sorted(self.given.depths)
        gene = {"method": "tleg", "depths": depths, "shape": {"depth": depths[-1]}}
        costs: dict[str, list[float]] = {kind: [] for kind in (*PRESETS, "peer")}
        for preset in PRESETS:
            name = f"gene-{preset}"
            trained = self.once(name, lambda n=name, p=preset: self.condensed(n, given.our_epochs, p, **deepcopy(gene)))
            costs[preset].append(trained["cpu_seconds"])
        for depth in depths:
            costs["peer"].append(self.once(f"peer-d{depth}", lambda d=depth: self.peer(d))["cpu_seconds"])
            for preset in PRESETS:
                name = f"gene-{preset}"
                made = self.once(f"{name}-d{depth}", lambda n=name, d=depth: self.expanded(n, d))
                costs[preset].append(made["cpu_seconds"])
        kinds = [*PRESETS, "peer", "untrained"]
        scores = {
            kind: {str(d): self.once(f"scores-{kind}-{d}", lambda k=kind, d=d: self.judged(k, d)) for d in depths}
            for kind in kinds
        }
        total = {kind: sum(parts) for kind, parts in costs.items() if parts}
        means = {
            kind: {
                what: statistics.fmean(one[what] for each in scores[kind].values() for one in each.values())
                for what in ("knn", "linear")
            }
            for kind in kinds
        }
        return {
            "settings": {key: value for key, value in vars(given).items() if key not in ("out", "peer")}
            | {key: Path(getattr(given, key)).name for key in ("teacher", "images")}
            | {"judged": [Path(folder).name for folder in given.judged]},
            "versions": {"learngene": lg.__version__, "torch": torch.__version__, "timm": timm.__version__},
            "peer": json.loads(subprocess.check_output([given.peer, "-c", VERSIONS], text=True)),
            "cpu_seconds": total,
            "means": means,
            "scores": scores,
            "targets": [
                {"what": "CPU time of five sizes over the peer's", "value": total[SAME] / total["peer"]}
                | {"limit": SHARE, "met": total[SAME] / total["peer"] <= SHARE},
                {"what": "mean kNN of the peer over ours", "value": means["peer"]["knn"] / means[SAME]["knn"]}
                | {"limit": 1.0, "met": means["peer"]["knn"] <= means[SAME]["knn"]},
            ],
        }


VERSIONS = (
    "import json, importlib.metadata as m; "
    "print(json.dumps({name: m.version(name) for name in ('lightly-train', 'torch', 'timm')}))"
)


def main() -> None:
    """Reads the command line and prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    for name in ("teacher", "images", "peer"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--judged", nargs="+", required=True)
    parser.add_argument("--depths", nargs="+", type=int, default=[3, 4, 6, 8, 12])
    for name, default in (("epochs", 2), ("our-epochs", 4), ("batch-size", 32), ("img-size", 112), ("patch-size", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("width", 96), ("heads", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    result = Experiment(parser.parse_args()).run()
    (Path(sys.argv[1]) / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
