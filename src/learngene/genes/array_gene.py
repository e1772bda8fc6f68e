"""A gene in numpy arrays: all that expanding into a folder takes, unless numbers are drawn, predicted or resampled.

Importing torch takes longer than making a descendant of copies and sums. What ``Learngene.expand`` and
``save_descendant`` write is written here byte for byte, by the same method, record and folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from learngene.genes.expansion import Expansion, expansion, kept_parameters
from learngene.genes.gene_file import GeneHeader, TensorEntry, not_finite, refuse_damaged_table, verify
from learngene.methods import Method
from learngene.vits.descendant_folder import write_descendant
from learngene.vits.resampling import resampled
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Arrays = dict[str, "NDArray[np.float32]"]


class ArrayGene:
    """The arrays of a gene file, and the method that turns them into the weights of any shape.

    Attributes:
        header: Everything that the gene file says before its tensors.
        arrays: The tensors by their documented names.
    """

    def __init__(self, header: GeneHeader, *, verify_content: bool = True) -> None:
        """Reads the tensors of a gene file as ``Learngene.load`` does, and with the same refusals.

        Args:
            header: Of the file. Its shape is that of a plain ViT: only timm knows what another architecture is.
            verify_content: Hash the whole content and compare it with the digest that was written.

        Raises:
            GeneFileError: If the file is not whole and unchanged, or a number is not finite.
        """
        if verify_content:
            verify(header)
        refuse_damaged_table(header)
        self.header = header
        self.arrays = {name: _read(header, entry) for name, entry in header.tensors.items()}
        if verify_content:
            for name, value in self.arrays.items():
                if not np.isfinite(value).all():
                    raise not_finite(header.path, name)

    @property
    def method(self) -> Method:
        """The method with its settings."""
        return self.header.method

    @property
    def shape(self) -> ViTShape:
        """The auxiliary shape."""
        return self.header.shape

    @property
    def metadata(self) -> dict[str, Any]:
        """What the gene file says about its origin."""
        return self.header.metadata

    def weights(self, shape: Shape, **options: Any) -> Arrays:
        """What the gene says about a shape, under timm's names, as ``Learngene.weights``."""
        self.method.refuse(self.shape, shape, **options)

        def found(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return self.method.weights(tensors, self.shape, shape, **options)

        weights = found(self.arrays) if self.method.takes_arrays else _by_torch(found, self.arrays)
        expected = shape.all_params()
        resized = {name: value for name, value in weights.items() if value.shape != expected.get(name, value.shape)}
        if resized:
            weights |= _by_torch(lambda tensors: resampled(tensors, self.shape, shape), resized)
        return weights

    def needs_torch(
        self,
        shape: Shape,
        *,
        layers: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        **options: Any,
    ) -> bool:
        """Whether ``expand`` with these arguments imports torch, which takes seconds; raises as ``expand`` does."""
        self.method.refuse(self.shape, shape, **options)
        if not self.method.takes_arrays or self.shape.grid_size != shape.grid_size:
            return True
        # The names are all that is asked for.
        nothing = {name: np.empty((0,) * value.ndim, np.float32) for name, value in self.arrays.items()}
        named = self.method.weights(cast("Any", nothing), self.shape, shape, **options)
        return kept_parameters(shape, layers, modules) & named.keys() != shape.all_params().keys()

    def expand(
        self,
        shape: Shape,
        *,
        layers: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> ArrayDescendant:
        """Makes a descendant that can be written; the arguments are those of ``Learngene.expand``.

        Raises:
            ShapeError: If the method cannot make the shape, or a layer or module does not exist.
        """
        weights = self.weights(shape, **options)
        made = expansion(self, weights, shape, layers=layers, modules=modules, seed=seed, **options)
        drawn = _drawn(made, seed) if made.fresh else {}
        arrays = {name: drawn[name] if name in drawn else weights[name] for name in shape.all_params()}
        # safetensors writes whatever lies at the address of a slice.
        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        return ArrayDescendant(made, arrays)


@dataclass
class ArrayDescendant:
    """A descendant that is no model: its arrays under timm's names, and what its folder says of them."""

    expansion: Expansion
    arrays: Arrays

    @property
    def learngene(self) -> dict[str, Any]:
        """Where it comes from, as in a model that ``Learngene.expand`` made."""
        return self.expansion.record

    def save(self, path: Path) -> None:
        """Writes the descendant folder; raises ``LearngeneError`` as ``save_descendant`` does."""
        made = self.expansion
        write_descendant(path, self.arrays, made.shape, made.cfg, made.record)


def _read(header: GeneHeader, entry: TensorEntry) -> NDArray[np.float32]:
    """One tensor of a gene file in float32; numpy itself has no bfloat16, which is the upper half of a float32."""
    kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[entry.dtype]
    place = header.data_start + entry.begin
    value = np.fromfile(header.path, kind, count=int(np.prod(entry.shape, dtype=np.int64)), offset=place)
    if entry.dtype == "BF16":
        value = (value.astype(np.uint32) << 16).view(np.float32)
    return value.astype(np.float32, copy=False).reshape(entry.shape)


def _by_torch(step: Callable[[dict[str, Tensor]], dict[str, Tensor]], arrays: Mapping[str, Any]) -> Arrays:
    """A step that only torch can do.

    Torch chooses its way by where numbers lie and by whether they are trained, and ways differ by a last bit. So these
    are copies in torch's own memory that count as trained, as a ``Learngene``'s are.
    """
    import torch

    tensors = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in arrays.items()}
    with torch.no_grad():
        return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in step(tensors).items()}


def _drawn(made: Expansion, seed: int) -> Arrays:
    """What starts fresh: torch's random numbers, which are everybody's."""
    import torch

    from learngene.vits.fresh_weights import fresh_parameters

    fresh = fresh_parameters(made.shape, made.fresh, torch.Generator().manual_seed(seed))
    return {name: value.numpy() for name, value in fresh.items()}
