"""The sections that most recipes have: ancestry, data, augmentation, training and distillation, as pydantic models.

Unknown keys are errors that name the nearest right one. Every field states its unit and why its default is what it
is. "The paper" below is TLEG and SWS alike, whose code is one DeiT fork, unless another is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from learngene.recipe.mask_values import MASK_VALUES, MaskValues, class_names
from learngene.system.errors import RecipeError, nearest, refuse_unknown
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import PATH_FIELDS

AuxiliaryShape = Annotated[ViTShape, BeforeValidator(ViTShape.from_dict), PlainSerializer(ViTShape.to_dict)]

T = TypeVar("T")
N = TypeVar("N", int, float)


def _shape_changes(given: Any) -> Any:
    """Fields of a shape that differ from another's: a name or a whole shape changes all of them."""
    if isinstance(given, (str, ViTShape)):
        return ViTShape.from_dict(given).to_dict()
    if isinstance(given, Mapping):
        if "named" in given:
            return ViTShape.from_dict(given).to_dict()
        refuse_unknown(given, [*ViTShape.__slots__, *PATH_FIELDS], "shape")
    return given


def _distinct(names: list[T]) -> list[T]:
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{name} is named twice")
    return names


def smallest_first(pair: tuple[N, N]) -> tuple[N, N]:
    """Raises ``RecipeError`` if the first of two numbers is the larger one."""
    if pair[0] > pair[1]:
        raise RecipeError(f"{list(pair)} must be smallest first, then largest")
    return pair


def _no_truth(given: Any) -> Any:
    if given is True:
        raise RecipeError("must be a number, not true")
    return given


def _black_and_white(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] == pair[1]:
        raise RecipeError(f"pixel_range {list(pair)} has one value for black and white")
    return pair


def _without_removed(given: Any) -> Any:
    return {name: entry for name, entry in given.items() if entry is not None} if isinstance(given, Mapping) else given


ShapeChanges = Annotated[dict[str, Any], BeforeValidator(_shape_changes)]
Number = BeforeValidator(_no_truth)
"""What else would take true for 1; false is 0, and so off, wherever that is allowed. Behind the bounds, which a JSON
schema would else not know by their names."""
Positive = Annotated[int, Field(ge=1), Number]
Count = Annotated[int, Field(ge=0), Number]
Fraction = Annotated[float, Field(ge=0, le=1), Number]
Above0 = Annotated[float, Field(gt=0), Number]
FractionAbove0 = Annotated[float, Field(gt=0, le=1), Number]
AtLeast0 = Annotated[float, Field(ge=0), Number]
Beta = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Distinct = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]
"""One name or more, none of them twice."""
ByName = Annotated[dict[str, T], BeforeValidator(_without_removed)]
"""Named entries, but for those that an override or an extending recipe set to null to remove them."""


