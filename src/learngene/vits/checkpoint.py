"""Checkpoint files: read without running anything that is in them, and loaded into a timm model, whatever wraps it.

A file is a tree of tensors, and any branch may be the model: ``{"model": {"module.norm.bias": ...}}`` says the same as
``{"model.module.norm.bias": ...}``. So every tensor gets a dotted name, and the model is looked for below any prefix.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learngene.system.errors import LearngeneError
from learngene.vits.descendant_folder import weight_file
from learngene.vits.timm_models import TimmModel, filled, refuse_argument, refuse_unknown_architecture
from learngene.vits.transformers_folder import has_transformers_names, with_timm_names

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".bin")
"""How the names of checkpoint files end, in capitals or not."""

ORDER = ("state_dict", "model", "teacher")
"""Which of several states is taken, behind an average of the weights: timm's order, and DINO's own choice."""

TRANSPARENT = ("module", "_orig_mod")
"""Prefixes of DistributedDataParallel and torch.compile, which say nothing about the model."""

HEADS = re.compile(r"(head|fc|classifier|cls_head|linear_head|linear|last_layer)((\.\w+)?)\.weight")
"""What wrappers call a classifier that stands beside the model, as Lightning's modules often have it."""

FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError)
"""In which timm's models can end, given arguments or weights that they are not made for."""

DEEPEST = 12
"""Levels of mappings that are looked into, of a file that may hold any number."""

LFS_POINTER = b"version https://git-lfs"


