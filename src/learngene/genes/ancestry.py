"""The ancestry model: a frozen teacher, pinned by name, tag and sha256 of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from learngene.genes.gene_file import read_header
from learngene.methods import Method
from learngene.recipe.sections import AncestrySpec, DataSpec
from learngene.system.errors import GeneFileError, LearngeneError
from learngene.vits.checkpoint import is_checkpoint, load_checkpoint
from learngene.vits.class_names import class_names
from learngene.vits.descendant_folder import load_descendant
from learngene.vits.input_size import image_config
from learngene.vits.shape import ViTShape
from learngene.vits.timm_models import TimmModel, timm_model


class Ancestry(nn.Module):
    """Any timm classifier, frozen and in evaluation mode.

    Attributes:
        model: The timm model.
        identity: ``name``, ``tag``, ``source`` and ``sha256`` of the weights, as stored in every gene.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``input_size`` it was trained with.
        num_classes: Number of its outputs.
        class_names: Names of its classes, if its files say so.
    """

    _load: Callable[[], Ancestry] | None = None

    def __init__(
        self,
        source: str | Path | nn.Module,
        *,
        architecture: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        pretrained: bool = True,
        sha256: str | None = None,
        state: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        """Loads the model and fingerprints its weights.

        Args:
            source: A timm model name (with its tag, to pin it), a descendant folder, a checkpoint file, of which
                nothing is executed, or a timm model in memory.
            architecture: timm's name of the architecture, for a checkpoint file.
            model_args: Arguments for ``timm.create_model``, for example ``{"img_size": 32}``.
            pretrained: Whether a timm name loads its pretrained weights (from timm's cache or the network). Without
                them the weights are random, and the same every time.
            sha256: If given, any other weights are refused.
            state: Which of several states in a checkpoint file, such as ``model`` beside ``model_ema``; by default as
                timm chooses, an average first.
            preprocessing: ``mean``, ``std``, ``interpolation`` or ``crop_pct`` of the weights' training, where they are
                not what the source says; a checkpoint file says nothing, so it gets the architecture's.

        Raises:
            LearngeneError: If the source is unknown, unreadable, unsafe, or has another sha256.
        """
        super().__init__()
        arguments = dict(model_args or {})
        self.model: TimmModel
        if isinstance(source, nn.Module):
            self.model, label = source, str(_cfg(source).get("architecture", type(source).__name__))
        elif is_checkpoint(source, architecture) or str(source).lower().endswith(".safetensors"):
            refuse_gene(Path(source))
            self.model, label = load_checkpoint(source, architecture, arguments, state=state), Path(source).name
        elif architecture is not None or state is not None:
            given = "architecture" if architecture is not None else "state"
            raise LearngeneError(
                f"ancestry {source}: {given} is for a checkpoint file, which this is not; leave it out"
            )
        elif Path(source).is_dir():
            self.model, label = load_descendant(source, **arguments), _folder_name(Path(source))
        else:
            self.model, label = timm_model(str(source), pretrained, arguments), str(source)
        self.model.eval().requires_grad_(False)
        if preprocessing:
            _prepared(self.model, label, preprocessing)
        cfg = self.model.pretrained_cfg
        self._read_model()
        self.identity = {
            "name": str(cfg.get("architecture") or label),
            "tag": _tag(source, self.model) if pretrained else "random-weights",
            "source": label,
            "sha256": weights_sha256(self.model),
        }
        if sha256 is not None and sha256 != self.identity["sha256"]:
            raise LearngeneError(
                f"ancestry {label}: its weights have sha256 {self.identity['sha256']}, not {sha256}; "
                "the name now means other weights"
            )

    @classmethod
    def absent(cls, model: nn.Module, identity: Mapping[str, str], load: Callable[[], Ancestry]) -> Ancestry:
        """An ancestry without weights, which are loaded when somebody asks for them.

        Args:
            model: On torch's meta device.
            identity: Whose weights they are.
            load: Gives the same ancestry with its weights.
        """
        out = cls.__new__(cls)
        nn.Module.__init__(out)
        out.model, out.identity, out._load = model.eval().requires_grad_(False), dict(identity), load
        out._read_model()
        return out

    def _read_model(self) -> None:
        """What the model says of itself."""
        self.preprocessing = _preprocessing(self.model)
        self.num_classes = int(self.model.num_classes)
        self.class_names = class_names(self.model)

    @property
    def has_weights(self) -> bool:
        """Whether it can be asked about images."""
        return self._load is None

    def with_weights(self) -> Ancestry:
        """Itself, with its weights from now on."""
        if self._load is not None:
            found = self._load()
            if found.identity["sha256"] != self.identity["sha256"]:
                raise LearngeneError(
                    f"ancestry {self.identity['source']}: its weights have changed since the run began"
                )
            self.model, self._load = found.model, None
        return self

    @classmethod
    def from_spec(cls, spec: AncestrySpec) -> Ancestry:
        """Loads the ancestry a recipe names."""
        return cls(
            spec.source,
            architecture=spec.architecture,
            model_args=spec.model_args,
            pretrained=spec.pretrained,
            sha256=spec.sha256,
            state=spec.state,
            preprocessing=spec.preprocessing,
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
        trained = "distillation needs the same classes: use an ancestry trained on this data"
        for owner, count, remedy in (
            ("the data", num_classes, trained),
            ("the auxiliary shape", shape.num_classes, f"set shape.num_classes={self.num_classes}"),
        ):
            if count != self.num_classes:
                raise LearngeneError(
                    f"ancestry {label} has {self.num_classes} classes but {owner} has {count}; {remedy}"
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
                    f"leave data.{field} out to use the ancestry's, or set ancestry.{field} if it was trained so"
                )
        try:
            self(torch.zeros(1, shape.in_chans, shape.img_size, shape.img_size, device=self.device))
        except (AssertionError, RuntimeError) as error:
            size = self.preprocessing["input_size"]
            remedy = f"change shape.img_size or pass ancestry.model_args={{img_size: {shape.img_size}}}"
            if shape.in_chans != size[0]:
                remedy = f"set shape.in_chans={size[0]}"
            raise LearngeneError(
                f"ancestry {label} takes images of {size[1]} px with {size[0]} channels, but the auxiliary shape has "
                f"{shape.img_size} px with {shape.in_chans}; {remedy} ({str(error).splitlines()[0]})"
            ) from None

    @property
    def label(self) -> str:
        """Its name, tag and the start of its sha256, as commands show it."""
        name, tag, pin = (self.identity[key] for key in ("name", "tag", "sha256"))
        return f"{name}{f' {tag}' if tag else ''}, sha256 {pin[:12]}"

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
    return {key: list(value) if isinstance(value, tuple) else value for key, value in image_config(model).items()}


def _prepared(model: TimmModel, label: str, preprocessing: Mapping[str, Any]) -> None:
    """Makes a model say how images are prepared for it."""
    chans = _preprocessing(model)["input_size"][0]
    for key in ("mean", "std"):
        if len(values := preprocessing.get(key, ())) not in (0, chans):
            raise LearngeneError(f"ancestry {label}: {key} {tuple(values)} must have {chans} values, one per channel")
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **preprocessing}


def _tag(source: str | Path | nn.Module, model: TimmModel) -> str:
    """The tag of the weights. Of a model in memory timm's tag says what could have been loaded, so only ours counts."""
    tag = str(model.pretrained_cfg.get("tag") or "")
    known = not isinstance(source, nn.Module) or hasattr(model, "learngene") or tag == "learngene_trained"
    return tag if known else ""


def refuse_gene(path: Path) -> None:
    """Raises ``LearngeneError`` if a file that should hold a model is a gene."""
    if not path.is_file():
        return
    try:
        read_header(path)
    except GeneFileError:
        return
    raise LearngeneError(f"ancestry {path}: a gene file, not a model; expand it, and give the descendant folder")
