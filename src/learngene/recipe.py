"""Recipes: everything a run needs to know, as pydantic models that YAML, flags and Python all build.

A recipe is read with ``load_recipe``; unknown keys are errors that name the nearest right one. Every field states
its unit and why its default is what it is. "The paper" below is TLEG and SWS alike, whose code is one DeiT fork.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from learngene.errors import LearngeneError, RecipeError, nearest, refuse_unknown
from learngene.methods import method
from learngene.shape import ViTShape

if TYPE_CHECKING:
    from learngene.compare.recipe import CompareRecipe

Shape = Annotated[ViTShape, BeforeValidator(ViTShape.from_dict), PlainSerializer(ViTShape.to_dict)]


def _shape_changes(given: Any) -> Any:
    """Fields of a shape that differ from another's: a name or a whole shape changes all of them."""
    if isinstance(given, (str, ViTShape)):
        return ViTShape.from_dict(given).to_dict()
    if isinstance(given, Mapping):
        if "named" in given:
            return ViTShape.from_dict(given).to_dict()
        refuse_unknown(given, ViTShape.__slots__, "shape")
    return given


ShapeChanges = Annotated[dict[str, Any], BeforeValidator(_shape_changes)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Above0 = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A part of a recipe: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        section = cls.__name__.removesuffix("Spec").removesuffix("Recipe").lower()
        refuse_unknown(given, cls.model_fields, section)
        if name := given.get("preset"):
            if name not in cls.presets:
                raise RecipeError(f"{section}: unknown preset '{name}'{nearest(str(name), cls.presets)}")
            given = merge(cls.presets[name], given)
        return given


DATA_FOLDER = "$DATA"
"""What stands in recipes for a folder of image sets that the command line gives."""

SectionType = TypeVar("SectionType", bound=Section)


class AncestrySpec(Section):
    """Where the ancestry model comes from."""

    source: str = Field(description="timm model name, descendant folder, or .safetensors/.pth checkpoint file")
    architecture: str | None = Field(None, description="timm architecture of a checkpoint file")
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model, for example img_size")
    pretrained: bool = Field(True, description="false starts from random weights; only useful to try things out")
    sha256: str | None = Field(None, description="refuse any other weights")


class DataSpec(Section):
    """The images and how they enter the model."""

    source: str | list[str] = Field(
        description="digits, a folder or tar with train/<class>/ and val/<class>/, several of them, "
        "or the name of one of timm's map-style data sets, such as torch/cifar100 or hfds/..."
    )
    root: Path | None = Field(None, description="where timm keeps or finds a named data set")
    train_split: str = "train"
    val_split: str = "val"
    download: bool = Field(False, description="let timm download a named data set")
    img_size: Positive | None = Field(
        None, description="side in pixels; what the model takes by default, which timm does not always record"
    )
    mean: tuple[float, ...] | None = Field(None, description="normalisation; the ancestry's by default")
    std: tuple[Above0, ...] | None = Field(None, description="normalisation; the ancestry's by default")
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = Field(
        "bicubic", description="as DeiT"
    )
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=1,
        description="evaluation: resize to img_size / crop_pct, then crop; 0.875, or 1 up to 64 px",
    )
    skip_corrupt: bool = Field(False, description="count and leave out images that cannot be decoded")
    workers: int = Field(2, ge=0, description="loader processes per training process; results do not depend on it")

    @property
    def sources(self) -> list[str]:
        """The source as a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)


SMALL_IMAGE = 64
"""Side in pixels up to which evaluation does not crop."""


def default_crop(img_size: int) -> float:
    """The share of the image that evaluation looks at: DeiT's 0.875, but all of a small image, which has no border."""
    return 1.0 if img_size <= SMALL_IMAGE else 0.875


_UNMIXED: dict[str, Any] = {
    "color_jitter": 0.0,
    "rand_augment": None,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "smoothing": 0.0,
    "repeats": 1,
}


