"""What stitch layers start from: transformation matrices (Learngene Pool) or least squares (SN-Net).

``transformation_start`` and ``least_squares`` are the two rules for one layer, the other functions fill a whole pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from learngene.genes.elastic import ElasticViT
from learngene.genes.gene import Learngene
from learngene.making.block_features import stream
from learngene.methods.stitching import rows_of
from learngene.system.errors import LearngeneError

CUTOFF = 1e-13
"""Squared singular values below this share of the largest count as zero: features are float32, exact to about 1e-7."""

Matrix = Float[Tensor, "width ancestry"]


def transformation_start(back: Matrix | None, forth: Matrix | None) -> Float[Tensor, "target source"]:
    """TM: the weight of a stitch layer between two rows, from the matrices W that they learned in distillation.

    A row's W leads from the ancestry to the row, so its transpose leads back (Learngene Pool, section "Initialization
    of the Stitch Layers"). Between two rows that both are narrower than the ancestry the way leads through its width.

    Args:
        back: W of the row that the layer leaves, (width, ancestry width); None is the identity.
        forth: W of the row that it enters, likewise.

    Raises:
        LearngeneError: If both are the identity.
    """
    if back is None and forth is None:
        raise LearngeneError("pool.stitches: tm needs a row that is not as wide as the ancestry; use ls")
    if back is None or forth is None:
        return forth if back is None else back.T  # type: ignore[return-value]
    return forth @ back.T


def least_squares(
    source: Float[Tensor, "tokens source"], target: Float[Tensor, "tokens target"]
) -> tuple[Float[Tensor, "target source"], Float[Tensor, " target"]]:
    """LS: weight and bias of the linear layer that leads from one block's output to another's input (SN-Net).

    Where the tokens do not determine a solution, the one of minimum norm is taken. Computed in double precision.

    Args:
        source: Tokens behind block i of the row that the layer leaves.
        target: The same tokens before block j of the row that it enters.

    Returns:
        ``weight`` and ``bias`` in single precision: ``source @ weight.T + bias`` is as near ``target`` as can be.
    """
    ones = _with_ones(source)
    return _layer(_pseudo_inverse(ones.T @ ones) @ (ones.T @ target.double()))


@torch.no_grad()
def transformation_stitches(gene: Learngene, matrices: Sequence[Matrix | None]) -> None:
    """TM: fills every stitch layer of a pool from the matrices that its rows learned in distillation.

    All layers between two rows start alike, with zero bias; of the three matrices of a row the paper takes the mean.

    Args:
        gene: The pool; its stitch layers are overwritten.
        matrices: Per row the mean of its W, (width, ancestry width); None is the identity.
    """
    tensors = gene.tensors()
    for name, (source, target) in rows_of(gene.method).stitch_layers(gene.shape).items():
        tensors[f"{name}.weight"].copy_(transformation_start(matrices[source], matrices[target]))
        tensors[f"{name}.bias"].zero_()


@torch.no_grad()
def least_squares_stitches(
    gene: Learngene,
    batches: Iterable[Float[Tensor, "batch channels height width"]],
    warn: Callable[[str], object],
) -> None:
    """LS: fits every stitch (i, j) to lead from the output of block i to the input of block j, see ``least_squares``.

    A layer that several stitches share gets the mean of their solutions. Only sums over images are kept, so memory
    does not grow with them.

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
            tokens = _with_ones(source[i + 1].flatten(0, -2))
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
        return {layer: _layer(torch.stack(each).mean(0)) for layer, each in solutions.items()}


def _with_ones(tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width+1"]:
    """Tokens in double precision, and behind them what the bias is multiplied with."""
    return torch.cat([tokens.double(), tokens.new_ones(len(tokens), 1).double()], dim=1)


def _layer(solution: Float[Tensor, "source+1 target"]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer."""
    return solution[:-1].T.float(), solution[-1].float()


def _pseudo_inverse(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    values, vectors = torch.linalg.eigh(gram)
    kept = values > CUTOFF * values[-1]
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
