"""The run-time elastic model: all paths of a pool in one module, for devices whose budget changes while they run.

Every path is an ordinary model whose parameters are the gene's own tensors, so that switching copies nothing.
"""

from __future__ import annotations

import functools
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from learngene.genes.gene import Learngene
from learngene.genes.plan import Budget, Candidate, plan
from learngene.methods.stitching import rows_of
from learngene.system.errors import LearngeneError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape


class ElasticViT(nn.Module):
    """A pool that computes along one path at a time. It starts on the widest row.

    Its parameters are those of the gene it was made from: training the one trains the other.

    Attributes:
        gene: The pool's gene.
        shape: The shape of the current path.
    """

    def __init__(self, gene: Learngene | str | Path) -> None:
        """Prepares every path.

        Args:
            gene: The gene of a pool or an SN-Net, or its file.

        Raises:
            LearngeneError: If the gene has no paths.
        """
        super().__init__()
        self.gene = gene if isinstance(gene, Learngene) else Learngene.load(gene)
        method, auxiliary = self.gene.method, self.gene.shape
        if method.making != "pool":
            raise LearngeneError(
                f"elastic: a gene of method {method.name} has no paths to switch between; a pool has (pool, sn-net)"
            )
        # A plain dictionary: were the views submodules, every shared parameter would be listed again.
        self._views: dict[Shape, nn.Module] = {}
        for shape in rows_of(method).paths(auxiliary):
            view = shape.skeleton()
            view.load_state_dict(self.gene.weights(shape), strict=True, assign=True)
            self._views[shape] = view
        self.shape: Shape = auxiliary

    def set_path(self, path: str | Shape | Budget) -> None:
        """Switches to another path; nothing is copied or loaded.

        Args:
            path: Its name, ``192:1-4+768:5-6`` or ``4+2``; its shape; or a budget, whose best path is taken.

        Raises:
            LearngeneError: If the pool has no such path, or none that fits.
        """
        if isinstance(path, Budget):
            path = self._best(path)
        elif isinstance(path, str):
            path = self.gene.method.named_shape(self.gene.shape, path)
        elif not isinstance(path, ViTShape | StitchedShape):
            raise LearngeneError(
                f"elastic: a path is a name such as '{self.gene.shape.path}', a shape or a Budget, not {path!r}"
            )
        if path not in self._views:
            self.gene.method.refuse(self.gene.shape, path)
            raise LearngeneError("elastic: classes and image size are the gene's own; expand the path to change them")
        self.shape = path

    def paths(self) -> list[Candidate]:
        """Every path with its parameters, multiply-adds and measured accuracy, best first."""
        return list(self._candidates)

    @functools.cached_property
    def _candidates(self) -> list[Candidate]:
        return plan(self.gene)

    def _best(self, budget: Budget) -> Shape:
        # Sizes are known beforehand, so that a switch takes no time; only latencies have to be measured.
        fitting = self._candidates if budget.max_latency is None else plan(self.gene, budget)
        for candidate in fitting:
            if budget.admits(candidate.shape):
                return candidate.shape
        raise LearngeneError(f"elastic: no path fits {budget}; paths() lists them all")

    def views(self) -> dict[Shape, nn.Module]:
        """The model of every path, all of which share the gene's parameters."""
        return dict(self._views)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of the current path for normalised images."""
        view = self._views[self.shape]
        if view.training != self.training:
            view.train(self.training)
        logits: Tensor = view(images)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers shall not decay besides norms and biases."""
        return {f"gene.{name}" for name in self.gene.no_weight_decay()}
