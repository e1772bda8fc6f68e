#!/usr/bin/env bash
# timm: the data configuration of a model that was built for another image size or number of channels is that of its
# name, not its own. `resolve_model_data_config`, which timm's documentation uses to make transforms for a model, reads
# `pretrained_cfg`, and neither `create_model(img_size=, in_chans=)` nor `set_input_size()` writes to it. So the
# transforms make images that the very same model refuses, or, in models that take any size, other images than it was
# built for. Only `timm.models.get_model_input_config`, newer and little used, tells the model's own size.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
"$work/env/bin/python" - <<'P'
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_model_input_config

print("timm", timm.__version__, "torch", torch.__version__)
model = timm.create_model("vit_tiny_patch16_224", img_size=64, in_chans=1, num_classes=3).eval()
said, own = resolve_model_data_config(model)["input_size"], get_model_input_config(model)["input_size"]
print("built for (1, 64, 64); resolve_model_data_config:", said, " get_model_input_config:", own)
assert said == (3, 224, 224) and own == (1, 64, 64)
model.set_input_size(img_size=96)
said, own = resolve_model_data_config(model)["input_size"], get_model_input_config(model)["input_size"]
print("set to 96; resolve_model_data_config:", said, " get_model_input_config:", own)
assert said == (3, 224, 224) and own == (1, 96, 96)
print(create_transform(**resolve_model_data_config(model)))
try:
    model(torch.zeros(1, 1, *said[1:]))
except AssertionError as error:
    print("and the model refuses such an image:", error)
else:
    raise SystemExit("the model takes 224 px now")
P