class Augment(Section):
    """Augmentation of training images, all by timm; the defaults are DeiT's."""

    presets: ClassVar = {
        "deit": {},
        "light": _UNMIXED | {"scale": (0.6, 1.0)},
        "none": _UNMIXED | {"scale": None, "hflip": 0.0},
    }
    preset: str | None = Field(None, description="deit (the default), light (crop and flip), none")
    scale: tuple[Above0, Fraction] | None = Field((0.08, 1.0), description="area of the random crop; null: no crop")
    ratio: tuple[Above0, Above0] = Field((3 / 4, 4 / 3), description="aspect ratio of the random crop")
    hflip: Fraction = 0.5
    color_jitter: float = Field(0.4, ge=0, description="unused while rand_augment is on, as in DeiT")
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: Fraction = 0.25
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    erasing_count: Positive = 1
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    mix_prob: Fraction = 1.0
    mix_switch: Fraction = Field(0.5, description="probability of cutmix when both are on")
    smoothing: Fraction = 0.1
    repeats: Positive = Field(3, description="repeated augmentation: views of an image that follow each other")

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name, pair in (("scale", self.scale), ("ratio", self.ratio)):
            if pair is not None and pair[0] > pair[1]:
                raise RecipeError(f"augment: {name} {list(pair)} must be smallest first, then largest")
        return self


class Schedule(Section):
    """Learning rate over time: cosine with a linear warm-up."""

    warmup_epochs: float = Field(5, ge=0, description="the paper's descendants use 0")
    warmup_lr: float = Field(1e-6, ge=0, description="not scaled with the batch")
    min_lr: float = Field(1e-5, ge=0, description="not scaled with the batch")
    stepping: Literal["step", "epoch", "official"] = Field(
        "step",
        description="step: smooth; epoch: constant within an epoch; official: the authors' loop, which sets the rate "
        "after each epoch with that epoch's number and so lags one epoch",
    )


class Distill(Section):
    """Soft distillation: (1 - alpha) base + alpha KD; TLEG equations 5 and 6, SWS equations 2 to 4."""

    presets: ClassVar = {
        "tleg-paper": {
            "divergence": "student-teacher",
            "alpha": 0.5,
            "tau_squared": False,
            "reduction": "batch",
        },
        "sws-paper": {
            "divergence": "cross-entropy",
            "alpha": 0.5,
            "tau_squared": False,
            "reduction": "batch",
        },
        "tleg-official": {},
        "sws-official": {},
        "none": {"alpha": 0.0},
    }
    preset: str | None = Field(
        None,
        description="tleg-official, sws-official (both the defaults below), tleg-paper, sws-paper, none (labels only). "
        "The papers leave alpha unstated; their presets take 0.5",
    )
    alpha: Fraction = Field(1.0, description="weight of distillation; the published commands use 1.0: no labels at all")
    temperature: float = Field(1.0, gt=0)
    divergence: Literal["teacher-student", "student-teacher", "cross-entropy"] = Field(
        "teacher-student",
        description="KL(teacher || student) as the code, KL(student || teacher), or soft CE",
    )
    tau_squared: bool = Field(True, description="multiply by temperature squared")
    reduction: Literal["numel", "batch"] = Field(
        "numel", description="divide by batch x classes as the authors' code, or by the batch as the textbook"
    )


