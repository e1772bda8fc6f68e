"""What stitch layers start from: transformation matrices (Learngene Pool) or least squares (SN-Net)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from learngene.genes.elastic import ElasticViT
from learngene.genes.gene import Learngene
from learngene.making.pool.features import stream
from learngene.methods.stitching import rows_of
from learngene.system.errors import LearngeneError

CUTOFF = 1e-13
"""Squared singular values below this share of the largest count as zero: features are float32, exact to about 1e-7."""

Matrix = Float[Tensor, "width ancestry"]


@torch.no_grad()
def transformation_stitches(gene: Learngene, matrices: Sequence[Matrix | None]) -> None:
    """TM: fills every stitch layer of a pool from the matrices that its rows learned in distillation.

    A row's W leads from the ancestry to the row, so its transpose leads back (section "Initialization of the Stitch
    Layers", which averages the three matrices of the narrow row). Between two rows that both are narrower than the
    ancestry the way leads through the ancestry's width. All layers between two rows start alike, with zero bias.

    Args:
        gene: The pool; its stitch layers are overwritten.
        matrices: Per row the mean of its W, (width, ancestry width); None is the identity.
    """
    tensors = gene.tensors()
    for name, (source, target) in rows_of(gene.method).stitch_layers(gene.shape).items():
        back, forth = matrices[source], matrices[target]
        if back is None and forth is None:
            raise LearngeneError("pool.stitches: tm needs a row that is not as wide as the ancestry; use ls")
        weight = forth if back is None else back.T if forth is None else forth @ back.T
        assert weight is not None
        tensors[f"{name}.weight"].copy_(weight)
        tensors[f"{name}.bias"].zero_()


@torch.no_grad()
def least_squares_stitches(
    gene: Learngene,
    batches: Iterable[Float[Tensor, "batch channels height width"]],
    warn: Callable[[str], object],
) -> None:
    """LS: fits every stitch (i, j) to lead from the output of block i to the input of block j, over all tokens.

    A layer that several stitches share gets the mean of their solutions. Only sums over images are kept, so memory
    does not grow with them. Where the features do not determine a solution, the one of minimum norm is taken.

    Args:
        gene: The pool; its stitch layers are overwritten.
        batches: Normalised images.
        warn: Told if there are fewer rows than unknowns.
    """
    method, auxiliary, tensors = rows_of(gene.method), gene.shape, gene.tensors()
    elastic = ElasticViT(gene).eval()
    views = elastic.views()
    rows = [views[shape] for shape in method.row_shapes(auxiliary)]
    fits = {pair: _Fit(method.stitches(auxiliary, *pair)) for pair in method.row_pairs()}
    for images in batches:
        streams = [stream(row, images) for row in rows]
        for (source, target), fit in fits.items():
            fit.add(streams[source], streams[target])
    for (source, target), fit in fits.items():
        unknowns = method.row_shapes(auxiliary)[source].embed_dim + 1
        if fit.count < unknowns:
            warn(
                f"pool.stitches: {fit.count} tokens for the {unknowns} unknowns of every output of a stitch layer; the "
                "least-squares solution of minimum norm is taken: use more pool.images"
            )
        for layer, (weight, bias) in fit.solved().items():
            tensors[f"stitch.{source}.{target}.{layer}.weight"].copy_(weight)
            tensors[f"stitch.{source}.{target}.{layer}.bias"].copy_(bias)


class _Fit:
    """The normal equations of all stitches between two rows, summed in double precision."""

    def __init__(self, stitches: dict[tuple[int, int], int]) -> None:
        self.stitches = stitches
        self.count = 0
        self._gram: dict[int, Tensor] = {}
        self._cross: dict[tuple[int, int], Tensor] = {}

    def add(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        """Adds a batch's features: what enters every block of the rows, and what leaves the last."""
        inputs = {j: target[j].flatten(0, -2).double() for j in sorted({j for _, j in self.stitches})}
        for i in sorted({i for i, _ in self.stitches}):
            tokens = source[i + 1].flatten(0, -2).double()
            tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
            self._gram[i] = self._gram.get(i, 0) + tokens.T @ tokens
            for j in [j for other, j in self.stitches if other == i]:
                self._cross[i, j] = self._cross.get((i, j), 0) + tokens.T @ inputs[j]
        self.count += len(tokens)

    def solved(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Weight and bias of every layer."""
        inverses = {i: _pseudo_inverse(gram) for i, gram in self._gram.items()}
        solutions: dict[int, list[Tensor]] = {}
        for (i, j), layer in self.stitches.items():
            solutions.setdefault(layer, []).append(inverses[i] @ self._cross[i, j])
        means = {layer: torch.stack(each).mean(0).T for layer, each in solutions.items()}
        return {layer: (mean[:, :-1].float(), mean[:, -1].float()) for layer, mean in means.items()}


def _pseudo_inverse(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    values, vectors = torch.linalg.eigh(gram)
    kept = values > CUTOFF * values[-1]
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
