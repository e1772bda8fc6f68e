"""What every learngene method says about itself, with the answers that most of them share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from learngene.system.errors import ShapeError, nearest, refuse_unknown
from learngene.vits.shape import MAX_DEPTH, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor

DEEPEST = 48
"""Deepest shape that planning looks at, unless the auxiliary model is deeper still."""

ANY_WIDTH = ("mlp_ratio", "patch_size", "in_chans", "class_token", "arch", "arch_args")
"""What shapes share with the auxiliary one if a method makes other widths than its own."""

Origin = Literal["condense", "extract", "search"]
Making = Literal["stage", "pool", "hyper"]
Part = Literal["stem", "norm", "head"]


@dataclass(frozen=True)
class Method(ABC):
    """A way to make the weights of any shape from a few tensors. Its fields are its settings, fixed in a gene.

    A method is a small frozen dataclass with no tensors of its own: it names the tensors that a gene of a given
    auxiliary shape holds, and how the weights of any other shape follow from them. Settings of the types ``bool``,
    ``int`` and ``tuple[int, ...]`` are checked here, others by their method.

    Attributes:
        name: What recipes and the command line call it.
        title: Its name in full.
        paper: Where it comes from.
        origins: How a gene of it comes to be: ``condense`` trains one, ``extract`` reads it off a trained ViT,
            ``search`` finds out which of its blocks to read off, and a method with none of them needs no gene.
        needs_data: Whether extracting looks at the ancestry's activations on data.
        making: Which module of ``making`` trains its gene, if it is trained: ``stage`` in one stage at the auxiliary
            shape, ``pool`` rows first and then paths, ``hyper`` a hypernetwork on many shapes.
        task_aware: Whether its weights depend on a task's embedding.
        distillation: The preset of ``recipe.sections.Distill`` that condensing takes by default.
        kept_fields: What every shape that is made shares with the auxiliary shape.
        makes_paths: Whether it makes stitched shapes, too.
        any_depth: Whether training at one depth is meant to serve others.
        takes_arrays: Whether ``weights`` takes numpy arrays, too, and gives the same bits, so that expanding needs no
            torch.
        options: Choices that may differ at every expansion, each with a line of explanation.
        changes: What was corrected, once genes existed, in how their tensors are read. A gene from before is refused,
            and results that rest on such genes are computed anew.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    origins: ClassVar[tuple[Origin, ...]] = ("condense",)
    needs_data: ClassVar[bool] = False
    making: ClassVar[Making] = "stage"
    task_aware: ClassVar[bool] = False
    distillation: ClassVar[str] = "none"
    kept_fields: ClassVar[tuple[str, ...]] = ("embed_dim", "num_heads", *ANY_WIDTH)
    makes_paths: ClassVar[bool] = False
    any_depth: ClassVar[bool] = True
    takes_arrays: ClassVar[bool] = False
    options: ClassVar[Mapping[str, str]] = {}
    changes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, where = getattr(self, field.name), f"{self.name}: {field.name} must be"
            if field.type in ("bool", bool) and not isinstance(value, bool):
                raise ShapeError(f"{where} true or false, not {value!r}")
            if field.type in ("int", int) and not is_count(value, least := field.metadata.get("minimum", 1)):
                raise ShapeError(
                    f"{where} {'a positive integer' if least else 'an integer of at least 0'}, not {value!r}"
                )
            if field.type in ("tuple[int, ...]", tuple[int, ...]):
                if not isinstance(value, list | tuple) or not value or not all(map(is_count, value)):
                    example = f" such as {list(field.default)}" if isinstance(field.default, tuple) else ""
                    raise ShapeError(f"{where} a list of positive integers{example}, not {value!r}")
                object.__setattr__(self, field.name, tuple(value))

    @property
    def format_version(self) -> int:
        """The version of its gene files: one more for each of the ``changes``."""
        return 1 + len(self.changes)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The ordinary parts of a ViT that a gene carries besides its layers."""
        return ("stem", "norm", "head")

    @property
    def made_by(self) -> str:
        """How its gene comes to be, for messages."""
        commands = " or ".join(f"`learngene {origin}`" for origin in self.origins)
        return f"its gene is made by {commands}" if commands else "it needs no gene"

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:  # noqa: B027 - most methods refuse none
        """Raises ``ShapeError`` if no gene can have this auxiliary shape."""

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Raises ``ShapeError`` if a gene with this auxiliary shape cannot make ``shape``, or an option is wrong.

        By default depth, classes, image size and ending may differ; heads are never reinterpreted.
        """
        for key in options.keys() & ViTShape.__dataclass_fields__.keys() - self.options.keys():
            raise ShapeError(
                f"{self.name}: {key} belongs to the shape; in Python expand(gene.shape.replace({key}=...)), on the "
                f"command line --{key.replace('_', '-')}, in a recipe shape.{key}"
            )
        refuse_unknown(options, self.options, f"{self.name}: expansion options")
        if not self.makes_paths:
            require_plain(shape)
        for field in self.kept_fields:
            have, want = getattr(auxiliary, field), getattr(shape, field)
            if have != want:
                if field.startswith("arch"):
                    have, want = (str(dict(each) if field == "arch_args" else each or "''") for each in (have, want))
                raise ShapeError(f"shape: this gene has {field} {have}, not {want}; only its own {field} can be made")

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """Every (embed_dim, num_heads) that can be made, for ``plan``; most methods keep their own."""
        return [(auxiliary.embed_dim, auxiliary.num_heads)]

    def shapes(self, auxiliary: ViTShape, base: ViTShape) -> Iterator[Shape]:
        """Every shape that ``plan`` looks at: by default all depths at all widths; not all of them can be made.

        ``base`` is the auxiliary shape with the classes and the image size of the task.
        """
        for depth, (width, heads) in product(range(1, max(DEEPEST, base.depth) + 1), self.widths(auxiliary)):
            yield base.replace(depth=depth, embed_dim=width, num_heads=heads)

    def beyond(self, auxiliary: ViTShape, shape: Shape) -> bool:
        """Whether ``plan`` shall say that a shape is deeper than what the gene was condensed at."""
        return len(shape.segments) == 1 and shape.depth > auxiliary.depth

    def trained_sizes(self, auxiliary: ViTShape) -> dict[str, tuple[int, int]]:
        """Least and most width and depth that training at the auxiliary shape alone is meant for."""
        return {
            "embed_dim": (auxiliary.embed_dim, auxiliary.embed_dim),
            "depth": (1, MAX_DEPTH) if self.any_depth else (auxiliary.depth, auxiliary.depth),
        }

    def label(self, auxiliary: ViTShape, shape: Shape) -> str:
        """What ``plan`` calls a shape, in columns."""
        width = f"  width {shape.embed_dim:4d}" if len(self.widths(auxiliary)) > 1 else ""
        return f"depth {shape.depth:3d}{width}"

    def flags(self, auxiliary: ViTShape, shape: Shape) -> str:
        """The flags with which ``learngene expand`` makes a shape, besides those of the task."""
        width = f" --embed-dim {shape.embed_dim} --num-heads {shape.num_heads}"
        return f"--depth {shape.depth}" + (width if shape.embed_dim != auxiliary.embed_dim else "")

    def named_shape(self, auxiliary: ViTShape, name: str) -> Shape:
        """The shape that a name such as ``4+2`` stands for, in methods that make paths; else ``ShapeError``."""
        raise ShapeError(f"{self.name}: has no paths, and so no '{name}'; give a depth")

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """The whole layers that the gene holds; by default all of the auxiliary model's."""
        return [f"layer{i}" for i in range(auxiliary.depth)]

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Name and shape of the tensors of the gene's layers; the ordinary parts are not listed."""
        sizes = auxiliary.layer_params()
        return {f"{layer}.{name}": size for layer in self.layer_names(auxiliary) for name, size in sizes.items()}

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a gene, in the order of the model."""
        held = self.parts
        norm = {gene_name(name): size for name, size in auxiliary.norm_params().items()}
        out = auxiliary.stem_params() if "stem" in held else {}
        out |= self.layer_tensors(auxiliary)
        out |= norm if "norm" in held else {}
        return out | (auxiliary.head_params() if "head" in held else {})

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """The start value of one of the gene's tensors before condensing: timm's by default."""
        from learngene.vits.fresh_weights import init_value

        return self.started(name, init_value(name, shapes, generator))

    def started(self, name: str, value: Tensor) -> Tensor:
        """What a gene's tensor starts at where timm would start it at ``value``, which may be changed in place."""
        return value

    def fresh_tensors(self, auxiliary: ViTShape, generator: torch.Generator) -> dict[str, Tensor]:
        """The start values of all of the gene's tensors, in their order.

        Those of another architecture than the plain ViT are taken from timm's model with as many layers as the gene.
        """
        shapes = self.gene_tensors(auxiliary)
        if not auxiliary.arch or not shapes:
            return {name: self.initial(name, shapes, generator) for name in shapes}
        from learngene.vits.fresh_weights import timm_values

        layers = list(dict.fromkeys(name.partition(".")[0] for name in self.layer_tensors(auxiliary)))
        start = timm_values(auxiliary.replace(depth=max(1, len(layers))), generator)
        inner = {name: value for name, value in start.items() if not name.startswith("blocks.")}
        values = {gene_name(name): value for name, value in inner.items()}
        for i, layer in enumerate(layers):
            values |= {f"{layer}.{name}": start[f"blocks.{i}.{name}"] for name in auxiliary.layer_params()}
        return {name: self.started(name, values[name]) for name in shapes}

    def fixed(self, name: str) -> bool:
        """Whether a tensor of the gene is never trained."""
        return False

    def shared(self, name: str) -> bool:
        """Whether a tensor is the same for all sizes, beside others that belong to the auxiliary shape."""
        return False

    def at_shape(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape) -> dict[str, Tensor]:
        """Tensors of a gene for another auxiliary shape, made without data: what is not ``shared``."""
        return {}

    def cautions(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """What to say before a shape is made that can be made, but not as well as others."""
        return []

    @abstractmethod
    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """One line per layer of ``shape``: which of the gene's tensors feed it."""

    @abstractmethod
    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """All that the gene says about ``shape``, under timm's names, differentiable in the gene's tensors.

        Position embeddings keep the auxiliary grid; the gene resamples them.
        """

    # -- training: the model that is condensed; the descendant of the same shape, for most methods ------------------

    def auxiliary_skeleton(self, auxiliary: ViTShape) -> VisionTransformer:
        """The structure of the auxiliary model on the meta device: a plain timm ViT unless a method needs more."""
        return auxiliary.skeleton()

    def auxiliary_weights(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape) -> dict[str, Tensor]:
        """Every weight of the auxiliary model as a differentiable function of the gene's tensors."""
        return self.weights(tensors, auxiliary, auxiliary)

    # -- extracting: a gene read off a trained ViT, without training --------------------------------------------------

    def extract(
        self, state: Mapping[str, Tensor], ancestry: ViTShape, activity: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The gene's tensors from the weights of an ancestry model, under timm's names.

        Its shape becomes the gene's auxiliary shape. A method that ``needs_data`` gets the activity of its neurons.
        """
        sources = {gene_name(name): name for name in ancestry.norm_params()}
        out = {}
        for name in self.gene_tensors(ancestry):
            layer, _, rest = name.partition(".")
            inside = layer.startswith("layer")
            out[name] = state[f"blocks.{layer.removeprefix('layer')}.{rest}" if inside else sources.get(name, name)]
        return out


def gene_name(name: str) -> str:
    """What a gene calls a parameter: its final norm is ``norm``, wherever the shape's ending puts it."""
    return f"norm.{name.removeprefix('fc_norm.')}" if name.startswith("fc_norm.") else name


def require_plain(shape: Shape) -> ViTShape:
    """The shape of a plain ViT; ``ShapeError`` if it is stitched, which most genes cannot make."""
    if not isinstance(shape, ViTShape):
        raise ShapeError(f"shape: this gene makes plain ViTs of one width, not a path such as {shape.path}")
    return shape


def refuse_arch(where: str, shape: ViTShape) -> None:
    """Raises ``ShapeError`` for another architecture than the plain ViT, in methods that have no answer for it."""
    if shape.arch:
        raise ShapeError(
            f"{where}: makes plain ViTs only, not {shape.arch}; use a plain ViT, or another method such as tleg, "
            "weight-selection or vanilla-lg"
        )


def require_choice(where: str, what: str, given: object, known: Collection[str]) -> None:
    """Raises ``ShapeError`` unless a setting or an option is one of the known words."""
    if not isinstance(given, str) or given not in known:
        raise ShapeError(f"{where}: unknown {what} '{given}'{nearest(str(given), known)}")


def is_count(value: object, minimum: int = 1) -> bool:
    """Whether it is a whole number of at least ``minimum``; truth values are no numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
