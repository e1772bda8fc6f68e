"""How a teacher's outputs are stored: bytes of a view, and what becomes of the rest of top-k logits."""

from __future__ import annotations

import pytest
import torch

from learngene.training.target_shards import Form, Like


@pytest.mark.parametrize(
    ("form", "shape", "size"),
    [
        (Form("logits", "float32"), (1000,), 4008),
        (Form("logits", "bfloat16", 10), (1000,), 11 * 2 + 10 * 2 + 8),
        (Form("logits", "float16", 10), (21841,), 50),
        (Form("logits", "float16", 10), (40000,), 70),  # whose classes need four bytes
        (Form("class", "float16"), (384,), 776),
        (Form("patches", "bfloat16"), (64, 768), 98312),
    ],
    ids=str,
)
def test_bytes_of_a_view(form: Form, shape: tuple[int, ...], size: int) -> None:
    """By hand: values, classes of top-k logits, and 8 bytes of the image's fingerprint."""
    assert form.view_bytes(shape) == size
    output = torch.randn(3, *shape)
    stored = form.encoded(output)
    assert sum(value.nbytes for value in stored.values()) == 3 * (size - 8)


@pytest.mark.parametrize(
    ("given", "top_k", "expected"),
    [
        ([0.5, 0.3, 0.1, 0.1], 2, [0.5, 0.3, 0.1, 0.1]),
        ([0.05, 0.6, 0.15, 0.2], 1, [2 / 15, 0.6, 2 / 15, 2 / 15]),
        ([0.05, 0.6, 0.15, 0.2], 2, [0.1, 0.6, 0.1, 0.2]),
    ],
)
def test_what_top_k_leaves_is_spread_evenly(given: list[float], top_k: int, expected: list[float]) -> None:
    logits = torch.tensor([given]).log() + 3.0  # the same probabilities
    form = Form("logits", "float32", top_k)
    back = form.decoded(form.encoded(logits), Like.of(logits))
    torch.testing.assert_close(back.softmax(-1), torch.tensor([expected]))
    torch.testing.assert_close(back.exp().sum(-1), torch.ones(1))
