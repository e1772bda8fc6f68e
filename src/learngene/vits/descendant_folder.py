"""Descendant folders: an ordinary timm model on disk, plus a record of where its weights came from.

``config.json`` and ``model.safetensors`` are as timm writes them, so that
``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads the model without learngene installed.
``learngene.json`` says which gene it came from and which of the gene's tensors fed which layer; its digest is of all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learngene.system.digest import DIGEST, content_digest
from learngene.system.errors import LearngeneError
from learngene.system.files import write_folder
from learngene.vits.class_names import class_names, composed
from learngene.vits.input_size import for_channels, image_config
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, shape_from
from learngene.vits.timm_models import TimmModel, refuse_argument

PROVENANCE, TIMM_FILES = "learngene.json", ("config.json", "model.safetensors")
OWN = (PROVENANCE, *TIMM_FILES)
"""What is written into a descendant folder."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Where folders of timm, transformers and Accelerate have their weights; the first one counts, as in timm."""


def save_descendant(model: TimmModel, path: str | Path) -> None:
    """Writes a descendant folder under a temporary name and moves it into place.

    Args:
        model: A timm model, for example from ``Learngene.expand``. Its ``pretrained_cfg`` (normalisation, input
            size) and its ``learngene`` record travel with it.
        path: The folder to write. Of one that ``save_descendant`` wrote the model is replaced; others are refused.

    Raises:
        LearngeneError: If the path is not ours or cannot be written.
    """
    from timm.models import save_for_hf

    record = getattr(model, "learngene", {})
    names = class_names(model)
    arguments = model_arguments(model)

    def write(folder: Path) -> None:
        labels = {"label_names": names} if names else {}
        save_for_hf(model, str(folder), model_config=labels, model_args=arguments, safe_serialization=True)
        _mend_config(folder / "config.json", {**model.pretrained_cfg, **image_config(model)})
        _write_record(folder, record)

    write_folder(Path(path), OWN, write)


def write_descendant(
    path: Path, arrays: Mapping[str, Any], shape: Shape, cfg: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Writes the folder that ``save_descendant`` writes of a model of the shape, without a model, torch and timm.

    Args:
        path: The folder to write, as there.
        arrays: The weights, in numpy, under timm's names.
        shape: Plain or stitched; of another architecture only timm knows what its configuration is.
        cfg: What ``vit_cfg`` says.
        record: What the model would have as ``learngene``.

    Raises:
        LearngeneError: If the path is not ours or cannot be written.
    """
    from safetensors.numpy import save_file

    def write(folder: Path) -> None:
        save_file(dict(arrays), folder / TIMM_FILES[1])
        config = _plain_config(shape, cfg, record.get("class_names"))
        (folder / TIMM_FILES[0]).write_text(json.dumps(config, indent=2) + "\n")
        _write_record(folder, record)

    write_folder(path, OWN, write)


def copy_descendant(source: Path, path: Path) -> None:
    """Copies a descendant to another folder, which is replaced as by ``save_descendant``."""

    def write(folder: Path) -> None:
        for name in OWN:
            shutil.copyfile(source / name, folder / name)

    write_folder(path, OWN, write)


def _plain_config(shape: Shape, cfg: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The ``config.json`` that timm writes of a plain or stitched ViT, as ``_mend_config`` leaves it."""
    arguments = shape.timm_kwargs()
    pretrained = {key: value for key, value in cfg.items() if key != "architecture"}
    for key in ("mean", "std"):
        pretrained[key] = for_channels(cfg[key], shape.in_chans)
    return {
        "architecture": shape.architecture,
        "num_classes": arguments.pop("num_classes"),
        "num_features": shape.embed_dim,
        "global_pool": arguments["global_pool"],
        **({"label_names": composed(names)} if names else {}),
        "model_args": arguments,
        "pretrained_cfg": pretrained | {"custom_load": False},
    }


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    digest = content_digest(json.loads(json.dumps(record)), *(folder / name for name in TIMM_FILES))
    (folder / PROVENANCE).write_text(json.dumps({**record, DIGEST: digest}, indent=2) + "\n")


def load_descendant(path: str | Path, **changes: Any) -> TimmModel:
    """Loads a descendant folder, any other timm folder, or a ViT, DeiT or DINOv2 of the transformers library.

    Weights in a pickle (``pytorch_model.bin``) are read with weights-only loading.

    Args:
        path: The folder.
        **changes: Arguments for ``timm.create_model`` that differ from the folder's, for example ``num_classes``.

    Raises:
        LearngeneError: If the folder does not hold a whole model.
    """
    import timm

    from learngene.vits.transformers_folder import load_transformers

    path = Path(path)
    if not (path / "config.json").is_file():
        hint = what_it_is(path)
        raise LearngeneError(f"{path}: {hint}" if hint else f"{path}: not a descendant folder (no config.json)")
    weights = weight_file(path)
    if weights is None:
        raise LearngeneError(f"{path}: not a descendant folder (no {' or '.join(WEIGHT_FILES[:2])})")
    try:
        record = read_record(path)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json is no JSON object")
        if "architecture" not in config and "model_type" in config:
            model = load_transformers(path, config, weights, changes)
        else:
            model = timm.create_model(f"local-dir:{path}", pretrained=True, **changes)
        if record is not None:
            model.learngene = record
    except Exception as error:  # a damaged file can end its reader in any of them
        if isinstance(error, LearngeneError):
            raise
        if changes:
            refuse_argument(str(path), error)
        if "weights_only" in str(error):
            raise LearngeneError(
                f"{weights}: holds more than tensors and is not unpickled; save its state_dict as model.safetensors"
            ) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
        raise LearngeneError(f"{path}: cannot be loaded ({reason[:200]})") from None
    return model


def what_it_is(path: Path) -> str | None:
    """What a path is that holds no gene, or no model, and what would be right; None if that cannot be told."""
    if (inner := path / "descendant") and (inner / TIMM_FILES[0]).is_file():
        return f"a run folder; its model is {inner}"
    if (path / TIMM_FILES[0]).is_file():
        return "a folder with a model, not a gene, which is a .safetensors file"
    if path.is_dir() and (gene := path.with_name(f"{path.name}.safetensors")).is_file():
        return f"a folder without a model; beside it lies {gene}"
    if path.name in WEIGHT_FILES and (path.parent / TIMM_FILES[0]).is_file():
        return f"the weights of a model; give its folder, {path.parent}"
    if path.is_dir() and any((path / split).is_dir() for split in ("train", "val")):
        return "a folder of images (train/ or val/), not a model; images are given with --data"
    if path.is_file() and path.suffix == ".safetensors":
        return "a file, not a descendant folder; a gene is expanded first (learngene expand), and that gives the folder"
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """What ``learngene.json`` says, once its digest has been compared; None for a folder of timm's own."""
    if not (path / PROVENANCE).is_file():
        return None
    record: dict[str, Any] | None = None
    with contextlib.suppress(ValueError):
        record = json.loads((path / PROVENANCE).read_text())
    if not isinstance(record, dict):
        raise LearngeneError(f"{path}: {PROVENANCE} is no JSON object, so it is damaged; make the model again")
    digest = record.pop(DIGEST, None)  # older folders have none
    if digest not in (None, content_digest(record, *(path / name for name in TIMM_FILES))):
        raise LearngeneError(
            f"{path}: a file was changed after it was written; make the model again, or delete '{DIGEST}' in "
            f"{PROVENANCE} if you changed it on purpose"
        )
    return record


def weight_file(path: Path) -> Path | None:
    """The file of a folder that has its weights; None if there is none."""
    return next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)