class _Callable(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(_StandIn)


class _StandIn(metaclass=_Callable):
    """What a file's own classes and functions become, so that none of them is imported or run."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # of all objects, torch's reader lets only this one have both items and attributes

    def __setstate__(self, state: Any) -> None: ...


def is_checkpoint(source: str | Path, architecture: str | None = None) -> bool:
    """Whether a model's source is a checkpoint, not a gene, a folder with a model, or timm's name.

    Args:
        source: What a user calls the model.
        architecture: What the user says of its architecture, which nothing but a checkpoint needs.
    """
    path, name = Path(source), str(source).lower()
    if architecture is not None:
        return path.exists() or name.endswith(SUFFIXES)
    return not path.is_dir() and name.endswith(tuple(suffix for suffix in SUFFIXES if suffix != ".safetensors"))


def load_checkpoint(
    path: str | Path, architecture: str | None, arguments: Mapping[str, Any], *, state: str | None = None
) -> TimmModel:
    """A timm model with the weights of a checkpoint file.

    Prefixes of wrappers are taken off; names of other code (DINO, MAE, BEiT, CLIP, Swin, ...) become timm's by the
    filters of timm's loader; the number of classes is that of the file's head. The model's ``pretrained_cfg`` has no
    tag, since these are no weights of timm's, and the architecture's normalisation.

    Args:
        path: The file, or a folder without ``config.json`` that has one, as Accelerate saves it.
        architecture: timm's name of the architecture.
        arguments: Arguments for ``timm.create_model``. With ``img_size``, position embeddings are resampled.
        state: Which of several states in the file, such as ``model`` beside ``model_ema``; by default as timm chooses,
            an average first, and a warning says which.

    Raises:
        LearngeneError: If the file cannot be read, or does not hold the architecture's weights.
    """
    import timm

    path = _file(Path(path))
    tensors, said = read_tensors(path)
    if architecture is None:
        example = f"the file says '{said}'" if said else "for example deit_base_patch16_224"
        raise LearngeneError(
            f"{path}: a checkpoint file; say which model it is with architecture (--architecture), {example}"
        )
    try:
        refuse_unknown_architecture(architecture)
    except LearngeneError as error:
        raise LearngeneError(f"architecture: {error}") from None
    if not tensors:
        raise LearngeneError(f"{path}: holds no tensors by name; save the model's state_dict()")
    try:
        with torch.device("meta"):
            skeleton = timm.create_model(architecture, **arguments)
    except FAULTS as error:
        refuse_argument(architecture, error)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise LearngeneError(f"model_args: timm cannot make {architecture} with {dict(arguments)} ({reason})") from None
    try:
        prefix, own = _chosen(path, tensors, skeleton.state_dict().keys(), state)
        if has_transformers_names(own):
            own = with_timm_names(own)
        _refuse_resampling(path, own, skeleton, arguments)
        beside = _beside(tensors, prefix)
        own = {**_head_beside(beside, skeleton), **own}
        return _filled(path, own, skeleton, architecture, arguments, beside)
    except FAULTS as error:
        if isinstance(error, LearngeneError):
            raise
        raise LearngeneError(
            f"{path}: does not hold the weights of {architecture} with {dict(arguments) or 'default arguments'}: "
            f"{_mismatch(error)}"[:300]
        ) from None


def _mismatch(error: Exception) -> str:
    """What keeps weights from being loaded, in one line; of names that differ how many there are, and the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if len(lines) > 1 else lines[0]
    names = re.findall(r'"([^"]+)"', line)
    for start, what in (("Missing key(s)", "it lacks"), ("Unexpected key(s)", "too much is")):
        if line.startswith(start) and names:
            return f"{what} {names[0]}" + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
    return line


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a checkpoint file by dotted name, and timm's name of the model if the file says one.

    Nothing of the file is executed: it is read with torch's weights-only loader, in which classes and functions that
    the file names are replaced by stand-ins without content.

    Raises:
        LearngeneError: If there is no such file, or it cannot be read so.
    """
    from safetensors.torch import load_file

    try:
        content = load_file(path) if _is_safetensors(path) else _unpickled(path)
    except FileNotFoundError:
        raise LearngeneError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file can end torch's reader in any of them
        raise LearngeneError(f"{path}: {_unreadable(path, error)}") from None
    tensors = dict(_flat(content, set()))
    options = content.get("args") if isinstance(content, Mapping) else None
    said = content.get("arch", getattr(options, "model", None)) if isinstance(content, Mapping) else None
    return tensors, said if isinstance(said, str) else None


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = weight_file(path)
    if found is None:
        raise LearngeneError(f"{path}: a folder without weights (model.safetensors or pytorch_model.bin)")
    return found


def _is_safetensors(path: Path) -> bool:
    """By suffix, or by content: a length and a JSON header."""
    if path.name.lower().endswith(".safetensors"):
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file could not be read, from its first bytes where these say more than torch."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return "a pointer of Git LFS, not the weights; get them with git lfs pull"
    if not start.startswith((b"PK", b"\x80")) and not path.name.lower().endswith(".safetensors"):
        return "empty" if not start else "damaged, or not written by torch.save"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and is not unpickled; save its state_dict as .safetensors"
    reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
    return f"damaged or unreadable ({reason})"


def _unpickled(path: Path) -> Any:
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    with warnings.catch_warnings(action="ignore"):  # torch warns of pickles that it refuses a moment later
        foreign = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        known = [(_StandIn, name) for name in foreign if name != "argparse.Namespace"]
        with safe_globals([argparse.Namespace, *known]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _flat(content: Any, seen: set[int], prefix: str = "", level: int = 0) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping) or level > DEEPEST:
        return
    again = id(content) in seen  # one mapping may stand in many places, even in itself
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(key, str) and not again:
            yield from _flat(value, seen, f"{prefix}{key}.", level + 1)


def _chosen(
    path: Path, tensors: dict[str, Tensor], names: Collection[str], state: str | None
) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which one state stands, and its tensors without it."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in names:
                counts["".join(f"{part}." for part in parts[:i])] += 1
                break
    most = max(counts.values(), default=0)
    # Fewer than half: the names are of other code, which timm's filter knows. A tenth: heads and buffers may differ.
    prefixes = [prefix for prefix, count in counts.items() if 10 * count >= 9 * most and 2 * most >= len(names)]
    prefixes = prefixes or _wrappers(tensors)
    labels = {prefix: ".".join(_telling(prefix)) or "the whole file" for prefix in prefixes}
    found = sorted(prefixes, key=_rank)
    if state is not None:
        found = [prefix for prefix in found if f"{labels[prefix]}.".startswith(f"{state}.")]
        if not found:
            raise LearngeneError(f"{path}: has no state '{state}'; it has: {', '.join(labels.values())}")
    elif len(found) > 1:
        if _rank(found[0]) == _rank(found[1]):
            raise LearngeneError(f"{path}: has several states; say which with state: {', '.join(labels.values())}")
        others = ", ".join(labels[prefix] for prefix in found[1:])
        warnings.warn(f"{path}: '{labels[found[0]]}' is loaded; it also has, for state: {others}", stacklevel=2)
    others_in_it = tuple(prefix for prefix in prefixes if prefix != found[0] and prefix.startswith(found[0]))
    return found[0], {
        name.removeprefix(found[0]): tensor
        for name, tensor in tensors.items()
        if name.startswith(found[0]) and not name.startswith(others_in_it)
    }


def _beside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands beside a model within whatever wraps it most closely: ``model.head.bias`` beside ``model.vit.``."""
    parts = prefix.split(".")[:-1]
    while parts and parts[-1] in TRANSPARENT:
        parts.pop()
    outer, inner = ("".join(f"{part}." for part in each) for each in (parts[:-1], parts))
    return {
        name.removeprefix(outer): tensor
        for name, tensor in tensors.items()
        if name.startswith(outer) and not name.startswith(inner)
    }


def _head_beside(beside: Mapping[str, Tensor], skeleton: TimmModel) -> dict[str, Tensor]:
    """A linear classifier that stands beside the model, under timm's name; nothing unless it is all there is of it."""
    head = skeleton.pretrained_cfg.get("classifier")
    own = skeleton.state_dict().get(f"{head}.weight")
    found = {}
    for name, tensor in beside.items():
        match = HEADS.fullmatch(name)
        if match is None or own is None or tensor.ndim != 2 or tensor.shape[1:] != own.shape[1:]:
            continue
        stem = name.removesuffix("weight")
        if {each for each in beside if each.startswith(f"{match[1]}.")} == {name, f"{stem}bias"}:
            found[match[1]] = {f"{head}.weight": tensor, f"{head}.bias": beside[f"{stem}bias"]}
    return found.popitem()[1] if len(found) == 1 else {}


def _telling(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part and part not in TRANSPARENT]


def _rank(prefix: str) -> tuple[int, ...]:
    """Averages first, then timm's order, then whatever else it is called."""
    own = len(ORDER)
    return tuple(
        -1 if "ema" in part.lower().split("_") else ORDER.index(part) if part in ORDER else own
        for part in _telling(prefix)
    ) or (own,)


def _wrappers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Where states of other code may stand: below the names that wrap states, or at the top."""
    tops = {name.partition(".")[0] for name in tensors}
    wrapping = [top for top in tops if top in (*ORDER, *TRANSPARENT) or "ema" in top.lower().split("_")]
    out: list[str] = []
    for top in sorted(wrapping):
        inner = {name[len(top) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{top}.")}
        out += [f"{top}.{prefix}" for prefix in _wrappers(inner)]
    return out or [""]


def _refuse_resampling(
    path: Path, tensors: Mapping[str, Tensor], skeleton: TimmModel, arguments: Mapping[str, Any]
) -> None:
    """Timm's filters resample patches and positions without a word; here only for a size that was asked for."""
    mine = skeleton.state_dict()
    patches, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    own, wanted = mine.get("patch_embed.proj.weight"), mine.get("pos_embed")
    if patches is None or own is None or patches.ndim != 4 or own.ndim != 4:
        return
    size, expected = patches.shape[-1], own.shape[-1]
    if size != expected and "patch_size" not in arguments:
        raise LearngeneError(
            f"{path}: its patches are of {size} px, the architecture's of {expected}; name the architecture that it "
            f"has, or set model_args: {{patch_size: {size}}}"
        )
    if positions is None or wanted is None or positions.ndim != 3 or "img_size" in arguments:
        return
    side, other = int(positions.shape[1] ** 0.5), int(wanted.shape[1] ** 0.5)  # a few more than a square: class token
    if side != other:
        raise LearngeneError(
            f"{path}: its positions are of {side} x {side} patches, the architecture's of {other} x {other}; set "
            f"model_args: {{img_size: {side * size}}}, or another size, for which they are resampled"
        )


def _filled(
    path: Path,
    tensors: dict[str, Tensor],
    skeleton: TimmModel,
    architecture: str,
    arguments: Mapping[str, Any],
    beside: Mapping[str, Tensor],
) -> TimmModel:
    mine = skeleton.state_dict()
    for name in mine.keys() & tensors.keys():
        if mine[name].is_floating_point() and not tensors[name].is_floating_point():
            raise LearngeneError(f"{path}: '{name}' is {tensors[name].dtype}, not floating point; is it quantised?")
    names, given = mine.keys(), skeleton.pretrained_cfg.get("classifier") or ()
    heads = [given] if isinstance(given, str) else list(given)
    found = [tensors[f"{head}.weight"] for head in (*heads, "head", "fc") if f"{head}.weight" in tensors]
    found += [tensors[name].T for name in ("visual.proj", "module.visual.proj") if name in tensors]  # of CLIP
    classes = int(arguments.get("num_classes", len(found[0]) if found else 0))
    left_out = [] if any(name.startswith("decoder") for name in names) else ["decoder"]  # of a masked autoencoder
    if classes == 0:
        left_out += [f"{head}." for head in heads]
    tensors = {name: value for name, value in tensors.items() if not name.startswith(tuple(left_out))}
    if not found and classes:
        raise LearngeneError(f"{path}: has no head; leave model_args.num_classes out")
    if not found and skeleton.num_classes:
        parts = Counter(name.partition(".")[0] for name in beside)
        found_beside = ", ".join(f"{part} ({count} tensors)" for part, count in sorted(parts.items()))
        unused = f"; not used is what stands beside it: {found_beside}" if parts else ""
        warnings.warn(f"{path}: has no head for classes, so the model gives features alone{unused}", stacklevel=2)
    cfg: dict[str, Any] = {"num_classes": classes}  # as many as are loaded, with which timm's loader is strict
    if "in_chans" in arguments:
        cfg["input_size"] = (arguments["in_chans"], *skeleton.pretrained_cfg["input_size"][1:])
    return filled(architecture, tensors, {**arguments, "num_classes": classes}, cfg)
