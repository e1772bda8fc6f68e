"""The ancestry model: a frozen teacher, pinned by name, tag and sha256 of its weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from learngene.genes.gene_file import read_header
from learngene.methods import Method
from learngene.recipe.sections import AncestrySpec, DataSpec
from learngene.system.errors import GeneFileError, LearngeneError
from learngene.vits.descendant_folder import TimmModel, load_descendant
from learngene.vits.shape import ViTShape

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin")
"""How the names of checkpoint files end."""


class Ancestry(nn.Module):
    """Any timm classifier, frozen and in evaluation mode.

    Attributes:
        model: The timm model.
        identity: ``name``, ``tag``, ``source`` and ``sha256`` of the weights, as stored in every gene.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``input_size`` it was trained with.
        num_classes: Number of its outputs.
        class_names: Names of its classes, if its files say so.
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        *,
        architecture: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        pretrained: bool = True,
        sha256: str | None = None,
    ) -> None:
        """Loads the model and fingerprints its weights.

        Args:
            source: A timm model name (with its tag, to pin it), a descendant folder, a ``.safetensors`` file, a
                ``.pth`` file (read with weights-only loading), or a timm model in memory.
            architecture: timm's name of the architecture, for a checkpoint file.
            model_args: Arguments for ``timm.create_model``, for example ``{"img_size": 32}``.
            pretrained: Whether a timm name loads its pretrained weights (from timm's cache or the network).
            sha256: If given, any other weights are refused.

        Raises:
            LearngeneError: If the source is unknown, unreadable, unsafe, or has another sha256.
        """
        super().__init__()
        arguments = dict(model_args or {})
        names: Any = None
        self.model: TimmModel
        if isinstance(source, nn.Module):
            self.model, label = source, str(_cfg(source).get("architecture", type(source).__name__))
        elif Path(source).is_dir():
            self.model, names, label = *_from_folder(Path(source), arguments), _folder_name(Path(source))
        elif Path(source).suffix in CHECKPOINTS:
            self.model, label = _from_checkpoint(Path(source), architecture, arguments), Path(source).name
        else:
            self.model, label = timm_model(str(source), pretrained, arguments), str(source)
        self.model.eval().requires_grad_(False)
        cfg = self.model.pretrained_cfg
        self.preprocessing = _preprocessing(self.model)
        self.num_classes = int(self.model.num_classes)
        self.class_names: list[str] | None = list(names) if names else None
        self.identity = {
            "name": str(cfg.get("architecture") or label),
            "tag": str(cfg.get("tag") or "") if pretrained else "random-weights",
            "source": label,
            "sha256": weights_sha256(self.model),
        }
        if sha256 is not None and sha256 != self.identity["sha256"]:
            raise LearngeneError(
                f"ancestry {label}: its weights have sha256 {self.identity['sha256']}, not {sha256}; "
                "the name now means other weights"
            )

    @classmethod
    def from_spec(cls, spec: AncestrySpec) -> Ancestry:
        """Loads the ancestry a recipe names."""
        return cls(
            spec.source,
            architecture=spec.architecture,
            model_args=spec.model_args,
            pretrained=spec.pretrained,
            sha256=spec.sha256,
        )

    def train(self, mode: bool = True) -> Ancestry:
        """Stays in evaluation mode: a teacher that drops paths or updates statistics is another teacher."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits for normalised images; two heads are averaged, as timm's distilled models do in evaluation."""
        logits = self.model(images)
        return logits if isinstance(logits, Tensor) else sum(logits) / len(logits)

    @property
    def width(self) -> int:
        """Numbers that its head reads of an image: its features."""
        return int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "batch channels height width"], *, patches: bool = False
    ) -> Float[Tensor, "batch ..."]:
        """What its head reads of normalised images: of a ViT the class token, or the mean, behind the final norm.

        Args:
            images: Normalised images.
            patches: One vector per patch instead, which only Vision Transformers have.

        Returns:
            (batch, width), or (batch, patches, width).
        """
        model: Any = self.model
        tokens = model.forward_features(images)
        if not patches:
            out: Tensor = model.forward_head(tokens, pre_logits=True)
            return out
        if tokens.ndim != 3 or not hasattr(model, "num_prefix_tokens"):
            raise LearngeneError(
                f"ancestry {self.identity['source']} has no patch tokens, which channel-wise features need; use "
                "features: pooled"
            )
        return tokens[:, model.num_prefix_tokens :]

    def refuse_mismatch(self, shape: ViTShape, num_classes: int, data: DataSpec) -> None:
        """Checks classes, normalisation and image size against the data before a step is trained.

        Args:
            shape: The auxiliary shape.
            num_classes: Classes of the data.
            data: How images are normalised.

        Raises:
            LearngeneError: One line that says which of them do not fit.
        """
        label = self.identity["source"]
        if getattr(self.model, "learngene", {}).get("head") == "segmentation":
            raise LearngeneError(f"ancestry {label} has a segmentation head; distillation needs a classifier")
        for owner, count in (("the data", num_classes), ("the auxiliary shape", shape.num_classes)):
            if count != self.num_classes:
                raise LearngeneError(
                    f"ancestry {label} has {self.num_classes} classes but {owner} has {count}; "
                    "distillation needs the same classes: use an ancestry trained on this data"
                )
        if data.img_size not in (None, shape.img_size):
            raise LearngeneError(
                f"data.img_size {data.img_size} differs from the auxiliary shape's {shape.img_size}; leave it out"
            )
        for field in ("mean", "std"):
            given = getattr(data, field)
            if given is not None and tuple(given) != tuple(self.preprocessing[field]):
                raise LearngeneError(
                    f"data.{field} {tuple(given)} differs from the ancestry's {tuple(self.preprocessing[field])}; "
                    f"leave data.{field} out to use the ancestry's"
                )
        try:
            self(torch.zeros(1, shape.in_chans, shape.img_size, shape.img_size, device=self.device))
        except (AssertionError, RuntimeError) as error:
            size = self.preprocessing["input_size"]
            raise LearngeneError(
                f"ancestry {label} takes images of {size[1]} px with {size[0]} channels, but the auxiliary shape has "
                f"{shape.img_size} px with {shape.in_chans}; change shape.img_size or pass "
                f"ancestry.model_args={{img_size: {shape.img_size}}} ({str(error).splitlines()[0]})"
            ) from None

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.model.parameters()).device


