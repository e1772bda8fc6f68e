"""Examples that stand under the help of every command."""

from __future__ import annotations

from typer.models import CommandInfo

EXAMPLES: dict[str, tuple[str, str]] = {
    "check": ("recipe.yaml train.epochs=5", "--model vit_tiny_patch16_224 --data pets.tar --lr 1e-4"),
    "clean": ("--dry-run", "pets-models --yes"),
    "compare": ("recipes/laptop/compare/digits.yaml", "comparison.yaml --data images --processes 2 run.seeds=[0,1,2]"),
    "condense": ("recipes/laptop/tleg/digits.yaml", "recipe.yaml data.source=pets.tar train.epochs=50 out=runs/pets"),
    "demo": ("", "--method tal"),
    "eval": (
        "runs/d6/descendant --data pets.tar --baseline runs/teacher/descendant",
        "gene.safetensors --depth 6 --data digits --knn --linear",
    ),
    "expand": (
        "gene.safetensors --depth 6 --out d6",
        "gene.safetensors --embed-dim 96 --depth 9 --num-classes 37 --out pets-96x9",
    ),
    "export": ("runs/d6/descendant --out d6.onnx", "d6 --to openvino --precision int8 --data pets.tar --out d6.xml"),
    "extract": (
        "vit_small_patch16_224 --method weight-selection --out gene.safetensors",
        "runs/teacher/descendant --method vanilla-lg --set last=3 --out gene.safetensors",
    ),
    "finetune": (
        "--model d6 --data pets.tar --epochs 20 --lr 1e-3",
        "--model gene.safetensors --depth 6 --data pets.tar --data more-pets --out runs/pets",
    ),
    "index": ("imagenet-wds --processes 8", "hfids/cifar100 --label fine_label --out cifar100"),
    "info": ("gene.safetensors", "gene.safetensors --verify --json"),
    "measure-on-device": (
        "gene.safetensors --out to-phone",
        "gene.safetensors --runtime openvino --precision int8 --threads 2 --out to-kiosk",
    ),
    "methods": ("", "--families"),
    "picture": ("gene.safetensors --out sizes.png", "vit_tiny_patch16_224 --out layers.png"),
    "plan": (
        "gene.safetensors --runtime onnxruntime --threads 1 --max-latency 5",
        "--sizes 0.2M,0.6M,1.5M --img-size 64 --classes 7",
    ),
    "pull": ("me/pets-6", "me/gene --out gene --revision v1"),
    "push": ("runs/d6/descendant me/pets-6 --dry-run", "gene.safetensors me/gene --license apache-2.0 --private"),
    "report": ("", "--results results --out report/index.html"),
    "reproduce": ("tleg.table2 --data images", "sws.table1 --scale gpu --data images --cost"),
    "runs": ("", "pets-models --json"),
    "search": ("recipes/laptop/lsamd/search.yaml --data images", "search.yaml --processes 2"),
    "ship": (
        "pets.tar --sizes 0.2M,0.6M,1.5M --hours 1 --out pets-models",
        "pets.tar --max-latency 2,5 --teacher vit_small_patch16_224 --dry-run",
    ),
    "targets": ("recipe.yaml distill.replay=targets", "recipe.yaml --processes 4 --again"),
    "tune": ("recipes/laptop/tal/tune.yaml --data images", "tune.yaml train.epochs=10"),
}
"""By command, what follows its name."""


def add_examples(command: CommandInfo) -> None:
    """Puts the examples of a command under its help."""
    name = command.name or (command.callback.__name__ if command.callback else "")
    lines = [f"  learngene {name} {rest}".rstrip() for rest in EXAMPLES[name]]
    command.epilog = "\n".join(["\b", "Examples:", *lines])  # \b keeps the lines as they are
