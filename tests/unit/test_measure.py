"""Latency, sizes and memory of a gene's shapes in the runtime that will run them: measured here or elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learngene import Budget, OnDevice, ViTShape, measure_on_device, plan
from learngene.devices import measure
from learngene.devices.measurements import Measurements, Point, fit
from learngene.methods.base import DEEPEST
from learngene.system.errors import LearngeneError
from pico import CLI, pico_gene, pico_shape


def needs(package: str) -> list[pytest.MarkDecorator]:
    missing = importlib.util.find_spec(package) is None
    return [pytest.mark.skipif(missing, reason=f"{package} is not installed"), pytest.mark.slow]


def milliseconds(shape: ViTShape) -> float:
    """A made-up device: half a millisecond for stem and head, and a layer by its weights."""
    return 0.5 + shape.depth * shape.layer_size() / 1000


def measured(*shapes: ViTShape, memory: bool = True, **changes: Any) -> Measurements:
    points = [
        Point(
            shape=shape.to_dict(),
            milliseconds=milliseconds(shape),
            stored=100 + 10 * shape.depth,
            memory=5.0 + shape.depth if memory else None,
        )
        for shape in shapes
    ]
    how: dict[str, Any] = {"runtime": "onnxruntime", "runtime_version": "1", "precision": "fp32", "batch_size": 1}
    return Measurements(**{**how, "threads": None, "environment": {}, "points": points, **changes})


def at(depth: int, **changes: Any) -> ViTShape:
    return pico_shape(depth=depth, **changes)


@pytest.fixture
def gene(tmp_path: Path) -> Path:
    pico_gene().save(tmp_path / "gene.safetensors")
    return tmp_path / "gene.safetensors"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """No runtime is asked: what would be measured is noted, widths by call."""
    asked: list[list[int]] = []

    def write(folder: Path, shapes: list[ViTShape], *, memory: bool, **how: Any) -> None:
        asked.append([shape.embed_dim for shape in shapes])
        every = [shape.replace(depth=depth) for shape in shapes for depth in measure.DEPTHS]
        measured(*every, memory=memory, **how).write(folder / "latency.json")

    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "write_models", write)
    monkeypatch.setattr(measure, "_run", lambda folder: Measurements.read(folder / "latency.json"))
    return asked


# -- the lines ---------------------------------------------------------------------------------------------


def test_a_line_is_fitted_by_relative_differences() -> None:
    assert fit([(1, 3.0), (4, 9.0), (8, 17.0)]) == pytest.approx((1, 2, 0))
    base, slope, off = fit([(1, 3.0), (4, 9.9), (8, 17.0)])
    assert off == max(abs(base + slope * depth - y) / y for depth, y in ((1, 3.0), (4, 9.9), (8, 17.0)))
    assert 0 < off < 0.1
    assert fit([(1, 3.0), (4, 2.0)]).slope == 0  # a layer takes time, whatever the noise says


def test_widths_between_two_measured_ones_and_paths_of_a_pool_follow() -> None:
    every = [at(depth, embed_dim=width, num_heads=width // 8) for width in (16, 32, 48) for depth in (1, 4, 8)]
    found = measured(*every)
    for shape in (at(20), at(5, embed_dim=24, num_heads=3), at(3, embed_dim=40, num_heads=5)):
        assert found.at(shape, "milliseconds") == pytest.approx(milliseconds(shape))
    assert found.at(at(5, embed_dim=24, num_heads=3), "memory") == pytest.approx(10)
    for told in ("depths 1, 4, 8 are off by at most 0.0%", "foretold by its neighbours within 0.0%"):
        assert told in found.told()
    pool = pico_gene("pool", {"rows": (16, 32)}, embed_dim=32, num_heads=4)
    path = next(one.shape for one in plan(pool) if len(one.shape.segments) == 2)
    parts = path.parts
    stitch = parts[0].embed_dim * parts[1].embed_dim / 1000
    layers = sum(part.depth * part.layer_size() / 1000 for part in parts)
    assert found.at(path, "milliseconds") == pytest.approx(0.5 + layers + stitch)


def test_a_shape_that_was_not_measured_is_refused() -> None:
    found = measured(at(1), at(4))
    with pytest.raises(LearngeneError, match=r"not measured for .* 7 classes and 8 px; measured are width 16"):
        found.at(at(1, num_classes=7), "milliseconds")
    with pytest.raises(LearngeneError, match="the peak memory was not measured"):
        measured(at(1), at(4), memory=False).at(at(1), "memory")


# -- planning in it ----------------------------------------------------------------------------------------


def test_limits_hold_on_the_device_and_every_depth_is_told(device: list[list[int]]) -> None:
    gene, on = pico_gene(), OnDevice("onnxruntime")
    (*found, last) = plan(gene, on=on)
    assert len(found) == DEEPEST - 1
    assert (last.latency, last.size, last.memory) == (pytest.approx(milliseconds(at(1))), pytest.approx(110e-6), None)
    limit = milliseconds(at(6)) + 1e-9
    assert [one.shape.depth for one in plan(gene, Budget(max_latency=limit), on=on)] == [6, 5, 4, 3, 2, 1]
    assert max(one.shape.depth for one in plan(gene, Budget(max_size=131e-6), on=on)) == 3
    with_memory = plan(gene, Budget(max_memory=8.1), on=on)
    assert max(one.shape.depth for one in with_memory) == 3
    assert with_memory[0].memory == pytest.approx(8)
    assert device == [[16], [16]]  # the second time for its memory


def test_what_was_measured_is_remembered_by_environment(
    device: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        plan(pico_gene(), on=OnDevice("onnxruntime"))
    assert len(device) == 1
    plan(pico_gene(), on=OnDevice("onnxruntime", threads=2))
    plan(pico_gene(), on=OnDevice("onnxruntime", precision="int8"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    plan(pico_gene(), on=OnDevice("onnxruntime"))
    assert len(device) == 4


def test_of_many_widths_three_are_measured(device: list[list[int]]) -> None:
    gene = pico_gene("any-size", embed_dim=64, num_heads=4)
    widths = {one.shape.embed_dim for one in plan(gene)}
    assert len(widths) > 3
    assert {one.shape.embed_dim for one in plan(gene, on=OnDevice("onnxruntime"))} == widths
    (asked,) = device
    assert (len(asked), asked[0], asked[-1]) == (3, min(widths), max(widths))
    plan(gene, on=OnDevice("onnxruntime"))
    assert len(device) == 1


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("onnxruntime", "fp32"),
        pytest.param("torch", "fp32", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "int8", marks=pytest.mark.slow),
        pytest.param("torch-compile", "fp32", marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", marks=needs("openvino")),
        pytest.param("executorch", "fp32", marks=needs("executorch")),
    ],
)
def test_a_runtime_is_really_measured_elsewhere(
    runtime: str, precision: str, gene: Path, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "DEPTHS", (1, 2))
    how: dict[str, Any] = {"runtime": runtime, "precision": precision, "threads": 1, "batch_size": 2}
    files = measure_on_device(gene, tmp_path / "device", **how)
    assert len(files) == 2
    script = (tmp_path / "device" / "measure.py").read_text()
    assert "learngene." not in script
    done = subprocess.run(
        [sys.executable, tmp_path / "device" / "measure.py"], capture_output=True, text=True, check=True
    )
    (tmp_path / "latency.json").write_text(done.stdout)
    found = Measurements.read(tmp_path / "latency.json")
    assert {name: getattr(found, name) for name in how} == how
    assert [point.shape["depth"] for point in found.points] == [1, 2]
    assert all(point.milliseconds > 0 and (point.memory or 1) > 0 for point in found.points)
    shown = cli("plan", gene, "--latency-file", tmp_path / "latency.json", "--max-latency", 1e6)
    assert shown.code == 0, shown.err
    assert f"{runtime} {found.runtime_version}, {precision}, 1 thread, batch 2: lines over depths 1, 2" in shown.out
    assert len(shown.out.splitlines()) == DEEPEST + 2


def test_a_runtime_is_really_measured_here(
    gene: Path, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "DEPTHS", (1, 2))
    shown = cli("plan", gene, "--runtime", "onnxruntime", "--json")
    assert shown.code == 0, shown.err
    assert all(one["latency"] > 0 and one["size"] > 0 for one in json.loads(shown.out))
    assert re.match(
        r"onnxruntime \S+, fp32, threads of its own choice, batch 1: lines .* are off by at most .*%", shown.err
    )
    (path,) = (tmp_path / "cache").iterdir()
    before = path.read_text()
    assert cli("plan", gene, "--runtime", "onnxruntime", "--json").out == shown.out
    path.write_text("{")
    assert cli("plan", gene, "--runtime", "onnxruntime").code == 0  # a damaged memory is measured anew
    assert path.read_text() != before


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runtime onnxrt", "unknown runtime 'onnxrt'; did you mean 'onnxruntime'?"),
        ("--runtime torch --threads 0", "threads must be from 1 to 1024, not 0"),
        ("--runtime torch --batch-size 0", "batch_size must be 1 or more, not 0"),
        ("--runtime torch --batch-size 5000", "plan: batch_size must be from 1 to 4096, not 5000"),
        (
            "--runtime torch --precision int8",
            "plan: torch has no files in int8 here; give --precision fp32, fp16, bf16",
        ),
        ("--runtime torch --device cuda", "--device cuda: runtimes are measured on the CPU"),
        ("--threads 2", "--threads: is of a runtime; say which with --runtime"),
        ("--precision int8", "--precision: is of a runtime"),
        ("--max-memory 3", "max_memory is measured in a runtime"),
        ("--latency-file FILE --threads 1", "--latency-file: says runtime, precision, threads and batch size itself"),
        ("--latency-file FILE --num-classes 7", "was not measured for"),
        ("--latency-file FILE --max-latency 0.01", "the fastest is depth 1 with"),
        (
            "--latency-file FILE --max-size 0.00001",
            "the smallest is depth 1 with 0.00011 MB, more than",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(flags: str, message: str, gene: Path, cli: CLI, tmp_path: Path) -> None:
    measured(at(1), at(4)).write(tmp_path / "latency.json")
    result = cli("plan", gene, *flags.replace("FILE", str(tmp_path / "latency.json")).split())
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "{", "damaged, it is no JSON"),
        (lambda content: json.dumps({"milliseconds": {}}), "not a file of measured latencies"),
        (lambda content: json.dumps({**content, "version": 2}), "another version"),
        (lambda content: json.dumps({**content, "points": []}), "every width must be measured at two depths or more"),
        (lambda content: json.dumps({**content, "points": content["points"][:1]}), "two depths or more"),
        (
            lambda content: json.dumps(content).replace('"milliseconds": ', '"milliseconds": -'),
            "damaged, 'points.0",
        ),
        (lambda content: json.dumps(content).replace('"depth": 1', '"depth": 0'), "damaged, shape: depth"),
        (
            lambda content: json.dumps(content).replace('"stored": ', '"stored": 9999999999999999'),
            "damaged, 'points.0",
        ),
        (lambda content: json.dumps(content).replace('"memory": ', '"memory": -'), "damaged, 'points.0"),
        (lambda content: json.dumps({**content, "runtime": "nonsense"}), "damaged, 'runtime'"),
        (lambda content: json.dumps({**content, "threads": 0}), "damaged, 'threads'"),
        (lambda content: json.dumps(content).replace('"depth": 1', '"layers": 1'), "damaged, shape: unknown"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(
    change: Callable[[Any], str], message: str, gene: Path, cli: CLI, tmp_path: Path
) -> None:
    measured(at(1), at(4)).write(tmp_path / "latency.json")
    content = json.loads((tmp_path / "latency.json").read_text())
    content.pop("digest")  # a program on a device writes none
    (tmp_path / "latency.json").write_text(change(content))
    result = cli("plan", gene, "--latency-file", tmp_path / "latency.json")
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err


def test_what_lies_in_the_folder_is_not_lost(gene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DEPTHS", (1, 2))
    out = tmp_path / "device"
    measure_on_device(gene, out, runtime="torch")
    stale = out / "model-9-8x1.pt2"
    for path in (out / "latency.json", stale):
        path.write_text("measured there")
    measure_on_device(gene, out, runtime="torch", threads=1)
    assert (out / "latency.json").read_text() == "measured there"
    assert json.loads((out / "learngene-models.json").read_text())["threads"] == 1
    assert not stale.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runtime torch --precision int8", "torch has no files in int8 here; give --precision fp32, fp16, bf16"),
        ("--runtime onnxrt", "unknown runtime 'onnxrt'; did you mean 'onnxruntime'?"),
        ("--threads 5000", "threads must be from 1 to 1024, not 5000"),
    ],
)
def test_what_cannot_be_measured_elsewhere_is_told_by_its_own_command(
    flags: str, message: str, gene: Path, cli: CLI, tmp_path: Path
) -> None:
    result = cli("measure-on-device", gene, "--out", tmp_path / "out", *flags.split())
    assert (result.code, result.err.splitlines()[-1]) == (2, f"learngene: measure-on-device: {message}")
    assert not (tmp_path / "out").exists()


def test_a_precision_that_this_cpu_lacks_can_be_measured_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pico_gene().save(tmp_path / "gene.safetensors")
    files = measure_on_device(tmp_path / "gene.safetensors", tmp_path / "out", runtime="openvino", precision="bf16")
    assert all((tmp_path / "out" / file).is_file() for file in files)


def test_a_runtime_that_is_not_installed_names_the_extra(
    gene: Path, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    for command in (["plan", gene], ["measure-on-device", gene, "--out", tmp_path / "out"]):
        result = cli(*command, "--runtime", "executorch")
        assert result.code == 2
        assert "is missing; pip install 'learngene[executorch]'" in result.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_program_that_ends_badly_is_told_by_its_last_line(
    gene: Path, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))

    def write(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "measure.py").write_text("import sys; sys.exit('measure: this CPU has no bf16')")

    monkeypatch.setattr(measure, "write_models", write)
    result = cli("plan", gene, "--runtime", "torch", "--precision", "bf16")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "the runtime cannot time these models here (measure: this CPU has no bf16)" in result.err


# -- without a gene ----------------------------------------------------------------------------------------

IN_RUNTIME = ("--max-latency", "300", "--runtime", "onnxruntime")


def test_sizes_are_planned_without_a_gene_in_a_runtimes_time(cli: CLI, device: list[list[int]]) -> None:
    # Of a layer in thousands: 12 w² + 13 w, so 12.7 at 32, 50.0 at 64, 111.8 at 96. As deep as the rule has it (2, 4
    # and 6 layers) and with stem and head: 25.9, 200.4 and 671.3 ms.
    told = [cli("plan", *IN_RUNTIME, "--img-size", "64", "--num-classes", "7", "--no-measure") for _ in range(2)]
    assert told[0].out == told[1].out
    assert "4 layers x 64 (2 heads)" in told[0].out
    assert "200.4" in told[0].out
    assert device == [[64, 192], [32, 96]]  # 64 in two heads lies between 32 and 96, and nothing is measured twice


def test_models_are_shipped_by_a_runtimes_time(
    cli: CLI,
    device: list[list[int]],
    images: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = cli("ship", images, *IN_RUNTIME, "--budget-macs", "1T", "--dry-run", "data.img_size=64", "data.workers=0")
    assert "4 layers x 64 (2 heads)" in told.out
    assert device[:2] == [[64, 192], [32, 96]]
    assert "unknown runtime 'onnx'" in refused("ship", images, "--runtime", "onnx", "--dry-run")
    monkeypatch.setattr("learngene.devices.export.export", lambda model, path: path.write_bytes(b"onnx"))
    small = ("--sizes", "16K", "--budget-macs", "1G", "--runtime", "onnxruntime", "--out", tmp_path / "out")
    assert cli("ship", images, *small, "data.img_size=8", "data.workers=0").code == 0
    (model,) = json.loads((tmp_path / "out" / "result.json").read_text())["models"]
    assert model["latency_ms"] == pytest.approx(milliseconds(ViTShape.from_dict(model["shape"])), abs=1e-3)
    assert "in onnxruntime" in (tmp_path / "out" / "index.html").read_text()
