"""The super ancestry net of LSAMD: a ViT in every layer of which a frozen and a trained block stand side by side.

Layer i has the ancestry's base block hB, a dataset-specific block hD that starts as a copy of it, and a dataset adapter
(DAD) that decides which of the two runs (Shi et al., 2026, section "Learngene Search Across Multiple Datasets"). The
net is timm's VisionTransformer with other blocks, so it has timm's forward and takes every head that a ViT takes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Bool, Float
from torch import Tensor, nn

from learngene.recipe.search import Routing
from learngene.vits.input_size import resize
from learngene.vits.timm_layout import embedding

Tokens = Float[Tensor, "batch tokens width"]

NOISE_FLOOR = 0.01
"""Added to the noise's deviation, as in the noisy gates of Shazeer et al. (2017), whose form the paper takes."""

BASE = 1
"""Column of the base block in equation 1, which names the specific block first."""


class DatasetAdapter(nn.Module):
    """DAD: the probability that a sample takes the base block (equation 1).

    Both matrices start at zero: with noise the first choices are a fair coin for every sample, so that specific blocks
    are trained from the start; without noise all samples are undecided, which counts as the base block (equation 3).
    """

    def __init__(self, width: int, spec: Routing) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.zeros(width, 2))
        self.W2 = nn.Parameter(torch.zeros(width, 2))
        self.spec = spec

    def forward(self, x: Tokens) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """P(hB) of every sample, and whether it prefers the base block."""
        if self.spec.descriptor == "mean":
            # The class token is the same for all images in the first layer, and says nothing about the data set there.
            described = x.mean(dim=1)
        elif self.spec.descriptor == "cls":
            described = x[:, 0]
        else:
            described = x
        logits = (described @ self.W1).float()
        if self.spec.noise == "literal":
            logits = logits + F.softplus((described @ self.W2).float())
        elif self.spec.noise == "gaussian" and self.training:
            deviation = F.softplus((described @ self.W2).float()) + NOISE_FLOOR
            logits = logits + torch.randn_like(logits) * deviation
        base = logits.softmax(dim=-1)[..., BASE]
        prefers = logits[..., BASE] >= logits[..., 1 - BASE]  # equation 3: a tie goes to the base block
        if self.spec.descriptor == "vote":
            return base.mean(dim=1), 2 * prefers.sum(dim=1) >= prefers.shape[1]
        return base, prefers


class RoutedBlock(nn.Module):
    """One layer: base block, specific block and adapter, of which one block runs.

    Attributes:
        base: The ancestry's block, frozen and not copied.
        specific: Its trained copy.
        adapter: The DAD.
        probability: P(hB) of every sample of the last batch.
        prefers: Whether it prefers the base block.
    """

    probability: Float[Tensor, " batch"]
    prefers: Bool[Tensor, " batch"]

    def __init__(self, base: nn.Module, width: int, spec: Routing) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.specific = copy.deepcopy(base).requires_grad_(True)
        self.adapter = DatasetAdapter(width, spec)
        self.spec = spec

    def forward(self, x: Tokens, *args: Any, **kwargs: Any) -> Tokens:
        """Tokens in, tokens of the chosen block out."""
        base, prefers = self.adapter(x)
        self.probability, self.prefers = base, prefers.detach()
        if self.spec.route == "batch":
            # More than half of the samples have to prefer a block; exactly half counts as the base block.
            whole = bool(2 * prefers.sum() >= len(prefers))
            chosen = base if whole else 1 - base
            block, other = (self.base, self.specific) if whole else (self.specific, self.base)
            out = block(x, *args, **kwargs)
        else:
            chosen = torch.where(prefers, base, 1 - base)
            out = self._each_its_own(x, prefers, *args, **kwargs)
        if self.spec.gate == "scale":
            return chosen[:, None, None].to(out.dtype) * out
        if not torch.is_grad_enabled():
            return out
        if self.spec.gate == "straight-through":
            return _through(x, out, chosen)
        count = max(1, round(self.spec.compared * len(x)))
        with torch.no_grad():
            if self.spec.route == "batch":
                unused = other(x[:count], *args, **kwargs)
            else:
                unused = self._each_its_own(x[:count], ~prefers[:count], *args, **kwargs)
        # h + (p - sg p) h + (p' - sg p') o, where p' = 1 - p and o is the block that was not chosen.
        return _through(unused, out, chosen)

    def _each_its_own(self, x: Tokens, prefers: Tensor, *args: Any, **kwargs: Any) -> Tokens:
        """Both blocks on their samples, put back in order; a block without samples does not run."""
        count = int(prefers.sum())
        if count in (0, len(prefers)):
            whole: Tensor = (self.base if count else self.specific)(x, *args, **kwargs)
            return whole
        order = torch.argsort(prefers.int(), stable=True)
        sorted_x = x[order]
        specific = self.specific(sorted_x[: len(x) - count], *args, **kwargs)
        base = self.base(sorted_x[len(x) - count :], *args, **kwargs)
        return torch.cat([specific, base])[torch.argsort(order)]


