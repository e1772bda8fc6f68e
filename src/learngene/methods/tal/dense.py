"""GHN-3's decoder: a block of m x m weights per position of the kernel, which ``predict`` tiles to the size wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor

from learngene.methods.tal.encoder import linear
from learngene.methods.tal.sizes import KERNEL, NetworkConfig


@dataclass
class DenseDecoder:
    """Decodes the nodes of one graph, the encoder's vectors, with the hypernetwork's parameters."""

    config: NetworkConfig
    tensors: Mapping[str, Tensor]
    nodes: Float[Tensor, "nodes hid"]

    def kernels(self, nodes: Sequence[int], height: int, width: int) -> Float[Tensor, "tensors m m height width"]:
        """Blocks of m x m weights for the middle ``height`` x ``width`` positions of a 16 x 16 kernel.

        The middle of one position is row and column 8, of three 7 to 9: beside them is one more before than behind.
        """
        hid, most = self.config.hid, self.config.max_shape
        top, left = KERNEL // 2 - height // 2, KERNEL // 2 - width // 2
        middle = (slice(None), slice(top, top + height), slice(left, left + width))
        weight = self.tensors["decoder.fc.weight"].view(4 * hid, KERNEL, KERNEL, hid)[middle]
        bias = self.tensors["decoder.fc.bias"].view(4 * hid, KERNEL, KERNEL)[middle]
        x = F.relu(F.linear(self.nodes[list(nodes)], weight.reshape(-1, hid), bias.reshape(-1)))
        x = x.view(len(nodes), 4 * hid, height * width).transpose(1, 2)
        x = linear(self.tensors, "decoder.conv2", F.relu(linear(self.tensors, "decoder.conv1", x)))
        return x.view(len(nodes), height, width, most, most).permute(0, 3, 4, 1, 2)

    def head(self, node: int) -> Float[Tensor, "classes m"]:
        """The head's block: its rows are made into one per class of the vocabulary."""
        block = self.kernels([node], 1, 1)[0, :, :, 0, 0]
        return linear(self.tensors, "decoder.classes", F.relu(block.T)).T

    def head_bias(self, node: int) -> Float[Tensor, " classes"]:
        """One bias per class of the vocabulary."""
        return linear(self.tensors, "decoder.class_bias", F.relu(self.halves([node])[0, 1]))

    def halves(self, nodes: Sequence[int]) -> Float[Tensor, "tensors 2 m"]:
        """Of norms, weight and bias; other biases take the second half."""
        hidden = F.relu(linear(self.tensors, "decoder.vector1", self.nodes[list(nodes)]))
        return linear(self.tensors, "decoder.vector2", hidden).view(len(nodes), 2, -1)


def tiled(block: Tensor, size: Sequence[int]) -> Tensor:
    """A block cropped where it is larger than ``size``, and repeated where it is smaller."""
    if tuple(block.shape) == tuple(size):
        return block
    for dim, wanted in enumerate(size):
        have = block.shape[dim]
        if have < wanted:
            repeats = [1] * block.ndim
            repeats[dim] = -(-wanted // have)
            block = block.repeat(repeats)
        block = block.narrow(dim, 0, wanted)
    return block
