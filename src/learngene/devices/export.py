"""A model as a file of another runtime: written, run there again, compared on real images, and only then named."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from learngene.devices.check import Agreement, CheckImages, agreement, calibration_images, check_images
from learngene.devices.executorch import ExecuTorch
from learngene.devices.onnxruntime import OnnxRuntime
from learngene.devices.openvino import OpenVino
from learngene.devices.target import PRECISIONS, Job, Session, Target
from learngene.devices.torch_program import TorchProgram
from learngene.making.arguments import Data, refuse_other
from learngene.system.digest import content_digest
from learngene.system.errors import LearngeneError, nearest
from learngene.system.files import refuse_read_only
from learngene.system.machine_faults import machine_fault
from learngene.system.records import Record, RecordError
from learngene.vits.class_names import class_names
from learngene.vits.input_size import image_config, input_size
from learngene.vits.onnx_export import TOLERANCE

TARGETS: dict[str, type[Target]] = {each.name: each for each in (OnnxRuntime, OpenVino, ExecuTorch, TorchProgram)}

SCORE_BOUND, AGREEMENT_BOUND = 0.5, 2.0
"""Points of accuracy that a file may lose; without labels, percent of images that it may guess otherwise."""

CANDIDATE = 99.0
"""Percent of calibration images that an int8 candidate must guess as the model does; else more layers are left out."""


class DeviceFile(Record):
    """What stands beside an exported file, as ``FILE.json``.

    Attributes:
        target: The runtime that it is for.
        precision: In which it was asked for.
        computed_in: In which the runtime computes its matrix products, as it says itself.
        options: What the runtime must be told at loading.
        largest_batch: That the file was checked with; one of ExecuTorch takes no larger.
        preprocessing: ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct``.
        class_names: Of its outputs, if they have names.
        versions: Of what wrote it.
        files: Bytes of every file.
        files_digest: Digest of them all.
        agreement: With the model, see ``devices.check``.
        notes: What was special.
    """

    kind: ClassVar[str] = "learngene-device-file"
    version: ClassVar[int] = 1
    noun: ClassVar[str] = "a record of an exported file"

    target: str
    precision: str
    computed_in: str
    options: dict[str, str]
    largest_batch: int
    preprocessing: dict[str, Any]
    class_names: list[str] | None
    versions: dict[str, str]
    files: dict[str, int]
    files_digest: str
    agreement: dict[str, Any]
    notes: list[str]


def export(
    model: Any,
    path: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    batch: int = 8,
    data: Data | None = None,
    calibrate: int | None = None,
    bound: float | None = None,
    keep_worse: bool = False,
) -> DeviceFile:
    """Writes a model for a runtime, and ``PATH.json`` beside it, once the file has been run there and compared.

    Args:
        model: A timm model: a descendant, a stitched model, a segmenter, or one without a head.
        path: The file to write; its suffix is the target's.
        to: ``onnx``, ``openvino``, ``executorch`` or ``torch``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``, if the target and this CPU have it.
        batch: The largest batch that it is checked with; ExecuTorch's files take no larger.
        data: Whose val split it is judged on, and whose train split int8 is calibrated on. Without data it is checked
            on some digits, and int8 is refused.
        calibrate: Images to calibrate on; 128 or all by default.
        bound: What the file may lose: points of accuracy (0.5 by default), or without labels percent of images that
            it guesses otherwise (2 by default).
        keep_worse: Write a file that loses more all the same, and say so in ``notes``.

    Raises:
        LearngeneError: If a package is missing, the precision cannot be had, the file loses more than the bound, or
            something else stands at the path.
    """
    model, path = refuse_other("export", model).eval().cpu(), Path(path)
    _refuse_foreign(path, *([path.with_suffix(".bin")] if to == "openvino" else []))
    target = _target(to, precision, path)
    if bound is not None and not 0 <= bound <= 100:
        raise LearngeneError(f"export: --bound must be from 0 to 100 (points of accuracy or percent), not {bound:g}")
    if batch < 1:
        raise LearngeneError(f"export: --batch must be 1 or more, not {batch}")
    if calibrate is not None and (precision != "int8" or calibrate < 1):
        raise LearngeneError(f"export: --calibrate {calibrate}: give 1 or more, and only with --precision int8")
    if precision == "int8" and data is None:
        raise LearngeneError("export: int8 needs images to calibrate on; give --data")
    refuse_read_only(path.parent)
    on = check_images(model, data, batch)
    calibration = None
    if precision == "int8" and data is not None:
        calibration = calibration_images(model, data, calibrate)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        file = Path(folder) / path.name
        job = Job(model, _example(model), precision, batch, calibration, _holds(model, calibration, batch))
        try:
            notes = target.write(job, file)
            session = target.open(file, precision)
        except LearngeneError:
            raise
        except Exception as error:
            if machine_fault(error):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LearngeneError(f"export: {to} cannot take this model ({first[:200]})") from error
        found = agreement(model, session, on, batch)
        notes += _judged(found, precision, bound, keep_worse)
        written = sorted(Path(folder).iterdir(), key=lambda each: each == file)
        record = DeviceFile(
            target=to,
            precision=precision,
            computed_in=session.computed_in,
            options=session.options,
            largest_batch=batch,
            preprocessing={key: _plain(value) for key, value in image_config(model).items()},
            class_names=class_names(model),
            versions=target.versions(),
            files={each.name: each.stat().st_size for each in written},
            files_digest=content_digest({}, *written),
            agreement=asdict(found),
            notes=notes,
        )
        record.write(record_path(file))
        for each in [*written[:-1], record_path(file), file]:  # the file of the path itself comes last
            shutil.move(each, path.with_name(each.name))
    return record


def export_onnx(model: Any, path: str | Path) -> float:
    """``export`` to ONNX in float32; the largest difference of a logit from the model's."""
    return float(export(model, path).agreement["largest_difference"])


