"""Models whose weights processes share: each holds a part of every layer, and gathers one when it is needed.

That is what FSDP2 is, which torch calls ``fully_shard``. Accelerate would shard whatever is prepared or nothing, and on
CPUs nothing; here it is a teacher, or what is fine-tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learngene.system.errors import LearngeneError


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Leaves each process its part of a model's weights, in place; from then on all processes must call it together.

    Args:
        model: Its outputs are those that it has had, bit for bit.
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


class Sharded:
    """A model in training of which every process holds a part: of weights, gradients and the optimizer's state.

    Attributes:
        whole: The model in main memory, with the weights of the last ``gather``.
        part: The same with this process's part of every layer, which is trained; all processes call it together.
    """

    def __init__(self, whole: nn.Module, device: torch.device, processes: int) -> None:
        """Makes this process's part; raises ``LearngeneError`` for a model that looks at other images of a batch."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in whole.modules()):
            raise LearngeneError("train.shard: the model has batch norms, whose statistics processes would not share")
        self.whole, self.part = whole.to("cpu"), copy.deepcopy(whole)
        shard(self.part, device, processes)
        self.part.to(device)

    @torch.no_grad()
    def gather(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Brings the weights together in ``whole``; returns the optimizer's state as it is where nothing is shared."""
        parts, state = self.part.state_dict(), optimizer.state_dict()
        for name, tensor in self.whole.state_dict().items():
            tensor.copy_(_gathered(parts[name]))
        return {**state, "state": {i: {k: _gathered(v) for k, v in each.items()} for i, each in state["state"].items()}}

    @torch.no_grad()
    def load(self, module: Mapping[str, Any], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Takes weights, and the state of an optimizer of ``part``, as they are where processes share nothing."""
        self.whole.load_state_dict(module)
        for name, tensor in self.part.state_dict().items():
            tensor.copy_(_parted(module[name], tensor))
        like = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {i: {k: _parted(v, like[i]) for k, v in each.items()} for i, each in state["state"].items()}
        optimizer.load_state_dict({**state, "state": parts})


def _gathered(value: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _parted(value: Any, like: Tensor) -> Any:
    """This process's part of a tensor that is shared as ``like`` is; what has another shape is not."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