class Section(BaseModel):
    """A part of a recipe: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        refuse_unknown(given, cls.model_fields)
        if name := given.get("preset"):
            if name not in list(cls.presets):  # a list, as what is given need not be hashable
                raise RecipeError(f"unknown preset '{name}'{nearest(str(name), cls.presets)}")
            given = merge(cls.presets[name], given)
        return given


Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class OwnWeights(Section):
    """What one's own weights do not say of themselves: how images were prepared for them, and which of them count."""

    state: str | None = Field(None, description="which of several states in a checkpoint file, such as model")
    mean: tuple[float, ...] | None = Field(None, description="normalisation it was trained with; timm's by default")
    std: tuple[Above0, ...] | None = Field(None, description="normalisation it was trained with; timm's by default")
    interpolation: Interpolation | None = Field(None, description="of the resize it was trained with")
    crop_pct: FractionAbove0 | None = Field(None, description="share of the image that its evaluation looks at")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images were prepared, as far as it is said."""
        given = {key: getattr(self, key) for key in ("mean", "std", "interpolation", "crop_pct")}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def own_weights(self) -> dict[str, Any]:
        """All that is said."""
        return self.preprocessing | ({"state": self.state} if self.state is not None else {})


class AncestrySpec(OwnWeights):
    """Where the ancestry model comes from."""

    source: str = Field(description="timm model name, descendant folder, or .safetensors/.pth checkpoint file")
    architecture: str | None = Field(None, description="timm architecture of a checkpoint file")
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model, for example img_size")
    pretrained: bool = Field(True, description="false starts from random weights; only useful to try things out")
    sha256: str | None = Field(None, description="refuse any other weights")


class DataSpec(Section):
    """The images and how they enter the model."""

    source: str | list[str] = Field(
        description="digits, a data set made of them such as digits/negative, a folder or tar with train/<class>/ and "
        "val/<class>/, several of them, "
        "images/<split>/ and masks/<split>/, a VOC folder, wds/FOLDER of indexed shards, the name of one of timm's "
        "map-style data sets, such as torch/cifar100 or hfds/..., or of one of the Visual Domain Decathlon, such as "
        "decathlon/aircraft",
    )
    root: Path | None = Field(None, description="where a named data set lies, or where timm keeps it")
    train_split: str = "train"
    val_split: str = "val"
    download: bool = Field(False, description="let timm download a named data set")
    img_size: Positive | None = Field(None, description="side in pixels; by default the model's, if timm records it")
    mean: tuple[float, ...] | None = Field(None, description="normalisation; the ancestry's by default")
    std: tuple[Above0, ...] | None = Field(None, description="normalisation; the ancestry's by default")
    interpolation: Interpolation = "bicubic"  # as DeiT
    crop_pct: FractionAbove0 | None = Field(
        None, description="evaluation: resize to img_size / crop_pct, then crop; 0.875, or 1 up to 64 px"
    )
    match_classes: Literal["name", "place"] = Field(
        "name",
        description="how the classes of images are found among a model's: by name, or by place, whatever they are "
        "called",
    )
    skip_corrupt: bool = Field(False, description="count and leave out images that cannot be decoded")
    workers: Count = Field(2, description="loader processes per training process; results do not depend on it")
    mask_classes: list[str] | int | None = Field(
        None,
        description="segmentation: names or number of the classes; by default the largest value in the training masks "
        "counts, if all smaller ones occur",
    )
    ignore_index: int = Field(255, ge=0, le=255, description="segmentation: the value of pixels that are not judged")
    mask_values: MaskValues | None = Field(
        None,
        description="segmentation: what values or colours of mask pixels mean, such as {0: ground, 255: object} or "
        "{128 64 128: road, 0 0 142: car}; a class by name or number, or null for pixels that are not judged",
    )
    mask_orientation: Literal["seen", "stored"] | None = Field(
        None,
        description="segmentation: whether masks that state no orientation lie on images as these are seen, or as they "
        "are stored; by default the size tells",
    )
    background: tuple[Byte, Byte, Byte] = Field(
        (255, 255, 255), description="red, green and blue of what shows through transparent pixels: white, as on paper"
    )
    pixel_range: Annotated[tuple[float, float], AfterValidator(_black_and_white)] | None = Field(
        None,
        description="values of black and white in images of more than 8 bits; by default those of their format, and 0 "
        "and 1 for floating point",
    )
    labels: bool = Field(
        True, description="false: all images of a folder or tar count, however they lie, and their classes do not"
    )
    max_pixels: Positive = Field(178_956_970, description="an image of more is broken; the default is Pillow's limit")

    @model_validator(mode="after")
    def _classes_differ(self) -> DataSpec:
        names = self.mask_classes
        count = len(names) if isinstance(names, list) else names
        if count is not None and not 2 <= count <= MASK_VALUES:
            raise RecipeError(f"mask_classes {names} must be 2 to {MASK_VALUES} classes, by number or by name")
        if isinstance(names, list) and (twice := [name for name in names if names.count(name) > 1]):
            raise RecipeError(f"mask_classes names '{twice[0]}' twice")
        if self.mask_values is not None:
            class_names(self.mask_values, names)
        return self

    @property
    def sources(self) -> list[str]:
        """The source as a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def names(self) -> list[str]:
        """The sources' file names, by which results know them wherever they lie."""
        return [Path(source).name for source in self.sources]


_PLAIN = dict(color_jitter=0.0, rand_augment=None, erasing=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0, repeats=1)


class Augment(Section):
    """Augmentation of training images, all by timm; the defaults are DeiT's."""

    presets: ClassVar = {
        "deit": {},
        "light": {**_PLAIN, "scale": (0.6, 1.0)},
        "none": {**_PLAIN, "scale": None, "hflip": 0.0},
    }
    preset: str | None = Field(None, description="deit (the default), light (crop and flip), none")
    scale: Annotated[tuple[Above0, Fraction], AfterValidator(smallest_first)] | None = Field(
        (0.08, 1.0), description="area of the random crop; null: no crop"
    )
    ratio: Annotated[tuple[Above0, Above0], AfterValidator(smallest_first)] = Field(
        (3 / 4, 4 / 3), description="aspect ratio of the random crop"
    )
    hflip: Fraction = 0.5
    color_jitter: AtLeast0 = Field(0.4, description="unused while rand_augment is on, as in DeiT")
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: Fraction = 0.25
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    erasing_count: Positive = 1
    mixup: AtLeast0 = 0.8
    cutmix: AtLeast0 = 1.0
    mix_prob: Fraction = 1.0
    mix_switch: Fraction = Field(0.5, description="probability of cutmix when both are on")
    smoothing: Fraction = 0.1
    repeats: Positive = Field(3, description="repeated augmentation: views of an image that follow each other")


