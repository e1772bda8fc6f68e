"""An ancestry without its weights: what a run has to know of it where all that it would say is stored.

The model is built on torch's meta device, so shapes, classes and preprocessing are those of the real one. Whose weights
they would be is told by a note beside the stored outputs, which is found by a digest of the files that hold them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learngene.genes.ancestry import Ancestry
from learngene.recipe.sections import AncestrySpec
from learngene.system.digest import DIGEST, content_digest
from learngene.system.files import write_file
from learngene.vits.checkpoint import is_checkpoint
from learngene.vits.descendant_folder import PROVENANCE, weight_file
from learngene.vits.input_size import input_size
from learngene.vits.timm_models import TimmModel

FOLDER = "teachers"


def remember(folder: Path, spec: AncestrySpec, ancestry: Ancestry) -> None:
    """Writes down who an ancestry is, for ``without_weights``; nothing where its files do not tell its weights.

    Args:
        folder: Of the stored outputs.
        spec: As a recipe names it.
        ancestry: With its weights.
    """
    path = _note(folder, spec)
    if path is None or not ancestry.has_weights or _read(path):
        return
    model = ancestry.model
    record = {
        "identity": ancestry.identity,
        "num_classes": ancestry.num_classes,
        "cfg": model.pretrained_cfg,
        "learngene": getattr(model, "learngene", None),
    }
    with contextlib.suppress(TypeError):  # of a model that says something that is no JSON, nothing is remembered
        record = json.loads(json.dumps(record))
        text = json.dumps(record | {DIGEST: content_digest(record)}, indent=2) + "\n"
        write_file(path, lambda temporary: temporary.write_text(text))


def without_weights(folder: Path, spec: AncestrySpec) -> Ancestry | None:
    """An ancestry that loads its weights when it is told to; None if it is not known, or cannot be built so."""
    path = _note(folder, spec)
    record = _read(path) if path else None
    if record is None:
        return None
    try:
        model = _skeleton(spec, record)
        with torch.no_grad():
            model(torch.zeros(1, *input_size(model), device="meta"))
        if spec.sha256 not in (None, record["identity"]["sha256"]):
            return None  # which loading it refuses with a reason
        return Ancestry.absent(model, record["identity"], lambda: Ancestry.from_spec(spec))
    except Exception:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """What a note says; None if there is none, or not what was written."""
    with contextlib.suppress(OSError, ValueError):
        record: dict[str, Any] = json.loads(path.read_text())
        if isinstance(record, dict) and record.get(DIGEST) == content_digest(record):
            return record
    return None


def _note(folder: Path, spec: AncestrySpec) -> Path | None:
    """The file of what is known of an ancestry; None if nothing at hand tells its weights."""
    files = _files(spec)
    if files is None:
        return None
    said = spec.model_dump(mode="json", exclude={"source", "sha256"})
    if not files:
        said |= {"source": spec.source, "sha256": spec.sha256}
    digest = content_digest(said, *files).partition(":")[2]
    return folder / FOLDER / f"{digest}.json"


def _files(spec: AncestrySpec) -> list[Path] | None:
    """The files that hold an ancestry's weights; none for a timm name whose weights the recipe pins."""
    source = Path(spec.source)
    if source.is_dir() and not spec.architecture:
        weights = weight_file(source)
        own = [source / "config.json", *([weights] if weights else []), source / PROVENANCE]
        return [path for path in own if path.is_file()] if weights else None
    if source.is_file() and spec.architecture and is_checkpoint(source, spec.architecture):
        return [source]
    by_name = not source.exists() and ":" not in spec.source and spec.pretrained
    return [] if by_name and spec.sha256 is not None else None


def _skeleton(spec: AncestrySpec, record: Mapping[str, Any]) -> TimmModel:
    import timm

    arguments = dict(spec.model_args)
    name = spec.source
    if Path(spec.source).is_dir():
        name = f"local-dir:{spec.source}"
    elif spec.architecture:
        name, arguments = spec.architecture, {**arguments, "num_classes": record["num_classes"]}
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **arguments)
    model.pretrained_cfg = model.default_cfg = record["cfg"]
    if record["learngene"] is not None:
        model.learngene = record["learngene"]
    return model
