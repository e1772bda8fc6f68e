"""How a teacher's outputs lie on disk: one safetensors file per output, epoch and range of steps, with a digest.

A file holds one row per view, in the order of the epoch: ``values``; of top-k logits also ``classes``; and ``pixels``,
a fingerprint of every image before it was mixed, by which other pixels than those that the teacher saw are noticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learngene.recipe.sections import Replay
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file

VECTORS, MAPS = 4096, 256
"""Views in a file, about: of one vector each, and of one vector per patch. A whole number of steps, at least one."""

SEEN = 1024
"""Values of an image that its fingerprint looks at, about, evenly spread."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DamagedTargetsError(LearngeneError):
    """A file of stored targets that does not hold what was written."""


@dataclass(frozen=True)
class Form:
    """How one output of a teacher is stored.

    Attributes:
        name: Of the output.
        dtype: Of the stored values.
        top_k: Of logits: how many are stored, the largest; None stores all.
    """

    name: str
    dtype: str
    top_k: int | None = None

    @classmethod
    def of(cls, name: str, spec: Replay) -> Form:
        """The form that a recipe wants for an output."""
        return cls(name, spec.dtype, spec.top_k if name == "logits" else None)

    @property
    def folder(self) -> str:
        """The name of the folder of its files."""
        return "-".join([self.name.replace(" ", ""), *([f"top{self.top_k}"] if self.top_k else []), self.dtype])

    def steps(self, batch_size: int) -> int:
        """Steps whose views are in one file; those of maps lie evenly in those of vectors."""
        least = max(1, MAPS // batch_size)
        return least if is_map(self.name) else least * max(1, VECTORS // (least * batch_size))

    def view_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one view's output of a shape: k values, the rest's mass and k classes, or all values; and 8."""
        size = DTYPES[self.dtype].itemsize
        if self.top_k is None:
            return math.prod(shape) * size + 8
        return (self.top_k + 1) * size + self.top_k * _class_type(shape[-1]).itemsize + 8

    def encoded(self, value: Tensor) -> dict[str, Tensor]:
        """Rows to store, on the device of the output.

        Of top-k logits these are log-probabilities, and behind them the logarithm of the mass of all other classes.
        """
        if self.top_k is None:
            return {"values": value.to(DTYPES[self.dtype])}
        if self.top_k >= value.shape[-1]:
            raise LearngeneError(
                f"distill.replay.top_k {self.top_k}: the teacher has {value.shape[-1]} classes; use fewer, or null for "
                "all of them"
            )
        logs = value.float().log_softmax(-1)
        top, classes = logs.topk(self.top_k)
        rest = logs.scatter(-1, classes, -math.inf).logsumexp(-1, keepdim=True)
        values = torch.cat([top, rest], -1).to(DTYPES[self.dtype])
        return {"values": values, "classes": classes.to(_class_type(value.shape[-1]))}

    def decoded(self, rows: Mapping[str, Tensor], like: Like) -> Tensor:
        """The output of stored rows: as it was, or logits whose rest is spread evenly over the other classes.

        Args:
            rows: As ``encoded`` gives them.
            like: The output before it was stored.
        """
        if self.top_k is None:
            return like.laid_out(rows["values"])
        values = rows["values"].float()
        each = values[:, -1:] - math.log(like.count - self.top_k)
        return each.repeat(1, like.count).scatter_(-1, rows["classes"].long(), values[:, :-1])


def is_map(name: str) -> bool:
    """Whether an output has one vector per patch, and not one per image."""
    return name.partition(" ")[0] in ("patches", "block", "attention")


def _class_type(count: int) -> torch.dtype:
    return torch.int16 if count <= 1 << 15 else torch.int32


@dataclass(frozen=True)
class Like:
    """What else an output was, beside its values: sums depend on the order in which numbers lie, by rounding.

    Attributes:
        count: Its last dimension.
        dtype: Its type.
        strides: Of its dimensions in memory, and where it began, if it was a part of something larger.
    """

    count: int
    dtype: torch.dtype
    strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, output: Tensor) -> Like:
        """An output as it is."""
        place = () if output.is_contiguous() else (*output.stride(), output.storage_offset())
        return cls(output.shape[-1], output.dtype, tuple(map(int, place)))

    @classmethod
    def read(cls, said: Mapping[str, str]) -> Like:
        """As a file's header says it."""
        strides = tuple(int(each) for each in said["strides"].split())
        return cls(int(said["count"]), getattr(torch, said["dtype"]), strides)

    def said(self) -> dict[str, str]:
        """For a file's header."""
        strides = " ".join(map(str, self.strides))
        return {"count": str(self.count), "dtype": str(self.dtype).removeprefix("torch."), "strides": strides}

    def laid_out(self, values: Tensor) -> Tensor:
        """Values of the output's type, lying in memory as it did."""
        if not self.strides:
            return values.to(self.dtype)
        *strides, begin = self.strides
        last = begin + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
        room = torch.empty(last + 1, dtype=self.dtype, device=values.device)
        return room.as_strided(values.shape, strides, begin).copy_(values)


@dataclass
class Shard:
    """A file of stored targets, mapped into memory.

    Attributes:
        tensors: One row per view.
        like: The output before it was stored.
    """

    tensors: Mapping[str, Tensor]
    like: Like

    @classmethod
    def read(cls, path: Path, rows: int) -> Shard:
        """Maps a file and compares its digest.

        Args:
            path: The file.
            rows: How many it must have.

        Raises:
            DamagedTargetsError: If it is not what was written.
        """
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            like = Like.read(said)
            if said["digest"] != _digest(tensors, like) or any(len(value) != rows for value in tensors.values()):
                raise ValueError("its digest is another")
            return cls(tensors, like)
        except Exception as error:  # a damaged file can end its reader in any of them
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise DamagedTargetsError(
                f"{path}: stored targets are damaged ({reason}); make them again with `learngene targets RECIPE "
                "--again`, or delete the file"
            ) from None


@dataclass
class Collected:
    """Rows of a file that is not written yet."""

    rows: int
    tensors: dict[str, Tensor]
    like: Like | None = None

    def add(self, places: Tensor, encoded: Mapping[str, Tensor], output: Tensor) -> None:
        """Puts rows into their places."""
        self.like = Like.of(output)
        for name, value in encoded.items():
            if name not in self.tensors:
                self.tensors[name] = torch.empty(self.rows, *value.shape[1:], dtype=value.dtype)
            self.tensors[name][places] = value.cpu()

    def write(self, path: Path) -> None:
        """Writes the file under a temporary name, flushed, then renamed."""
        assert self.like is not None
        said = {"digest": _digest(self.tensors, self.like), **self.like.said()}
        write_file(path, lambda temporary: save_file(self.tensors, temporary, said))


def _digest(tensors: Mapping[str, Tensor], like: Like) -> str:
    """XXH3 of what the output was, and of names, types, shapes and bytes: it tells damage, not forgery."""
    hasher = xxhash.xxh3_128(repr(like).encode())
    for name, value in sorted(tensors.items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return f"xxh3_128:{hasher.hexdigest()}"


def pixel_prints(images: Tensor) -> Tensor:
    """A fingerprint per image, from evenly spread values of it.

    Args:
        images: (batch, channels, height, width), as the loader gives them.
    """
    flat: Any = images.flatten(1)
    seen = flat[:, :: max(1, flat.shape[1] // SEEN)].contiguous().cpu().numpy()
    prints = [xxhash.xxh3_64_intdigest(row.data) for row in seen]
    return torch.tensor([value - (1 << 64) if value >> 63 else value for value in prints], dtype=torch.int64)
