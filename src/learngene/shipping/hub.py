"""Genes and descendants on the Hugging Face hub, each with a card that says what its own record says, and no more."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learngene.genes.gene_file import read_header, verify
from learngene.system.errors import LearngeneError
from learngene.system.files import write_folder
from learngene.vits.descendant_folder import PROVENANCE, TIMM_FILES, load_descendant

CARD = "README.md"

MARKER = ".learngene-hub"
"""Says that a folder is a card's or was pulled, and may be replaced."""

FILES = ["*.safetensors", "*.json", CARD]
"""What is pulled, and no pickle."""


def push(path: Path, repo: str, *, licence: str | None = None, private: bool = False, dry_run: bool = False) -> str:
    """Uploads a gene file or a descendant folder with its card.

    Args:
        path: What was made.
        repo: ``OWNER/NAME``; made if it is missing.
        licence: Of what is uploaded, as the hub calls it; None says none.
        private: Whether a new repository is seen by its owner only.
        dry_run: Writes what would be uploaded into the folder ``NAME`` instead.

    Returns:
        Where it is: an address, or the folder.

    Raises:
        LearngeneError: If it is neither a gene nor a descendant, is damaged, or the hub refuses it.
    """
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise LearngeneError(f"{repo}: no name of a repository; give OWNER/NAME")
    if dry_run:
        write_folder(Path(name), [MARKER, *FILES], lambda folder: _marked(folder, path, repo, licence))
        return name
    with tempfile.TemporaryDirectory() as temporary, _answers(repo):
        from huggingface_hub import HfApi

        _fill(Path(temporary), path, repo, licence)
        api = HfApi(library_name="learngene")
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        stale = ["*.safetensors", "*.json"]  # of an earlier push; what is uploaded stays
        said = f"learngene push {path.name}"
        api.upload_folder(repo_id=repo, folder_path=temporary, commit_message=said, delete_patterns=stale)
    return address


