"""A frozen model whose weights processes share: each holds a part of every layer, and gathers one when it is needed.

That is what FSDP2 is, which torch calls ``fully_shard``. Accelerate would shard whatever is prepared or nothing, and on
CPUs nothing; here the teacher alone is sharded, and what is trained is small.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Leaves each process its part of a model's weights, in place; from then on all processes must call it together.

    Args:
        model: Frozen; its outputs are those that it has had, bit for bit.
        device: Of this process, to which its part is moved.
        processes: How many.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """What follows each other in a model: the members of its outermost lists and sequences that have weights."""
    for child in model.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from _layers(child)
