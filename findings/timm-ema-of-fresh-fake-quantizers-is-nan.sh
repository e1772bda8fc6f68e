#!/usr/bin/env bash
# timm's ModelEmaV3 (and V2) of a model with torch's fake-quantize modules: ranges of such a module start at plus and minus
# infinity, and the average moves from there by a share of the distance, which is not a number. The average of weights is
# right, but every range of it is NaN for good, so that what it computes is useless, while the model itself trains well.
# Right is an average that is begun behind a first pass, which gives the ranges numbers.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
"$work/env/bin/python" -W ignore - <<'P'
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

torch.manual_seed(0)
print("torch", torch.__version__, "timm", timm.__version__)
images = torch.randn(4, 8)


def nan_ranges(first_pass: bool) -> tuple[int, bool]:
    model = nn.Sequential(FusedMovingAvgObsFakeQuantize(), nn.Linear(8, 2))
    if first_pass:
        model(images)
    average = ModelEmaV3(model, decay=0.9)
    for _ in range(3):
        model(images)
        average.update(model)
    broken = [name for name, value in average.module.state_dict().items() if value.isnan().any()]
    print(f"first pass before the average begins: {first_pass}; NaN in the average: {broken}")
    return len(broken), bool(model(images).isfinite().all())


assert nan_ranges(False) == (2, True)
assert nan_ranges(True) == (0, True)
P
