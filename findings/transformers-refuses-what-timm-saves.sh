#!/usr/bin/env bash
# timm and transformers: `AutoModelForImageClassification` and `AutoModel` load timm's models from the hub, and a folder
# that timm itself saves with `save_for_hf` looks the same, but raises TypeError. timm 1.0.31 also writes the number of
# classes into `model_args` of config.json; transformers hands `num_classes` and the whole of `model_args` to timm in one
# call, so Python sees an argument twice. Stock timm loads the folder. Without that key, which timm does not need as it
# reads `num_classes` beside `model_args`, both load it and the logits are equal.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "timm==1.0.31" "torch==2.15.0" "torchvision==0.29.2" \
  "transformers==5.24.0"
cd "$work"
HF_HUB_OFFLINE=1 env/bin/python - <<'P'
import json
from pathlib import Path

import timm
import torch
import transformers
from transformers import AutoModel, AutoModelForImageClassification

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("timm", timm.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
made = timm.create_model("resnet10t", num_classes=3).eval()
timm.models.save_for_hf(made, "folder", model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
config = json.loads(Path("folder/config.json").read_text())
print("config.json: num_classes", config["num_classes"], " model_args", config["model_args"])
assert config["model_args"]["num_classes"] == 3
images = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    wanted = made(images)
    stock = timm.create_model("local-dir:folder", pretrained=True).eval()
    print("timm loads it, logits equal:", torch.equal(stock(images), wanted))
    for kind in (AutoModelForImageClassification, AutoModel):
        try:
            kind.from_pretrained("folder")
        except TypeError as error:
            print(f"{kind.__name__}: TypeError: {error}")
        else:
            raise SystemExit(f"{kind.__name__} loads it now")
    del config["model_args"]["num_classes"]
    Path("folder/config.json").write_text(json.dumps(config))
    stock = timm.create_model("local-dir:folder", pretrained=True).eval()
    ours = AutoModelForImageClassification.from_pretrained("folder").eval()
    equal = torch.equal(stock(images), wanted), torch.equal(ours(images).logits, wanted)
    print("without that key, logits of timm and transformers equal:", *equal, ours.config.id2label)
assert equal == (True, True) and list(ours.config.id2label.values()) == ["a", "b", "c"]
P