def pull(repo: str, out: Path, *, revision: str | None = None) -> Path:
    """Downloads a gene or a descendant, checks every byte of it, and only then gives it its name.

    Args:
        repo: ``OWNER/NAME``.
        out: The folder to write; what was pulled to it before is replaced, a folder of others is refused.
        revision: A branch, tag or commit.

    Returns:
        The gene file or the descendant folder.

    Raises:
        LearngeneError: If there is no such repository, or neither of the two in it, or it is damaged.
    """
    gene: list[str] = []
    out = out.absolute()

    def write(folder: Path) -> None:
        from huggingface_hub import HfApi

        with _answers(repo):
            HfApi(library_name="learngene").snapshot_download(
                repo, revision=revision, local_dir=folder, allow_patterns=FILES
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        if (folder / PROVENANCE).exists():
            load_descendant(folder)
        elif len(files := sorted(folder.glob("*.safetensors"))) == 1:
            verify(read_header(files[0]))
            gene.append(files[0].name)
        elif files:
            raise LearngeneError(
                f"{repo}: holds {len(files)} files with tensors and no {PROVENANCE}; push one gene to it"
            )
        else:
            raise LearngeneError(f"{repo}: holds neither a gene nor a descendant")
        (folder / MARKER).touch()

    write_folder(out, [MARKER, *FILES], write)
    return out / gene[0] if gene else out


def _marked(folder: Path, path: Path, repo: str, licence: str | None) -> None:
    _fill(folder, path, repo, licence)
    (folder / MARKER).touch()


def _fill(folder: Path, path: Path, repo: str, licence: str | None) -> None:
    """Copies what is uploaded, once it is known to be whole, and writes its card."""
    if path.is_dir():
        load_descendant(path)
        if not (path / PROVENANCE).exists():
            raise LearngeneError(
                f"{path}: a model, but no descendant ({PROVENANCE} is missing), so nothing is known of it"
            )
        record = json.loads((path / PROVENANCE).read_text())
        for name in (*TIMM_FILES, PROVENANCE):
            shutil.copyfile(path / name, folder / name)
        text = _card(record, repo, licence, _load_descendant_lines(path, repo), record.get("finetuned") or {})
    else:
        header = read_header(path)
        verify(header)
        shutil.copyfile(path, folder / path.name)
        record = {**header.metadata, "params": header.stored_params}
        lines = [f"learngene pull {repo} --out {path.stem}", f"learngene plan {path.stem}/{path.name}"]
        text = _card(record, repo, licence, _fenced("bash", lines), record)
    (folder / CARD).write_text(text, encoding="utf-8")


def _card(record: Mapping[str, Any], repo: str, licence: str | None, loading: str, measured: Mapping[str, Any]) -> str:
    """The card: of a record, and of what it says was measured."""
    from huggingface_hub import ModelCardData

    accuracy, data = measured.get("accuracy") or {}, measured.get("data") or []
    sources = data.get("source", []) if isinstance(data, Mapping) else data
    shape, training = record.get("shape") or {}, measured.get("train") or record.get("training") or {}
    kind = "gene" if "version" in record else "descendant"
    size = (
        f"{shape['depth']} layers of width {shape['embed_dim']}, {shape['img_size']} px" if "depth" in shape else None
    )
    rows = {
        "what": f"a {kind} of learngene" + (f", method {record['method']}" if "method" in record else ""),
        "size": f"at the auxiliary shape: {size}" if size and kind == "gene" else size,
        "stored parameters": record.get("params"),
        "made from": _ancestry(record.get("ancestry")),
        "gene": record.get("gene"),
        "data": ", ".join(sources) or "none is recorded",
        "training": ", ".join(
            f"{k} {training[k]}" for k in ("epochs", "updates", "images", "seconds", "seed") if k in training
        )
        or "none is recorded",
        "top-1": f"{accuracy['top1']:.2f} %"
        + (f" on {accuracy['images']} images" if accuracy.get("images") else "")
        + " of the validation split of the data above"
        if accuracy.get("top1") is not None
        else "not measured",
        "agreement": ", ".join(f"{k} {v:g}" for k, v in (record.get("agreement") or {}).items()) or None,
        "classes": len(record.get("classes") or record.get("class_names") or []) or None,
        "digest": record.get("digest"),
    }
    head = ModelCardData(
        license=licence,
        library_name="timm" if kind == "descendant" else "learngene",
        tags=["learngene", *filter(None, [record.get("method")])],
        pipeline_tag="image-classification" if kind == "descendant" and _classifies(record) else None,
    )
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    title = repo.partition("/")[2]
    return f"---\n{head.to_yaml()}\n---\n\n# {title}\n\n| | |\n|---|---|\n{table}\n\n{loading}"


def _classifies(record: Mapping[str, Any]) -> bool:
    """Whether a descendant gives an image one class: it has a head, and not one for every pixel."""
    return bool((record.get("shape") or {}).get("num_classes", 1)) and not record.get("mask_values")


def _ancestry(pinned: Mapping[str, Any] | None) -> str:
    """The ancestry, and the licence that timm knows of it."""
    if not pinned or not pinned.get("name"):
        return "no ancestry is recorded"
    import timm

    name = ".".join(filter(None, (pinned["name"], pinned.get("tag"))))
    cfg = None
    with contextlib.suppress(RuntimeError):  # not one of timm's
        cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    licence = getattr(cfg, "license", None) or "not known"
    return f"{name} (sha256 {pinned.get('sha256', '?')[:12]}; licence {licence})"


def _load_descendant_lines(path: Path, repo: str) -> str:
    import timm

    config = json.loads((path / TIMM_FILES[0]).read_text())
    own = not timm.models.model_entrypoint(config["architecture"]).__module__.startswith("timm.")
    lines = [
        f"import timm{', learngene' if own else ''}",
        f'model = timm.create_model("hf-hub:{repo}", pretrained=True)',
    ]
    if own:
        return _fenced("python", lines)
    more = ["from transformers import pipeline", f'classify = pipeline("image-classification", model="{repo}")']
    return _fenced("python", [*lines, "", *more])


def _fenced(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


@contextlib.contextmanager
def _answers(repo: str) -> Iterator[None]:
    """Says in one line what the hub, or the way to it, refuses."""
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, ConnectionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reasons = {401: "no permission", 403: "no permission", 404: "no such repository, or no permission to see it"}
        reason = reasons.get(status or 0) or " ".join(str(error).split())[:200]
        raise LearngeneError(f"{repo}: {reason}; see `hf auth whoami`, nothing was written here") from None
