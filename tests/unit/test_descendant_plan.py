"""Planning from a descendant folder: what it takes, and what else its gene makes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from learngene import save_descendant, scratch
from pico import CLI, pico_gene, pico_shape


@pytest.mark.parametrize("place", ["gene.safetensors", "runs/gene.safetensors"])
def test_a_descendant_is_told_with_the_smaller_ones_of_its_gene(cli: CLI, tmp_path: Path, place: str) -> None:
    (tmp_path / "runs").mkdir()
    gene = pico_gene("sws", {"stages": (1, 1, 1)})
    gene.save(tmp_path / place)
    pico_gene("sws", {"stages": (2, 1, 1)}).save(tmp_path / "other.safetensors")
    folder, shape = tmp_path / "models" / "six", pico_shape(depth=6)
    assert cli("expand", tmp_path / place, "--depth", "6", "--out", folder).code == 0
    told = cli("plan", folder)
    assert told.out.startswith(f"{shape.size}  {shape.params() / 1e6:9.3f} M params")
    assert " ms" in told.out.splitlines()[0]
    assert f"smaller ones of {tmp_path / place}: 3, the largest first" in told.out
    assert f"next: learngene expand {tmp_path / place} --depth " in told.out
    found = json.loads(cli("plan", folder, "--json", "--no-measure").out)
    assert {one["shape"]["depth"] for one in found["smaller"]} == {3, 4, 5}
    assert found["latency"] is None
    assert found["size"] == (folder / "model.safetensors").stat().st_size / 1e6
    (tmp_path / place).unlink()
    assert "is not near" in cli("plan", folder, "--no-measure").out


def test_what_is_no_plan_of_a_descendant_is_refused(
    refused: Callable[..., str], cli: CLI, ancestry_folder: Path, tmp_path: Path
) -> None:
    save_descendant(scratch(pico_shape()), tmp_path / "model")
    assert "it was made from no gene" in cli("plan", tmp_path / "model", "--no-measure").out
    line = refused("plan", tmp_path / "model", "--max-params", "1M")
    assert line.endswith("is one model, of one size; plan its gene")
    for flag, value in {"--sizes": "1M", "--num-classes": 3, "--threads": 2, "--device": "cuda"}.items():
        assert f"{flag}: " in refused("plan", tmp_path / "model", flag, value)
