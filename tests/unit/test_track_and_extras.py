"""What is optional: TensorBoard events, and packages that are missing."""

import sys
from pathlib import Path

import pytest

import learngene
from learngene import finetune, scratch
from pico import CLI, FAST, pico_gene, pico_shape


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path))
    found.Reload()
    return {key: [(event.step, event.value) for event in found.Scalars(key)] for key in found.Tags()["scalars"]}


def test_a_run_writes_its_epochs_as_tensorboard_events(images: Path, tmp_path: Path) -> None:
    data = {"source": str(images), "workers": 0}
    result = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST)
    found = events(tmp_path / "run")
    for key in ("loss", "lr", "top1", "val_loss"):
        assert [step for step, _ in found[key]] == [1, 2]
        assert [value for _, value in found[key]] == pytest.approx([entry[key] for entry in result.history], rel=1e-5)


def test_a_run_needs_no_tensorboard(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    data = {"source": str(images), "workers": 0}
    result = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST)
    assert result.updates == 6
    assert not list((tmp_path / "run").glob("events*"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_an_export_without_its_extra_says_what_to_install(
    package: str, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learngene.save_descendant(pico_gene().expand(2), tmp_path / "des")
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("export", tmp_path / "des", "--out", tmp_path / "m.onnx")
    assert result.code == 2
    assert result.err.splitlines() == [
        f"learngene: export: package '{package}' is missing; pip install 'learngene[export]'"
    ]
    assert not (tmp_path / "m.onnx").exists()
