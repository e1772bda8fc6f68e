"""Stored outputs of a teacher: damaged files and notes, writers that are killed, disks that fill meanwhile."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from faults.damaged_files import Content, damaged_header, damaged_json, in_many_ways
from faults.disks import on_bad_disks
from faults.kills import killed
from faults.runs_of_all_kinds import replaying
from faults.trials import Verdicts, damage
from learngene.genes.absent_weights import FOLDER, without_weights
from learngene.making.condense import prepare
from learngene.making.targets import stored_targets as stores_of
from learngene.making.targets import write_targets
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.system.errors import LearngeneError
from learngene.training.stored_targets import KEY, StoredTargets
from learngene.training.target_shards import Shard

MUTATIONS, KILLS, FULL = 300, 6, 2


def stored_targets(folder: Path, share: float, seed: int) -> dict[str, Any]:
    """300 damaged files, 6 runs that are killed, and 2 of each kind on a disk that is too small."""
    kinds = replaying(folder)
    recipe = build_recipe(kinds["targets"].fields(folder / "out"))
    assert isinstance(recipe, CondenseRecipe)
    write_targets(recipe)
    verdicts = Verdicts()
    _mutations(verdicts, recipe, round(share * MUTATIONS / 6), seed)
    out = verdicts.record()
    trials = {"killed": killed(folder, kinds, max(1, round(share * KILLS)), seed)}
    trials["disk"] = on_bad_disks(folder, kinds, ["full"], max(1, round(share * FULL)), seed)
    for found in trials.values():
        out["trials"] += found["trials"]
        out["faults"] += found["faults"]
        out["outcomes"] |= found["outcomes"]
    return out


def _mutations(verdicts: Verdicts, recipe: CondenseRecipe, each: int, seed: int) -> None:
    """Shards of training views and of images in evaluation, the key beside them, and the note of whose they are."""
    warnings.simplefilter("ignore")
    assert recipe.ancestry is not None
    assert recipe.distill.replay is not None
    views, *_, held_out = stores_of(prepare(recipe))
    for what, store in (("training views", views), ("images in evaluation", held_out)):
        _, steps, (path, *_) = next(store.units())
        read = partial(_shard, path, store.rows(steps))
        in_many_ways(verdicts, f"shard of {what}", path, each, seed, damage, read)
        in_many_ways(verdicts, f"header of {what}", path, each, seed, damaged_header, read)
    key = views.folder / KEY
    in_many_ways(verdicts, "key", key, each, seed, damaged_json, partial(_key, views))
    (note,) = (recipe.distill.replay.folder / FOLDER).iterdir()
    in_many_ways(verdicts, "note of the teacher", note, each, seed, damaged_json, partial(_note, recipe))


def _shard(path: Path, rows: int) -> Content:
    shard = Shard.read(path, rows)
    return repr(shard.like), {name: value.clone() for name, value in shard.tensors.items()}  # the file will change


def _key(store: StoredTargets) -> Content:
    again = StoredTargets(store.teacher, store.spec, store.views, store.accelerator)
    return json.dumps(again.key, sort_keys=True), {}


def _note(recipe: CondenseRecipe) -> Content:
    assert recipe.ancestry is not None
    assert recipe.distill.replay is not None
    found = without_weights(recipe.distill.replay.folder, recipe.ancestry)
    if found is None:
        raise LearngeneError("the teacher is loaded, as if nothing were known of it")
    return [found.identity, found.preprocessing, found.num_classes, found.class_names], {}
