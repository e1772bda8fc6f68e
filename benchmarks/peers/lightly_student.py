"""One student of lightly-train, in an environment of its own: ``python lightly_student.py SETTINGS.json``.

The teacher is wrapped by hand, as lightly-train's documentation has it for models that it does not know: of timm's
EfficientNets its own wrapper takes 320 channels where their heads read 1280, and fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightly_train
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Teacher(nn.Module):
    """What a timm model's head reads, and the map before it; tokens that stand for no patch are left out."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        sizes = (
            {"dynamic_img_size": True}
            if "vit" in json.loads((Path(folder) / "config.json").read_text())["architecture"]
            else {}
        )
        self.model = timm.create_model(f"local-dir:{folder}", pretrained=True, **sizes)

    def feature_dim(self) -> int:
        """The width of both."""
        return int(self.model.num_features)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """The map, and what the head reads."""
        out = self.model.forward_features(images)
        pooled = self.model.forward_head(out, pre_logits=True)
        if out.ndim == 3:
            patches = out[:, self.model.num_prefix_tokens :]
            side = int(patches.shape[1] ** 0.5)
            out = patches.transpose(1, 2).unflatten(2, (side, side))
        return {"features": out, "pooled": pooled}

    def forward_pool(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latter, as a map of one place."""
        return {"pooled_features": features["pooled"][:, :, None, None]}

    def get_model(self) -> nn.Module:
        """Timm's model."""
        return self.model


def main(settings: dict[str, Any]) -> None:
    """Trains one student and writes its weights."""
    torch.set_num_threads(1)
    out, size = Path(settings["out"]), settings["img_size"]
    teacher = Teacher(settings["teacher"])
    lightly_train.pretrain(
        out=out / "run",
        data=settings["images"],
        model="timm/vit_tiny_patch16_224",
        model_args={**settings["student"], "dynamic_img_size": False},
        method="distillation",
        method_args={"teacher": teacher},
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        num_workers=0,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        seed=settings["seed"],
        optim="adamw",
        optim_args={"lr": settings["lr"], "weight_decay": settings["weight_decay"]},
        transform_args={
            "image_size": (size, size),
            "random_resize": {"min_scale": settings["min_scale"], "max_scale": 1.0},
            "random_flip": {"horizontal_prob": 0.5, "vertical_prob": 0.0},
            "color_jitter": None,
            "random_gray_scale": None,
            "gaussian_blur": None,
            "normalize": {"mean": settings["mean"], "std": settings["std"]},
        },
        overwrite=True,
    )
    state = torch.load(out / "run" / "exported_models" / "exported_last.pt", weights_only=True)
    save_file({name: value.contiguous() for name, value in state.items()}, out / "student.safetensors")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
