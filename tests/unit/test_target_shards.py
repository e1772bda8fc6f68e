"""How a teacher's outputs are stored: bytes of a view, the rest of top-k logits, and headers that are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learngene.training.target_shards import Collected, DamagedTargetsError, Form, Like, Shard


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


@pytest.mark.parametrize("change", [{"count": "3"}, {"dtype": "float64"}, {"strides": "1 4 0"}, {"digest": ""}, {}])
def test_a_file_whose_header_is_changed_is_damaged(change: dict[str, str], tmp_path: Path) -> None:
    output, path = torch.arange(8.0).view(2, 4), tmp_path / "shard.safetensors"
    collected = Collected(2, {})
    collected.add(torch.arange(2), {"values": output}, output)
    collected.write(path)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    save_file(tensors, path, {**said, **change})
    if change:
        with pytest.raises(DamagedTargetsError, match="stored targets are damaged"):
            Shard.read(path, 2)
    else:
        assert torch.equal(Shard.read(path, 2).like.laid_out(tensors["values"]), output)
