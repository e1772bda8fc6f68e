#!/usr/bin/env bash
# timm's own recipe of DeiT, rand-m9-mstd0.5-inc1, stops now and then with Pillow 13: RandAugment's magnitudes vary at random, and
# at the far end "posterize" keeps 0 bits of every channel. Up to Pillow 12 that made a black image; Pillow 13 refuses it with a
# ValueError, so that training ends in the midst of an epoch, at an image that is in order.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
for pillow in 12.0.0 13.0.0; do
    uv venv -q --python 3.11 "$work/$pillow"
    uv pip install -q --python "$work/$pillow/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2" "pillow==$pillow"
    OMP_NUM_THREADS=1 "$work/$pillow/bin/python" - <<'P'
import importlib.metadata
import random

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

version = importlib.metadata.version("pillow")
print(f"timm {importlib.metadata.version('timm')}, Pillow {version}")
augment = rand_augment_transform("rand-m9-mstd0.5-inc1", {"translate_const": 10, "img_mean": (124, 116, 104)})
image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
random.seed(0)
np.random.seed(0)
stopped, message = 0, ""
for _ in range(20_000):
    try:
        augment(image)
    except ValueError as error:
        stopped, message = stopped + 1, str(error)
print(f"20000 views of one image: {stopped} stopped" + (f", {message!r}" if stopped else ""))
assert (stopped > 0) == version.startswith("13"), (version, stopped)
P
done