class _Through(torch.autograd.Function):
    """Gives ``out`` and lets the gate see what choosing it was worth.

    The value is exactly ``out``; the gradient is that of out + (p - sg p)(out - reference). With the layer's input as
    reference, the gate learns how useful the chosen block's update was; with the other block's output, how useful it
    was to choose this block and not the other. A reference for the first samples only lets the gate see these alone.
    Nothing is computed on the way forward.
    """

    @staticmethod
    def forward(ctx: Any, reference: Tensor, out: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(reference, out)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (gradient,) = gradients
        reference, out = ctx.saved_tensors
        seen = len(reference)
        flat = gradient[:seen].flatten(1)
        useful = torch.linalg.vecdot(flat, out[:seen].flatten(1)) - torch.linalg.vecdot(flat, reference.flatten(1))
        return None, gradient, F.pad(useful.float(), (0, len(out) - seen))


def _through(reference: Tokens, out: Tokens, chosen: Float[Tensor, " batch"]) -> Tokens:
    value: Tensor = _Through.apply(reference.detach(), out, chosen)
    return value


class SuperNet(nn.Module):
    """A model whose layers are routed, with what is needed to train it and to read its paths.

    Attributes:
        model: What ``routed`` made, with or without another head, or a segmenter around it.
        layers: The routed blocks, first layer first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = [module for module in model.modules() if isinstance(module, RoutedBlock)]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Logits of the model."""
        logits: Tensor = self.model(images)
        return logits

    def specific_share(self) -> Float[Tensor, ""]:
        """Mean P(hD) over layers and samples of the last batch: what a preference for base blocks weighs down."""
        return torch.stack([1 - layer.probability.mean() for layer in self.layers]).mean()

    @torch.inference_mode()
    def layer_usage(self, batches: Iterable[tuple[Tensor, Any]]) -> tuple[list[float], list[float]]:
        """What the adapters say without noise; every layer sees what the layers before it chose.

        Args:
            batches: Normalised images of the evaluation split, with labels that are not looked at.

        Returns:
            Per layer: the share of samples that prefer the base block, and their mean probability of it.
        """
        device = next(self.parameters()).device
        sums, count = torch.zeros(2, len(self.layers), dtype=torch.float64), 0
        self.eval()
        for images, _ in batches:
            self(images.to(device))
            said = [torch.stack([layer.prefers.double(), layer.probability.double()]) for layer in self.layers]
            sums += torch.stack(said, dim=1).sum(dim=-1).cpu()
            count += len(images)
        share, soft = (sums / count).tolist()
        return share, soft

    def no_weight_decay(self) -> set[str]:
        """The adapters; norms and biases are never decayed."""
        return {name for name, _ in self.named_parameters() if name.endswith((".adapter.W1", ".adapter.W2"))}


def routed(ancestry: Any, spec: Routing, img_size: int | None = None) -> Any:
    """A timm ViT with routed layers: frozen but for specific blocks, adapters, final norm and head.

    It shares the ancestry's frozen parameters, and computes exactly what that does, whatever its adapters say. For
    images of another size, position embeddings are resampled.
    """
    shared = [*embedding(ancestry).parameters(), *ancestry.blocks.parameters()]
    model = copy.deepcopy(ancestry, {id(parameter): parameter for parameter in shared})
    resize(model, img_size)
    model.requires_grad_(False)
    for name in ("norm", "fc_norm"):
        getattr(model, name, nn.Identity()).requires_grad_(True)
    blocks = [RoutedBlock(block, model.embed_dim, spec) for block in model.blocks]
    model.blocks = type(model.blocks)(*blocks) if isinstance(model.blocks, nn.Sequential) else nn.ModuleList(blocks)
    return model
