#!/usr/bin/env bash
# torch: `torch.func.functional_call` with activation checkpointing in the module (`torch.utils.checkpoint`, not reentrant,
# as timm's `set_grad_checkpointing` uses it) gives the right loss and wrong gradients, without a word. What is computed
# again for the gradients is computed behind the call, with the module's own weights instead of those it was called with;
# the check of what was computed again looks at shapes and types, which are the same. Right are gradients of a layer that is
# called with its weights inside of what is checkpointed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
"$work/env/bin/python" - <<'P'
import timm
import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 10}
model = timm.create_model("vit_tiny_patch16_224", **sizes)
weights = {name: torch.randn_like(value) / 10 for name, value in model.named_parameters()}
images = torch.randn(4, 3, 32, 32)


def gradients(how: str) -> tuple[float, dict[str, torch.Tensor]]:
    own = {name: value.clone().requires_grad_() for name, value in weights.items()}
    model.set_grad_checkpointing(how == "timm checkpoints layers")

    def run(images: torch.Tensor) -> torch.Tensor:
        return functional_call(model, own, (images,))

    inside = how == "the call is inside of what is checkpointed"
    loss = (checkpoint(run, images, use_reentrant=False) if inside else run(images)).square().sum()
    loss.backward()
    return loss.item(), {name: value.grad for name, value in own.items()}


print("torch", torch.__version__, "timm", timm.__version__)
expected_loss, expected = gradients("nothing is checkpointed")
off = {}
for how in ("timm checkpoints layers", "the call is inside of what is checkpointed"):
    loss, found = gradients(how)
    distances = [((found[name] - value).norm() / value.norm()).item() for name, value in expected.items()]
    off[how] = sum(distance > 1e-3 for distance in distances)
    print(f"{how}: loss {loss:.6f} ({expected_loss:.6f}), {off[how]} of {len(expected)} gradients are wrong, up to {max(distances):.3f}")
    assert loss == expected_loss
assert off["timm checkpoints layers"] > len(expected) / 2 and off["the call is inside of what is checkpointed"] == 0
P