class Schedule(Section):
    """Learning rate over time: cosine or polynomial, with a linear warm-up."""

    kind: Literal["cosine", "poly"] = Field("cosine", description="poly: (1 - t / T) ** power, as LSAMD and segmenters")
    power: Above0 = Field(0.9, description="of poly; LSAMD leaves it open, 0.9 is usual in segmentation")
    warmup_epochs: AtLeast0 = Field(5, description="the paper's descendants use 0")
    warmup_lr: AtLeast0 = Field(1e-6, description="not scaled with the batch")
    min_lr: AtLeast0 = Field(1e-5, description="not scaled with the batch")
    stepping: Literal["step", "epoch", "official"] = Field(
        "step",
        description="step: smooth; epoch: constant within an epoch; official: the authors' loop, which sets the rate "
        "after each epoch with that epoch's number and so lags one epoch",
    )


_PRINTED = {"tau_squared": False, "reduction": "batch"}


Divergence = Literal["teacher-student", "student-teacher", "cross-entropy", "hard"]
Target = Literal["logits", "features"]


class Replay(Section):
    """A teacher's outputs, written once and read again: every view has its place in (seed, epoch, position)."""

    folder: Path = Field(description="where outputs are stored; recipes with the same teacher, views and seed share it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="storage type; float32 gives the very run that runs the teacher"
    )
    top_k: Positive | None = Field(
        None,
        description="of logits: how many are stored, the others sharing the rest evenly; null: all are stored",
    )
    patches: bool = Field(False, description="store vectors of patches, too, which take a hundred times the space")
    epochs: Positive | None = Field(
        None, description="epochs of views, and so of outputs, that longer training repeats in turn; null: all differ"
    )
    check: Fraction = Field(
        0.001,
        description="share of the stored views, at least one batch, that the teacher is asked about again when they "
        "are first read on another kind of machine than the one that wrote them; 0: none",
    )
    make: bool = Field(
        True, description="ask the teacher for what is not stored, and store it; false refuses, and says what differs"
    )

    @property
    def decides(self) -> dict[str, Any]:
        """What changes a run's results: nothing, if outputs are stored exactly and for all epochs."""
        given = {"dtype": self.dtype, "top_k": self.top_k, "epochs": self.epochs}
        return {key: value for key, value in given.items() if value != type(self).model_fields[key].default}


def _folder_alone(given: Any) -> Any:
    return {"folder": given} if isinstance(given, (str, Path)) else given


class Distill(Section):
    """Distillation: (1 - alpha) base + alpha KD; TLEG equations 5 and 6, SWS equations 2 to 4."""

    presets: ClassVar = {
        "tleg-official": {},
        "sws-official": {},
        "tleg-paper": _PRINTED | {"divergence": "student-teacher", "alpha": 0.5},
        "sws-paper": _PRINTED | {"divergence": "cross-entropy", "alpha": 0.5},
        "pool": _PRINTED | {"divergence": "cross-entropy", "alpha": 0.9},
        "pool-official": {"divergence": "cross-entropy", "alpha": 0.9, "tau_squared": False},
        "wave": _PRINTED | {"divergence": "teacher-student", "alpha": 0.5},
        "lets-official": {},
        "none": {"alpha": 0.0},
    }
    preset: str | None = Field(
        None,
        description="tleg-official, sws-official, lets-official (all the defaults below), tleg-paper, sws-paper, pool, "
        "pool-official (whose code averages over classes as well), wave (KL and CE, equally), none (labels only). "
        "The papers leave alpha unstated: 0.5 for TLEG and SWS, and for the pool its code's 0.1 on labels, 0.9 here",
    )
    target: Target = Field(
        "logits", description="logits, for which the teacher needs the data's classes; features, which need no classes"
    )
    alpha: Fraction = Field(1.0, description="weight of distillation; the published commands use 1.0: no labels at all")
    temperature: Above0 = 1.0
    divergence: Divergence = Field(
        "teacher-student",
        description="KL(teacher || student) as the code, KL(student || teacher), soft CE, or hard: CE with the "
        "teacher's first guess, as the codes' DeiT fork offers, too; temperature and reduction play no part in it",
    )
    tau_squared: bool = Field(True, description="multiply by temperature squared")
    reduction: Literal["numel", "batch"] = Field(
        "numel", description="divide by batch x classes as the authors' code, or by the batch as the textbook"
    )
    replay: Annotated[Replay, BeforeValidator(_folder_alone)] | None = Field(
        None, description="a folder, or more about it: the teacher's outputs are stored there, or read from it"
    )


