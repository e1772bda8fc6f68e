#!/usr/bin/env bash
# lightly-train takes any timm model as a teacher, by name. What it takes for the model's features is the last map of timm's
# `forward_intermediates`, and its width `num_features`, which are not the same thing in every family: EfficientNets and
# GhostNet widen the map behind it (320 -> 1280, 160 -> 960), so that distilling from one ends in the first step with two
# sizes that do not match. And of a ViT the "pooled" feature is the mean of the patch tokens whatever its head reads, so the
# class token of a ViT that is read out by its class token is neither a target nor, in a student, ever trained.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "lightly-train==0.18.0" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
WORK=$work OMP_NUM_THREADS=1 "$work/env/bin/python" - 2>"$work/log" <<'P' || { tail -20 "$work/log"; exit 1; }
import contextlib
import importlib.metadata
import os
import sys
from pathlib import Path

import lightly_train
import timm
import torch
from lightly_train._models.package_helpers import get_wrapped_model
from PIL import Image

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("lightly-train", "timm", "torch")))
images = torch.randn(2, 3, 64, 64)
seen = {}
for name in ("efficientnet_b0", "ghostnet_100", "mobilenetv3_small_100", "resnet18", "vit_tiny_patch16_224"):
    wrapped = get_wrapped_model(f"timm/{name}", num_input_channels=3, load_weights=False).eval()
    model = wrapped.get_model()
    with torch.no_grad():
        features = wrapped.forward_features(images)
        pooled = wrapped.forward_pool(features)["pooled_features"].flatten(1)
        read = model.forward_head(model.forward_features(images), pre_logits=True)
    alike = pooled.shape == read.shape and torch.allclose(pooled, read, atol=1e-6)
    seen[name] = (wrapped.feature_dim(), features["features"].shape[1], alike)
    print(f"{name}: said to have {seen[name][0]} features, gives {seen[name][1]}; what its head reads: {alike}")
assert seen["efficientnet_b0"] == (1280, 320, False) and seen["ghostnet_100"] == (960, 160, False), seen
assert seen["resnet18"] == (512, 512, True) and seen["vit_tiny_patch16_224"] == (192, 192, False), seen

work = Path(os.environ["WORK"])
(work / "images").mkdir()
for number in range(8):
    Image.new("RGB", (64, 64), (30 * number, 90, 200)).save(work / "images" / f"{number}.png")
try:
    with contextlib.redirect_stdout(sys.stderr):
        lightly_train.pretrain(
            out=work / "out",
            data=work / "images",
            model="timm/resnet18",
            method="distillation",
            method_args={"teacher": "timm/efficientnet_b0"},
            transform_args={"image_size": (64, 64)},
            epochs=1,
            batch_size=4,
            num_workers=0,
            accelerator="cpu",
            devices=1,
        )
    error = "none"
except RuntimeError as raised:
    error = str(raised)
print(f"distilling from timm/efficientnet_b0: {error}")
assert "1280" in error and "320" in error
P