def model_arguments(model: TimmModel) -> dict[str, Any]:
    """Timm's arguments that rebuild the model: an expanded gene's from its shape, any other's as timm recorded.

    A model of this package that is more than its shape says them itself, as ``Segmenter`` does.
    """
    if hasattr(model, "timm_arguments"):
        own: dict[str, Any] = model.timm_arguments()
        return own
    record = getattr(model, "learngene", {})
    return shape_from(record["shape"]).timm_kwargs() if "shape" in record else {}


def vit_cfg(shape: Shape, tag: str, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What timm keeps as ``pretrained_cfg`` of a plain or stitched ViT of any size.

    Args:
        shape: The model's shape.
        tag: Where its weights come from.
        preprocessing: ``mean``, ``std``, ``interpolation`` and ``crop_pct`` where they are known; ImageNet's values
            otherwise, or 0.5 for images without three channels.
    """
    colour = shape.in_chans == 3
    return _ends(shape) | {
        "architecture": shape.architecture,
        "tag": tag,
        "num_classes": shape.num_classes,
        "input_size": (shape.in_chans, shape.img_size, shape.img_size),
        "interpolation": preprocessing.get("interpolation", "bicubic"),
        "crop_pct": preprocessing.get("crop_pct", 0.875),
        "crop_mode": "center",
        "mean": tuple(preprocessing.get("mean", IMAGENET_MEAN if colour else (0.5,) * shape.in_chans)),
        "std": tuple(preprocessing.get("std", IMAGENET_STD if colour else (0.5,) * shape.in_chans)),
    }


def _ends(shape: Shape) -> dict[str, Any]:
    """The first and the last layer by timm's names, and whether images are of one size alone."""
    plain = {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
    if not isinstance(shape, ViTShape) or not shape.arch:
        return plain
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(shape.arch)
    return {key: value if (told := getattr(cfg, key, None)) is None else told for key, value in plain.items()}


def _mend_config(config: Path, cfg: Mapping[str, Any]) -> None:
    """Writes the model's own preprocessing and tag, where timm writes the architecture's defaults.

    The number of classes is said once, outside ``model_args``, where timm and transformers both read it: transformers
    hands it and ``model_args`` to timm at once, and Python refuses an argument that is given twice.
    """
    written = json.loads(config.read_text())
    keys = ("tag", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "fixed_input_size")
    written["pretrained_cfg"] |= {key: cfg[key] for key in keys if key in cfg}
    written.get("model_args", {}).pop("num_classes", None)
    config.write_text(json.dumps(written, indent=2) + "\n")
