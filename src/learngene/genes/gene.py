"""The learngene: a differentiable function from a shape to weights.

Condensing trains that function (``forward`` is the auxiliary model), expanding evaluates it once. Both call
``weights``, so the auxiliary model at a shape is the descendant at that shape.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from learngene.genes.bridge import bridge_classes, bridge_head, bridge_tensors
from learngene.genes.expansion import expansion, with_heads
from learngene.genes.gene_file import (
    METADATA_KEY,
    PLACEHOLDER,
    GeneHeader,
    check_metadata,
    not_finite,
    read_header,
    refuse_damaged_table,
    seal,
    verify,
)
from learngene.methods import Method, default_settings
from learngene.methods.tal.hypernetwork import hypernetwork_of
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.system.errors import GeneFileError, LearngeneError, ShapeError, nearest
from learngene.system.files import write_file
from learngene.vits.fresh_weights import fresh_parameters
from learngene.vits.layout import Layout
from learngene.vits.recomputing import recomputed
from learngene.vits.resampling import resampled
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types in which a gene file can store its tensors; a loaded gene is always float32."""


Task = str | TaskEmbedding | Tensor | None
"""A task by its name in the gene, by its embedding, or by the embedding's numbers."""


class Learngene(nn.Module):
    """The tensors of a gene and the method that turns them into the weights of any shape.

    Its parameters carry the documented names of the gene file: ``A.attn.qkv.weight``, ``stage0.norm1.bias``,
    ``pos_embed``, ``norm.weight``, ``head.weight`` and so on.

    Attributes:
        method: The method with its settings.
        shape: The auxiliary shape, at which the gene is condensed.
        metadata: What the gene file says about its origin; see ``docs/format.md``.
        bridge: Tensors of the map to its teacher's output, if it was kept.
    """

    def __init__(
        self,
        method: Method,
        shape: ViTShape,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes a gene from given tensors, or a fresh one to be condensed.

        Args:
            method: The method with its settings.
            shape: The auxiliary shape.
            tensors: All tensors by name. Without them the gene starts as the authors' auxiliary models do.
            seed: Of the start values; unused if ``tensors`` are given.
            metadata: Provenance, see ``docs/format.md``.

        Raises:
            ShapeError: If the method cannot be condensed at this shape.
        """
        super().__init__()
        method.refuse_auxiliary(shape)
        self.method = method
        self.shape = shape
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.recompute = False  # activations of layers for their gradients, instead of keeping them
        self._skeletons: dict[Shape | None, VisionTransformer] = {}
        shapes, bridge = method.gene_tensors(shape), bridge_tensors(shape, self.metadata)
        if tensors is None:
            tensors = method.fresh_tensors(shape, torch.Generator().manual_seed(seed))
        for name, size in (shapes | bridge).items():
            if name not in tensors or tuple(tensors[name].shape) != size:
                raise LearngeneError(f"gene: tensor '{name}' is missing or does not have shape {size}")
            if name in shapes:
                self._register(name, tensors[name])
        self.bridge = {name: tensors[name] for name in bridge}
        if not self._absent():
            self.skeleton()  # here and not in the first ``forward``: inside a trace no module can be built

    def _register(self, name: str, value: Tensor) -> None:
        """Registers a parameter under a dotted name by nesting plain modules."""
        *parents, last = name.split(".")
        module: nn.Module = self
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(last, nn.Parameter(value, requires_grad=not self.method.fixed(name)))

    def tensors(self) -> dict[str, Tensor]:
        """The gene's own tensors by their documented names."""
        return dict(self.named_parameters())

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers shall not decay besides norms and biases, as for any timm ViT."""
        exempt = set(self.shape.layout.undecayed)
        return {name for name in self.tensors() if exempt & {name, name.partition(".")[2], name.rpartition(".")[2]}}

    # -- the one idea --------------------------------------------------------------------------------

    def weights(self, shape: Shape | None = None, *, task: Task = None, **options: Any) -> dict[str, Tensor]:
        """The weights of a model of the given shape, differentiable in the gene's own tensors.

        Most methods always carry stem and final norm, and the head if the number of classes is the same; position
        embeddings are resampled for another image size.

        Args:
            shape: The shape to make; the auxiliary shape by default.
            task: For which task (TAL): one that the gene was tuned on by name, or the embedding of another.
            **options: The method's choices at expansion, for example SWS's ``order``.

        Returns:
            Tensors under timm's parameter names. A name is absent where the gene has nothing to say: the head of
            another task, or modules that an ablation left out.

        Raises:
            ShapeError: If the method cannot make the shape.
        """
        shape = shape or self.shape
        if task is not None:
            options["task"] = self.task_vector(task)
        self.method.refuse(self.shape, shape, **options)
        out = self.method.weights(self.tensors(), self.shape, shape, **options)
        return resampled(out, self.shape, shape)

    def tasks(self) -> dict[str, TaskEmbedding]:
        """The tasks that the gene was tuned on, by name; for other methods than TAL there are none."""
        return {
            entry["task"]: TaskEmbedding.from_dict(entry["embedding"])
            for entry in self.metadata.get("tasks", [])
            if "embedding" in entry
        }

    def task_vector(self, task: str | TaskEmbedding | Tensor) -> Tensor:
        """The numbers that say to the task layers which task it is.

        Raises:
            LearngeneError: If the gene knows no such task, or the embedding is not of its ancestry.
        """
        if not isinstance(task, (str, TaskEmbedding, Tensor)):
            raise LearngeneError(
                f"task: must be a name, an embedding or its tensor, not {task!r}; put a name that looks like a "
                "number in quotes"
            )
        if not self.method.task_aware:
            raise LearngeneError(f"task: a gene of {self.method.name} predicts for no task; leave it out")
        if isinstance(task, str):
            known = self.tasks()
            if task not in known:
                names = ", ".join(known) or "none"
                raise LearngeneError(
                    f"gene: no task '{task}'; it was tuned on {names}. For another task give its images"
                )
            task = known[task]
        if isinstance(task, TaskEmbedding):
            given = self.metadata.get("ancestry", {}).get("sha256")
            if given and given != task.ancestry:
                raise LearngeneError(
                    f"task {task.name}: its embedding is of another ancestry (sha256 {task.ancestry[:12]}) than this "
                    f"gene's (sha256 {given[:12]}); compute it with the gene's"
                )
            task = torch.tensor(task.vector)
        width = hypernetwork_of(self.method).task_dim
        if tuple(task.shape) != (width,):
            raise LearngeneError(
                f"task: an embedding of shape {tuple(task.shape)}, but this gene takes {width} numbers"
            )
        if not task.isfinite().all():
            raise LearngeneError("task: its embedding is not finite; compute it again")
        return task.to(next(self.parameters()))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], shape: Shape | tuple[Shape, ...] | None = None
    ) -> Float[Tensor, "batch classes"] | tuple[Tensor, ...]:
        """The auxiliary model: a plain timm ViT that computes with ``weights(shape)``.

        Args:
            images: Normalised images.
            shape: The shape to compute at, all of whose weights must come from the gene. By default the auxiliary
                model, which is the descendant of the auxiliary shape unless the method trains with more than a plain
                ViT has (Mini-Init). Several shapes are computed one after the other.

        Returns:
            Logits; of several shapes those of each, in a tuple.

        Raises:
            LearngeneError: If the gene holds only a part of a model, as Vanilla-LG's does.
        """
        if absent := self._absent():
            raise LearngeneError(
                f"gene: {self.method.name} holds no {' and no '.join(sorted(absent))}, "
                "so it computes nothing by itself; expand it"
            )
        if isinstance(shape, tuple):
            return tuple(self.forward(images, one) for one in shape)  # type: ignore[misc]
        skeleton = self.skeleton(shape)
        if skeleton.training != self.training:
            skeleton.train(self.training)
        weights = self.weights(shape) if shape else self.method.auxiliary_weights(self.tensors(), self.shape)
        if self.shape.arch:  # may compute with more than parameters: indices, frequencies
            weights |= {name: value.to(images.device) for name, value in skeleton.named_buffers()}
        with recomputed(skeleton.blocks, self.recompute):
            return functional_call(skeleton, weights, (images,), strict=True)

    def _absent(self) -> set[str]:
        """What the gene does not hold of a model that computes."""
        return {"stem", "norm", "head"} - set(self.method.parts)

    def skeleton(self, shape: Shape | None = None) -> VisionTransformer:
        """The structure that ``forward`` computes with: one meta-device timm model per shape, kept between steps."""
        if shape not in self._skeletons:
            self._skeletons[shape] = shape.skeleton() if shape else self.method.auxiliary_skeleton(self.shape)
        return self._skeletons[shape]

    # -- expanding -----------------------------------------------------------------------------------

    @torch.no_grad()
    def expand(
        self,
        shape: Shape | Mapping[str, Any] | SupportsIndex | str | None = None,
        *,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        layers: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        seed: int = 0,
        task: Task = None,
        bridge: bool = False,
        **options: Any,
    ) -> VisionTransformer:
        """Makes an ordinary timm model, ready to train.

        Args:
            shape: The shape to make, just its depth, the fields that differ from the auxiliary shape's, such as
                ``{"depth": 6, "embed_dim": 96}``, or the name of a pool's path, such as ``4+2``; the auxiliary shape by
                default.
            num_classes: Classes of the new task, if they differ; the head is then fresh.
            class_names: Names of the classes, which travel with the descendant. The gene's own by default. A head that
                the gene holds is carried in their order, and starts fresh if they are others than the gene's.
            layers: Fill only these layers, counted from 1 (TLEG Table 5); the others start fresh.
            modules: Fill only these of ``msa``, ``mlp``, ``ln`` in every layer (TLEG Table 4).
            seed: Of whatever starts fresh: a new head, or what ``layers`` and ``modules`` leave out.
            task: For which task (TAL): one that the gene was tuned on by name, or the embedding of another. Unless a
                whole shape or ``num_classes`` is given, the descendant has the task's classes.
            bridge: The head is the bridge that the gene kept, and gives the teacher's output.
            **options: The method's choices, for example ``order="front-last-mid"`` for SWS.

        Returns:
            A timm ``VisionTransformer`` in evaluation mode whose parameters share no memory with the gene. Its
            ``learngene`` attribute says which gene tensor fed which layer.

        Raises:
            ShapeError: If the method cannot make the shape, a layer or module does not exist, or there are more or
                fewer names than classes.
        """
        named = self.tasks().get(task) if isinstance(task, str) else task
        about = named if isinstance(named, TaskEmbedding) else None
        if about and num_classes is None and not isinstance(shape, ViTShape):
            num_classes = len(about.classes)
        if bridge:
            num_classes = bridge_classes(self.metadata, self.shape, self._target(shape, None), num_classes, class_names)
        shape = self._target(shape, num_classes)
        weights = self.weights(shape, task=task, **options)
        weights |= bridge_head(self.bridge) if bridge else {}
        made = expansion(
            self,
            weights,
            shape,
            class_names=class_names,
            layers=layers,
            modules=modules,
            seed=seed,
            task=task,
            about=about,
            bridge=bridge,
            **options,
        )
        own = {tensor.untyped_storage().data_ptr() for tensor in self.parameters()}
        state = fresh_parameters(shape, made.fresh, torch.Generator().manual_seed(seed))
        for name in shape.all_params().keys() - state.keys():
            # A copy of a gene tensor must not be the gene tensor, nor may two layers share one or be parts of one.
            value, memory = weights[name], weights[name].untyped_storage()
            whole = memory.data_ptr() not in own and memory.nbytes() == value.nbytes
            state[name] = value if whole else value.clone()
            own.add(memory.data_ptr())
        model = shape.skeleton()
        model.load_state_dict(state, strict=True, assign=True)
        model.pretrained_cfg = model.default_cfg = made.cfg
        model.learngene = made.record
        return model.eval()

    def _target(self, shape: object, num_classes: int | None) -> Shape:
        if isinstance(shape, str):
            shape = self.method.named_shape(self.shape, shape)
        elif isinstance(shape, SupportsIndex):
            shape = self.shape.replace(depth=index(shape))
        elif isinstance(shape, Mapping):
            shape = self.shape.replace(**with_heads(self, shape))
        elif shape is None:
            shape = self.shape
        if not isinstance(shape, ViTShape | StitchedShape):
            raise ShapeError(
                "expand: shape must be a ViTShape, a depth, fields that differ such as {'depth': 6}, or the name of a "
                f"path, not {shape!r}"
            )
        return shape if num_classes is None else shape.replace(num_classes=num_classes)

    # -- the gene file -------------------------------------------------------------------------------

    def save(self, path: str | Path, dtype: str = "float32") -> None:
        """Writes the gene file: to a temporary name, flushed, renamed.

        Args:
            path: The file to write; an old file of that name is replaced only when the new one is complete.
            dtype: ``float32``, or ``bfloat16`` or ``float16`` for half the size.

        Raises:
            LearngeneError: If the type is unknown, a number is not finite in it, or the file cannot be written.
        """
        from safetensors.torch import save_file

        if dtype not in STORAGE:
            raise LearngeneError(f"gene: unknown storage type '{dtype}'{nearest(dtype, STORAGE)}")
        held = self.tensors() | self.bridge
        tensors = {name: value.detach().to("cpu", STORAGE[dtype]).contiguous() for name, value in held.items()}
        if name := _not_finite(tensors):
            raise LearngeneError(f"gene: {name} is not finite as {dtype}, so {path} is not written")
        described = {
            "version": self.method.format_version,
            "method": self.method.name,
            "settings": default_settings(self.method),
            "shape": self.shape.to_dict(),
        }
        if self.shape.arch:
            described["layout"] = self.shape.layout.to_dict()
        metadata = json.loads(json.dumps({**self.metadata, **described, "digest": PLACEHOLDER}))

        check_metadata(Path(path), metadata)

        def write(temporary: Path) -> None:
            save_file(tensors, temporary, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
            seal(temporary, metadata)

        path = Path(path)
        write_file(path, write)
        self.metadata = read_header(path).metadata

    @classmethod
    def load(cls, path: str | Path, *, verify_content: bool = True) -> Learngene:
        """Reads a gene file, checks its header and, by default, every byte.

        Args:
            path: The gene file.
            verify_content: Hash the whole content and compare it with the digest that was written.

        Raises:
            GeneFileError: If the file is not a whole, unchanged gene of a known method, with finite numbers.
        """
        from safetensors.torch import load_file

        header = read_header(path)
        if verify_content:
            verify(header)
        refuse_damaged_table(header)
        # Copied: what lies anywhere in a file is computed with differently on some machines, by a last bit.
        tensors = {name: value.to(torch.float32, copy=True) for name, value in load_file(header.path).items()}
        if header.shape.arch:
            _refuse_other_layout(header)
        if verify_content and (name := _not_finite(tensors)):
            raise not_finite(header.path, name)
        return cls(header.method, header.shape, tensors, metadata=header.metadata)

    def __repr__(self) -> str:
        stored = sum(value.numel() for value in self.tensors().values())
        return f"Learngene({self.method}, auxiliary shape: {self.shape}, {stored / 1e6:.3f} M parameters)"


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor with a NaN or an infinity."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def _refuse_other_layout(header: GeneHeader) -> None:
    """Refuses a gene whose architecture has other parameters in the timm that is installed."""
    try:
        header.shape.tell(Layout.from_dict(header.metadata["layout"]), proved=True)
    except ShapeError as error:
        versions = header.metadata.get("versions", {})
        raise GeneFileError(f"{header.path}: {error} (made with timm {versions.get('timm', 'unknown')})") from None
