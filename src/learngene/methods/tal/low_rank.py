"""LoGAH's decoder: every tensor is a product of two low-rank factors, of which only what is used is computed.

A node's vector becomes 2r latents of r numbers, r for each factor; a common linear layer expands a latent to K numbers.
The published code then reinterprets memory: the expanded latents of a factor, one behind the other, are read as K rows
of r numbers. So row n of factor A is numbers n r to n r + r - 1, and a weight of c rows needs the first ceil(c r / K)
latents only. In the layout ``transposed``, row n is the n-th number of every latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor

from learngene.methods.tal.encoder import linear
from learngene.methods.tal.sizes import NetworkConfig


@dataclass
class LowRankDecoder:
    """Decodes the nodes of one graph.

    Attributes:
        latents: Of every node and factor, as far as any tensor needs them.
        weight: Of the layer that expands latents, as far as any tensor needs it.
        bias: The same of its bias.
        columns: The first row of every node's factor B, which vectors are made with.
    """

    config: NetworkConfig
    latents: Float[Tensor, "nodes 2 used rank"]
    weight: Float[Tensor, "reach rank"]
    bias: Float[Tensor, " reach"]
    columns: Float[Tensor, "nodes rank 1"] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = self.factor(self.latents[:, 1], 0, 1).transpose(1, 2)

    @classmethod
    def of(
        cls,
        config: NetworkConfig,
        tensors: Mapping[str, Tensor],
        nodes: Float[Tensor, "nodes hid"],
        largest: int,
    ) -> LowRankDecoder:
        """Computes the latents of the encoder's vectors, for factors of at most ``largest`` rows."""
        rank, expansion = config.rank, config.expansion
        transposed = config.layout == "transposed"
        used = rank if transposed else min(rank, -(-largest * rank // expansion))
        reach = min(expansion, largest if transposed else largest * rank)
        hidden = F.relu(linear(tensors, "decoder.fc2", F.relu(linear(tensors, "decoder.fc1", nodes))))
        # Sliced once: the gradient of every slice is as large as the whole matrix.
        weight = tensors["decoder.fc3.weight"].view(2, rank, rank, -1)[:, :used].reshape(2 * used * rank, -1)
        bias = tensors["decoder.fc3.bias"].view(2, rank, rank)[:, :used].reshape(-1)
        latents = F.relu(F.linear(hidden, weight, bias)).view(len(nodes), 2, used, rank)
        expand = (tensors[f"decoder.expand.{kind}"][:reach] for kind in ("weight", "bias"))
        return cls(config, latents, *expand)

    def factor(self, latents: Float[Tensor, "tensors used rank"], start: int, count: int) -> Tensor:
        """Rows ``start`` to ``start + count`` of a factor of some tensors, with r numbers each."""
        rank, expansion = self.config.rank, self.config.expansion
        weight, bias = self.weight, self.bias
        if self.config.layout == "transposed":
            rows = slice(start, start + count)
            return F.linear(latents, weight[rows], bias[rows]).transpose(1, 2)
        first, last = start * rank, (start + count) * rank
        pieces = []
        low, high = first // expansion, (last - 1) // expansion
        if low < high and first == 0:  # whole expansions, all at once
            pieces.append(F.linear(latents[:, :high], weight, bias).flatten(1))
            low = high
        for latent in range(low, high + 1):
            columns = slice(max(first - latent * expansion, 0), min(last - latent * expansion, expansion))
            pieces.append(F.linear(latents[:, latent], weight[columns], bias[columns]))
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return flat.view(len(latents), count, rank)

    def matrices(self, wanted: Mapping[str, tuple[Sequence[int], int, int]]) -> dict[str, Tensor]:
        """Products A B^T: by name of nodes, rows and columns, one (rows, columns) matrix per node.

        Factors of the same height are computed together.
        """
        factors: dict[tuple[str, int], Tensor] = {}
        for height in sorted({size for _, rows, columns in wanted.values() for size in (rows, columns)}):
            users = [
                (name, side, nodes)
                for name, (nodes, *sizes) in wanted.items()
                for side, size in enumerate(sizes)
                if size == height
            ]
            chosen = torch.cat([self.latents[list(nodes), side] for _, side, nodes in users])
            parts = self.factor(chosen, 0, height).split([len(nodes) for _, _, nodes in users])
            factors |= {(name, side): part for (name, side, _), part in zip(users, parts, strict=True)}
        return {name: torch.bmm(factors[name, 0], factors[name, 1].transpose(1, 2)) for name in wanted}

    def vectors(self, nodes: Sequence[int], size: int, half: int) -> Float[Tensor, "tensors size"]:
        """Vectors of nodes: of a norm, half 0 is the weight and half 1 the bias; any other bias is half 1, too."""
        length = self.config.rounded(size)
        count = min(size, length)
        rows = self.factor(self.latents[list(nodes), 0], half * length, count)
        return torch.bmm(rows, self.columns[list(nodes)]).squeeze(2)