class Train(Section):
    """One training run; the defaults are the papers' and so DeiT's."""

    presets: ClassVar = {
        "deit": {},
        "official": {"schedule": {"stepping": "official"}, "precision": "fp16", "ema_decay": 0.99996},
        "laptop": {
            "batch_size": 64,
            "lr": 1e-3,
            "lr_batch": None,
            "schedule": {"warmup_epochs": 0.5},
            "augment": {"preset": "light"},
            "precision": "fp32",
        },
    }
    preset: str | None = Field(
        None,
        description="deit (the default), official (the authors' rate lag, fp16 and unused EMA), "
        "laptop (small batches and light augmentation for small images)",
    )
    epochs: Positive = 100
    batch_size: Positive = Field(
        512, description="images per optimizer step over all processes: kept whatever their number"
    )
    micro_batch: Positive | None = Field(
        None, description="most images a process holds at once; smaller ones are accumulated to batch_size"
    )
    optimizer: str = Field("adamw", description="any timm optimizer")
    lr: float = Field(5e-4, gt=0, description="base rate for lr_batch images per step")
    lr_batch: Positive | None = Field(512, description="scale the rate by batch_size / lr_batch; null: do not scale")
    weight_decay: float = Field(0.05, ge=0, description="not applied to norms, biases, position embeddings")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    layer_decay: float | None = Field(None, gt=0, le=1, description="fine-tuning: rate per layer, by timm")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; the papers do not clip")
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    drop_path: Fraction = Field(0.0, description="of the last layer; TLEG's auxiliary 0, SWS's and all descendants 0.1")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="torch.compile; on GPUs it pays after about a minute")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="track an exponential average of the weights")
    use_ema: bool = Field(False, description="evaluate and keep the average; the authors never do")
    seed: Seed = 0
    eval_every: Positive = Field(1, description="epochs between evaluations; the last epoch is always evaluated")
    save_every: Positive = Field(1, description="epochs between saved states")

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.use_ema and self.ema_decay is None:
            raise RecipeError("train: use_ema needs ema_decay, for example 0.999")
        if self.batch_size % 2 and (self.augment.mixup or self.augment.cutmix):
            raise RecipeError(f"train: mixup and cutmix pair images, so batch_size must be even, not {self.batch_size}")
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs > 0:
            raise RecipeError(
                f"train: warmup_epochs {self.schedule.warmup_epochs:g} leave nothing of {self.epochs} epochs; "
                "lower schedule.warmup_epochs"
            )
        return self


class CondenseRecipe(Section):
    """Ancestry and data to a gene file."""

    kind: Literal["condense"] = "condense"
    method: str = Field(description="a method whose gene is trained, see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings, see `learngene methods`")
    ancestry: AncestrySpec | None = Field(None, description="the teacher; not needed when distill.alpha is 0")
    shape: Shape = Field(description="the auxiliary shape: a name, or a mapping of ViTShape's fields")
    data: DataSpec
    train: Train = Train()
    distill: Distill = Distill()
    out: Path = Field(Path("runs/gene"), description="run folder; the gene is written beside it as OUT.safetensors")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="storage type of the gene file")

    @model_validator(mode="before")
    @classmethod
    def _distillation_of_the_method(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("method"), str) and "distill" not in given:
            return {**given, "distill": {"preset": method(given["method"]).distillation}}
        return given

    @model_validator(mode="after")
    def _method_fits(self) -> CondenseRecipe:
        kind = method(self.method, self.settings)
        if "condense" not in kind.origins:
            how = "its gene is made by `learngene extract`" if kind.origins else "it needs no gene"
            raise RecipeError(f"method {self.method} is not trained: {how}")
        kind.refuse_auxiliary(self.shape)
        if self.ancestry is None and self.distill.alpha > 0:
            raise RecipeError(f"ancestry is missing: distill.alpha {self.distill.alpha:g} needs a teacher")
        if self.train.layer_decay is not None:
            raise RecipeError("train: layer_decay is for fine-tuning; what is condensed has no layers of its own")
        return self


class FinetuneRecipe(Section):
    """A gene, a descendant folder or a timm architecture to a fine-tuned descendant folder."""

    kind: Literal["finetune"] = "finetune"
    model: str = Field(
        description="gene file, descendant folder, timm model name, or scratch for random weights of `shape`"
    )
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model, for example img_size")
    pretrained: bool = Field(True, description="false: a timm model starts from random weights, by train.seed")
    shape: ShapeChanges | None = Field(
        None,
        description="of a gene's descendant: the fields that differ from the auxiliary shape, often just depth",
    )
    options: dict[str, Any] = Field({}, description="the method's choices at expansion, and layers and modules")
    data: DataSpec
    train: Train = Train()
    out: Path = Field(Path("runs/descendant"), description="run folder; the descendant is written to OUT/descendant")


Recipe = Union[CondenseRecipe, FinetuneRecipe, "CompareRecipe"]


def _kinds() -> dict[str, Any]:
    from learngene.compare.recipe import CompareRecipe  # which is made of the sections above

    return {"condense": CondenseRecipe, "finetune": FinetuneRecipe, "compare": CompareRecipe}