Tracked = Literal["tensorboard", "trackio", "wandb"]

APART = {"shard": ("ema_decay", "compile"), "quantize": ("ema_decay", "recompute", "shard")}
"""What a train section cannot have together; an average makes NaN of ranges that begin at infinity."""


class Train(Section):
    """One training run; the defaults are the papers' and so DeiT's."""

    presets: ClassVar = {
        "deit": {},
        "official": {"schedule": {"stepping": "official"}, "precision": "fp16", "ema_decay": 0.99996},
        "laptop": {"batch_size": 64, "lr": 1e-3, "lr_batch": None, "precision": "fp32"}
        | {"schedule": {"warmup_epochs": 0.5}, "augment": {"preset": "light"}},
    }
    preset: str | None = Field(
        None,
        description="deit (the default), official (the authors' rate lag, fp16 and unused EMA), "
        "laptop (small batches and light augmentation for small images)",
    )
    epochs: Positive = 100
    batch_size: Positive = Field(512, description="images per optimizer step, whatever the number of processes")
    micro_batch: Positive | None = Field(None, description="most images a process holds at once; gradients add up")
    optimizer: str = Field("adamw", description="any timm optimizer")
    lr: Above0 = Field(5e-4, description="base rate for lr_batch images per step")
    lr_batch: Positive | None = Field(512, description="scale the rate by batch_size / lr_batch; null: do not scale")
    weight_decay: AtLeast0 = Field(0.05, description="not applied to norms, biases, position embeddings")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Above0 = 1e-8
    layer_decay: FractionAbove0 | None = Field(None, description="fine-tuning: rate per layer, by timm")
    quantize: Literal["int8"] | None = Field(
        None, description="fine-tuning: int8 rounds as `export --precision int8` will, so that its file loses less"
    )
    clip_grad: Above0 | None = Field(None, description="largest gradient norm; the papers do not clip")
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    class_weight: Literal["balanced"] | None = Field(
        None,
        description="balanced: labels of a class weigh images / (classes x images of the class), scikit-learn's rule; "
        "null: all weigh 1",
    )
    sampling: Literal["balanced"] | None = Field(
        None, description="balanced: an epoch sees all classes equally often; null: all images"
    )
    drop_path: Fraction = Field(0.0, description="of the last layer; TLEG's auxiliary 0, SWS's and all descendants 0.1")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="torch.compile; on GPUs it pays after about a minute")
    recompute: bool = Field(
        False, description="activations of layers again for their gradients, instead of keeping them: less memory"
    )
    shard_teachers: bool = Field(
        False, description="several processes hold a share of every teacher each, and gather a layer when it is needed"
    )
    shard: bool = Field(
        False,
        description="fine-tuning: several processes hold a share of the model, gradients and optimizer's state each",
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="track an exponential average of the weights")
    use_ema: bool = Field(False, description="evaluate and keep the average; the authors never do")
    seed: Seed = 0
    eval_every: Positive = Field(1, description="epochs between evaluations; the last epoch is always evaluated")
    save_every: Positive = Field(1, description="epochs between saved states")
    track: Annotated[list[Tracked] | None, BeforeValidator(lambda it: [it] if isinstance(it, str) else it)] = Field(
        None, description="where the numbers of epochs go, too; null: tensorboard, if it is installed; []: nowhere"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.use_ema and self.ema_decay is None:
            raise RecipeError("use_ema needs ema_decay, for example 0.999")
        if self.recompute and self.compile:
            raise RecipeError("recompute: a compiled model decides by itself what it keeps; leave out one of the two")
        for name, others in APART.items():
            other = next((each for each in others if getattr(self, each)), None) if getattr(self, name) else None
            if other:
                raise RecipeError(f"{name}: not together with {other}; leave out one of the two")
        if self.shard and self.precision == "fp16":
            raise RecipeError("shard: not together with precision=fp16; leave out one of the two")
        if self.class_weight and self.sampling:
            raise RecipeError("class_weight and sampling would even classes out twice; give one of the two")
        if self.batch_size % 2 and (self.augment.mixup or self.augment.cutmix):
            raise RecipeError(f"mixup and cutmix pair images, so batch_size must be even, not {self.batch_size}")
        if (warmup := self.schedule.warmup_epochs) >= self.epochs and warmup > 0:
            raise RecipeError(
                f"warmup_epochs {warmup:g} leave nothing of {self.epochs} epochs; lower schedule.warmup_epochs"
            )
        return self


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A deep merge of two mappings; ``over`` wins."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(value, Section):
            value = value.model_dump(exclude_unset=True)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
