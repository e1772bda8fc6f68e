"""A page beside grown graphs: a slider over sizes, an image, what every size says of it and how long that takes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learngene.devices.check import check_images
from learngene.vits.class_names import class_names
from learngene.vits.input_size import image_config

CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"
"""Where the page takes the runtime from unless it lies in the folder ``ort`` beside it."""

IMAGES = 8


def grown_page(model: Any, gene: int, graphs: Mapping[int | str, Path]) -> str | None:
    """The page, whose images are some of scikit-learn's digits; None for a model that takes no images to look at.

    Args:
        model: One of the descendants.
        gene: Bytes of the gene file.
        graphs: Of every size the graph, the smallest first; depths, or widths and depths in words.
    """
    config = image_config(model)
    chans, height, width = config["input_size"]
    if chans not in (1, 3) or height != width:
        return None
    batch, _ = next(iter(check_images(model, None, IMAGES).batches))
    chosen = batch[:: max(1, len(batch) // IMAGES)][:IMAGES]
    mean, std = ([*config[key]] for key in ("mean", "std"))
    pictures = chosen * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    data = {
        "gene": gene,
        "graphs": [{"size": size, "file": file.name, "bytes": file.stat().st_size} for size, file in graphs.items()],
        "sizes": "width x layers" if any(isinstance(size, str) for size in graphs) else "layers",
        "input_size": [chans, height, width],
        "mean": mean,
        "std": std,
        "classes": model.num_classes,
        "names": class_names(model) or [str(number) for number in range(model.num_classes)],
        "images": [_png(picture) for picture in pictures],
        "cdn": CDN,
    }
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # no text may end the script
    return Path(__file__).with_name("grown.html").read_text(encoding="utf-8").replace("DATA", text, 1)


def _png(image: Tensor) -> str:
    """An image with values from 0 to 1, as an address that holds it."""
    from PIL import Image

    values = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(values if values.shape[2] == 3 else values[:, :, 0])
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