def load_recipe(path: str | Path, overrides: Sequence[str] = (), data: Path | None = None) -> Recipe:
    """Reads a YAML recipe, applies ``key.sub=value`` overrides and validates it.

    Args:
        path: The recipe. Its ``extends: other.yaml`` entry, if any, names a recipe beside it to build on.
        overrides: Assignments whose values are YAML: ``train.epochs=5``, ``settings.stages=[2,2]``.
        data: The folder that the recipe calls ``$DATA``, if it does.

    Raises:
        RecipeError: If the file, a key or a value is wrong; the message names the place and the nearest right key.
    """
    return build_recipe(with_data(read_fields(path, overrides), data), where=str(path))


def read_fields(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a YAML recipe with what it extends and ``key.sub=value`` overrides, not yet validated."""
    return apply_overrides(_read_yaml(Path(path), seen=()), overrides)


def with_data(fields: Any, data: Path | None) -> Any:
    """Fields with every ``$DATA`` replaced by a folder, so that recipes do not say where images lie.

    Raises:
        RecipeError: If a recipe needs the folder and there is none.
    """
    if isinstance(fields, Mapping):
        return {key: with_data(value, data) for key, value in fields.items()}
    if isinstance(fields, list):
        return [with_data(value, data) for value in fields]
    if isinstance(fields, str) and DATA_FOLDER in fields:
        if data is None:
            raise RecipeError(f"the recipe reads '{fields}'; say where that folder is with --data FOLDER")
        return fields.replace(DATA_FOLDER, str(data))
    return fields


def apply_overrides(fields: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Fields with ``key.sub=value`` assignments applied; values are YAML.

    Raises:
        RecipeError: If an assignment is not of that form.
    """
    out = merge(fields, {})
    for assignment in overrides:
        key, sign, value = assignment.partition("=")
        if not sign or not key:
            raise RecipeError(f"override '{assignment}' is not of the form key.sub=value")
        nested: Any = _parse_value(value, assignment)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def build_recipe(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validates the fields of a recipe.

    Args:
        fields: Plain values, as YAML gives them; ``kind`` says which recipe it is.
        where: What error messages call the recipe.

    Raises:
        RecipeError: One line that names the place, what is wrong, and what would be right.
    """
    kind, kinds = fields.get("kind", "condense" if "method" in fields else "finetune"), _kinds()
    if kind not in kinds:
        raise RecipeError(f"{where}: unknown kind '{kind}'{nearest(str(kind), kinds)}")
    built: Recipe = validated(kinds[kind], fields, where)
    return built


def validated(kind: type[SectionType], fields: Mapping[str, Any], where: str) -> SectionType:
    """Builds a section from plain values.

    Raises:
        RecipeError: One line that names the place, what is wrong, and what would be right.
    """
    try:
        return kind.model_validate(dict(fields))
    except LearngeneError as error:
        raise RecipeError(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        loc = [str(part) for part in first["loc"]]
        place = f"{'.'.join(loc)}: " if loc else ""
        message = first["msg"].removeprefix("Value error, ")
        message = message.removeprefix(f"{loc[-1]}: ") if loc else message
        given = first.get("input")
        value = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
        raise RecipeError(f"{where}: {place}{message}{value}") from None


def dump_recipe(recipe: Section) -> str:
    """The whole resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A deep merge of two mappings; ``over`` wins."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(value, Section):
            value = value.model_dump(exclude_unset=True)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RecipeError(f"{path}: extends itself")
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise RecipeError(f"{path}: not valid YAML: {line}") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    base = fields.pop("extends", None)
    if not isinstance(base, str | None):
        raise RecipeError(f"{path}: extends must name one recipe, not {base!r}")
    return merge(_read_yaml(path.parent / base, (*seen, path)), fields) if base else fields


def _parse_value(text: str, assignment: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"override '{assignment}': the value is not valid YAML") from None
    if isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text; people who type a learning rate mean the number.
        try:
            return float(value)
        except ValueError:
            return value
    return value
