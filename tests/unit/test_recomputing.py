"""Activations that are computed again for gradients: the same bits, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hyper
from learngene import LearngeneError, condense, finetune, scratch
from learngene.vits.recomputing import recompute_layers
from pico import FAST, batch, pico_gene, pico_shape
from runs import same

SIZES = [{"embed_dim": 8, "depth": 1}, {"embed_dim": 8, "depth": 2}, {"depth": 2}]
DROPPED = {**FAST, "drop_path": 0.5, "ema_decay": 0.9, "use_ema": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "tleg"},
        {"method": "nested-slices", "shapes": {"sizes": SIZES, "sandwich": 1}},
        {
            "method": "tleg",
            "shape": pico_shape(depth=2, num_classes=0),
            "distill": {"target": "features"},
            "features": {"blocks": [[1, 1]]},
        },
    ],
    ids=["tleg", "several shapes", "features of blocks"],
)
def test_a_gene_is_the_same_bits(changes: dict[str, Any], images: Path, ancestry_folder: Path) -> None:
    how = {"shape": pico_shape(depth=2, num_heads=2), **changes, "data": {"source": str(images), "workers": 0}}
    one, other = (
        condense(ancestry_folder, **how, **DROPPED, recompute=recompute, show=False) for recompute in (False, True)
    )
    assert other.recompute
    assert same(one.tensors(), other.tensors())
    assert one.metadata.get("accuracy") == other.metadata.get("accuracy")


def test_a_hypernetwork_is_the_same_bits(images: Path, ancestry_folder: Path) -> None:
    trained = [{**hyper.SHORT, "drop_path": 0.5, "recompute": recompute} for recompute in (False, True)]
    one, other = (hyper.home(ancestry_folder, images, None, train=train) for train in trained)
    assert same(one.tensors(), other.tensors())


def test_a_timm_model_is_the_same_bits(images: Path) -> None:
    data, states = {"source": str(images), "workers": 0}, []
    for recompute in (False, True):
        model = scratch(pico_shape(depth=2))
        finetune(model, data=data, **DROPPED, recompute=recompute, show=False)
        states.append(model.state_dict())
    assert same(*states)


def test_what_is_kept_for_gradients_does_not_grow_with_what_a_layer_computes() -> None:
    gene = pico_gene(depth=6)
    images = batch(gene.shape, 8)
    for parameter in gene.parameters():
        parameter.requires_grad_(True)
    kept = []
    for gene.recompute in (False, True):
        sizes: dict[int, int] = {}

        def keep(value: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            gene(images).sum().backward()
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2


def test_a_model_of_which_timm_cannot_is_refused() -> None:
    with pytest.raises(LearngeneError, match=r"^train.recompute: timm cannot compute layers of Identity again; leave"):
        recompute_layers(torch.nn.Identity())
