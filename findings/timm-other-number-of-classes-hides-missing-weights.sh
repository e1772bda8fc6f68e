#!/usr/bin/env bash
# timm: `create_model(pretrained=True)` is strict only as long as the number of classes is that of the weights. With
# another one, the usual case of transfer, it drops the head of the file and with it the check of all other weights:
# from a file of which a block is missing, the model is built without an error or a warning, and that block is random.
# The same file with its own number of classes is refused. So a truncated or wrongly converted backbone shows in
# fine-tuned accuracy alone; load with the file's number of classes first, then `reset_classifier`.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2"
cd "$work"
env/bin/python -W error - <<'P'
import timm
import torch

print("timm", timm.__version__, "torch", torch.__version__)
name, lost = "vit_tiny_patch16_224", "blocks.11."
whole = timm.create_model(name, num_classes=10)
kept = {key: value for key, value in whole.state_dict().items() if not key.startswith(lost)}
torch.save(kept, "backbone.pth")
print(f"a file with {len(kept)} of {len(whole.state_dict())} tensors, without {lost}*")


def build(num_classes: int) -> torch.nn.Module:
    cfg = {"file": "backbone.pth", "num_classes": 10}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=cfg, num_classes=num_classes)


try:
    build(10)
except RuntimeError as error:
    print("num_classes=10 is refused:", str(error).splitlines()[1].strip()[:60], "...")
else:
    raise SystemExit("the file is loaded with its own number of classes now")
model = build(3)
print("num_classes=3 is built without a word")
first, last = (torch.equal(model.blocks[i].mlp.fc1.weight, whole.blocks[i].mlp.fc1.weight) for i in (0, 11))
print("weights are the file's: block 0", first, " block 11", last)
assert first and not last
P