def record_path(path: Path) -> Path:
    """Where the record of a file stands."""
    return path.with_name(f"{path.name}.json")


def _target(to: str, precision: str, path: Path) -> Target:
    if to == "litert":
        raise LearngeneError(
            "export: litert-torch needs an older torch than this package; convert the .pt2 of --to torch in an "
            "environment of its own, or give --to onnx, openvino or executorch"
        )
    if to not in TARGETS:
        raise LearngeneError(f"export: unknown target '{to}'{nearest(to, TARGETS)}")
    if precision not in PRECISIONS:
        raise LearngeneError(f"export: unknown precision '{precision}'{nearest(precision, PRECISIONS)}")
    target = TARGETS[to]()
    target.refuse(precision)
    if path.suffix != target.suffix:
        called = "ONNX" if to == "onnx" else to
        raise LearngeneError(f"{path}: {called} files have the suffix {target.suffix}; end the name so")
    return target


def _refuse_foreign(path: Path, *others: Path) -> None:
    """Refuses to replace what no export has written: it has no record beside it."""
    there = [each for each in (path, *others, record_path(path)) if each.exists()]
    if not there:
        return
    try:
        DeviceFile.read(record_path(path))
    except RecordError:
        raise LearngeneError(
            f"{there[0]} exists and no {record_path(path).name} of an export is beside it; choose another output path"
        ) from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _example(model: Any) -> Tensor:
    return torch.randn(2, *input_size(model), generator=torch.Generator().manual_seed(0))


def _holds(model: Any, calibration: Tensor | None, batch: int) -> Any:
    """Whether a candidate guesses calibration images as the model does."""

    def holds(session: Session) -> bool:
        assert calibration is not None
        parts = [(part, torch.zeros(len(part))) for part in calibration.split(64)]
        on = CheckImages("calibration", parts, judged=False)
        return agreement(model, session, on, batch).top1_agreement >= CANDIDATE

    return holds


def _judged(found: Agreement, precision: str, bound: float | None, keep_worse: bool) -> list[str]:
    """What is to be said of a file that loses too much; raises ``LearngeneError`` if it shall not be kept."""
    if precision == "fp32" and not found.relative_difference <= TOLERANCE:
        raise LearngeneError(f"export: the file's logits differ by {found.largest_difference:.2g}; nothing was written")
    if found.score is not None and found.model_score is not None:
        lost, most = found.model_score - found.score, SCORE_BOUND if bound is None else bound
        what = f"loses {lost:.2f} points: {found.score:.2f} % where the model has {found.model_score:.2f} %"
    else:
        lost, most = 100 - found.top1_agreement, AGREEMENT_BOUND if bound is None else bound
        what = f"guesses {lost:.2f} % of the images otherwise than the model"
    if lost <= most:
        return []
    if keep_worse:
        return [f"worse than the bound of {most:g}: {what}"]
    tune = "fine-tune it for a few epochs with `learngene finetune --quantize int8`, " if precision == "int8" else ""
    raise LearngeneError(
        f"export: the file {what}, more than {most:g}; {tune}give another precision, a wider --bound, or --keep-worse"
    )
