#!/usr/bin/env bash
# torch: `FlopCounterMode` under `torch.no_grad()`, the natural way to count a model that is not trained, raises
# "Expected gradient function to be set" for a model in which an expanded parameter goes into a module, as the learnt
# query of a pooling by attention does (SigLIP in timm). A view of a parameter says that it requires gradients even where
# none are recorded, and the counter's tracker of modules then looks for its gradient function. With gradients on the
# same model is counted; without them it is once its parameters are detached.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
"$work/env/bin/python" - <<'P'
import timm
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Query(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.map = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 2, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean() * self.map(self.query.expand(3, -1))


def counted(model: nn.Module, image: torch.Tensor, grad: bool, detached: bool = False) -> object:
    state = {name: value.detach() for name, value in model.named_parameters()} if detached else {}
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        try:
            functional_call(model, state, (image,)) if detached else model(image)
        except AssertionError as error:
            return str(error)
    return counter.get_total_flops()


print("torch", torch.__version__, "timm", timm.__version__)
sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 16, "num_classes": 3}
models = {
    "a linear map of an expanded parameter": (Query(), torch.zeros(1)),
    "timm's SigLIP": (timm.create_model("vit_base_patch16_siglip_224", **sizes).eval(), torch.zeros(1, 3, 32, 32)),
}
for name, (model, image) in models.items():
    on, off, detached = counted(model, image, True), counted(model, image, False), counted(model, image, False, True)
    print(f"{name}: with gradients {on}; without: {off}; without, detached: {detached}")
    assert on == detached and off == "Expected gradient function to be set"
assert counted(*models["a linear map of an expanded parameter"], True) == 2 * 3 * 4 * 2
P