def _folder_name(path: Path) -> str:
    """What to call a folder: a run's descendant after its run."""
    return f"{path.absolute().parent.name}/{path.name}" if path.name == "descendant" else path.name


def made_of(ancestry: Ancestry | None, gene: str | None = None, method: Method | None = None) -> dict[str, str]:
    """What a run depends on besides recipe and images, see ``training.stage.Stage``.

    Args:
        ancestry: The teacher, guide or source of embeddings.
        gene: Digest of the gene that is trained on; None if there is none, or it was never in a file.
        method: Of the gene that is trained; it counts if its tensors were once read otherwise.
    """
    out = {"ancestry": ancestry.identity["sha256"]} if ancestry else {}
    if gene:
        out["gene"] = gene
    if method and method.changes:
        out["format of genes"] = str(method.format_version)
    return out


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a model's state, the same whatever file it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cfg(model: TimmModel) -> dict[str, Any]:
    cfg: dict[str, Any] = model.pretrained_cfg
    return cfg


def _preprocessing(model: TimmModel) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    return {key: list(config[key]) if isinstance(config[key], tuple) else config[key] for key in keys}


def timm_model(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> TimmModel:
    """A timm model by name, with pretrained weights from timm's cache or the network if asked for.

    Raises:
        LearngeneError: If there is no such model, or its weights cannot be had.
    """
    import timm
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without a network it prints a line per retry; one line from us is enough
    architecture = name.split(":", 1)[-1] if ":" in name else name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        if Path(name).is_file():
            raise LearngeneError(
                f"{name}: a file, but no model; give a checkpoint file ({', '.join(CHECKPOINTS)}), a descendant folder "
                "or a timm name"
            )
        raise LearngeneError(f"'{name}' is no file or folder, and no timm model{_nearest_model(architecture)}")
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:160]
        hint = "; the network or timm's cache must hold its weights" if pretrained else ""
        raise LearngeneError(f"timm model {name}: cannot be loaded{hint} ({reason})") from None


def _from_folder(path: Path, arguments: dict[str, Any]) -> tuple[TimmModel, list[str] | None]:
    model = load_descendant(path, **arguments)
    return model, json.loads((path / "config.json").read_text()).get("label_names")


def _from_checkpoint(path: Path, architecture: str | None, arguments: dict[str, Any]) -> TimmModel:
    import timm
    from safetensors.torch import load_file

    if not path.exists():
        raise LearngeneError(f"ancestry {path}: no such file")
    if architecture is None:
        _refuse_gene(path)
        raise LearngeneError(
            f"ancestry {path}: a checkpoint file does not say which model it is; set ancestry.architecture, "
            "for example deit_base_patch16_224"
        )
    try:
        refuse_unknown_architecture(architecture)
    except LearngeneError as error:
        raise LearngeneError(f"ancestry.architecture: {error}") from None
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # torch warns of pickles that it refuses a moment later
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LearngeneError(f"ancestry {path}: no such file") from None
    except pickle.UnpicklingError:
        raise LearngeneError(
            f"ancestry {path}: holds more than tensors and is not unpickled; save its state_dict as .safetensors"
        ) from None
    except Exception as error:  # a damaged file can end torch's reader in any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LearngeneError(f"ancestry {path}: damaged or unreadable ({reason})") from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    model = timm.create_model(architecture, pretrained=False, **arguments)
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise LearngeneError(
            f"ancestry {path}: does not hold the weights of {architecture} with {arguments or 'default arguments'}: "
            f"{lines[1] if len(lines) > 1 else lines[0]}"[:300]
        ) from None
    return model


def _refuse_gene(path: Path) -> None:
    try:
        read_header(path)
    except GeneFileError:
        return
    raise LearngeneError(f"ancestry {path}: a gene file, not a model; expand it, and give the descendant folder")


def refuse_unknown_architecture(name: str) -> None:
    """Raises ``LearngeneError`` if timm has no such architecture; the message names the nearest."""
    import timm

    if not timm.is_model(name):
        raise LearngeneError(f"'{name}' is no timm model{_nearest_model(name)}")


def _nearest_model(name: str) -> str:
    """The closest name that timm knows, as a continuation of a sentence; nothing if none is close."""
    import timm

    match = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""
