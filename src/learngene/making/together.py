"""Condensing several genes in one pass: images are read, and teachers asked, once for all of them.

Each is the gene that it would be alone, bit for bit, with a run folder of its own, in which it can be continued alone,
too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from learngene.data.splits import Splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making.arguments import Data, ancestry_fields, data_fields, loaded
from learngene.making.condense import ONE_STAGE, opened, prepare, provenance, remember_teacher
from learngene.making.inputs import CondenseInputs
from learngene.making.steps import MadeGene, gene_path, refuse_gene_path, train_gene
from learngene.recipe.genes import GenesRecipe, genes_recipe, refuse_apart
from learngene.recipe.sections import Train
from learngene.system.errors import Faults, LearngeneError
from learngene.system.machine_faults import machine_faults
from learngene.training.run import run_stages, write_once
from learngene.training.stage import TrainResult


class SomeGenesFailedError(LearngeneError):
    """Genes of a pass that failed, a line each.

    Attributes:
        failed: Why each did, by name.
        made: The others, by name.
    """

    def __init__(self, failed: Mapping[str, LearngeneError], made: Mapping[str, MadeGene]) -> None:
        super().__init__("\n".join(f"gene {name}: {_without(name, fault)}" for name, fault in failed.items()))
        self.failed, self.made = dict(failed), dict(made)


def condense_together(
    ancestry: Ancestry | str | Path | None,
    genes: Mapping[str, Mapping[str, Any]],
    *,
    data: Data,
    out: str | Path | None = None,
    show: bool = True,
    **shared: Any,
) -> dict[str, Learngene]:
    """Condenses an ancestry model into several learngenes in one pass over the images, which asks it once.

    Args:
        ancestry: As for ``condense``.
        genes: Names to what each gene has of its own: entries of a condense recipe, such as ``{"method": "sws",
            "settings": {"stages": [2, 2]}, "train": {"lr": 1e-3}}``.
        data: Where the images are, or a whole data section.
        out: The folder of the run folders, which are named by the genes; None keeps the runs in memory.
        show: Whether to print progress.
        **shared: Entries that all genes have, such as ``method``, ``shape`` and ``train={"epochs": 5}``.

    Returns:
        The genes by name, each bit for bit that of ``condense``.

    Raises:
        SomeGenesFailedError: If training diverged or memory ran out for some; its ``made`` has the others.
        LearngeneError: If anything does not fit, before the first step is trained.
    """
    if alone := sorted(shared.keys() & Train.model_fields.keys()):
        raise LearngeneError(f"condense_together: unknown argument '{alone[0]}'; write train={{'{alone[0]}': ...}}")
    given = {"ancestry": ancestry_fields(ancestry), "data": data_fields(data), "out": out, **shared}
    fields = {name: value for name, value in given.items() if value is not None}
    recipe = genes_recipe({"kind": "condense", **fields, "genes": genes}, "recipe")
    made = run_together(recipe, ancestry=loaded(ancestry), keep=out is not None, show=show)
    return {name: each.gene for name, each in made.items()}


def run_together(
    recipe: GenesRecipe,
    *,
    ancestry: Ancestry | None = None,
    images: Splits | None = None,
    keep: bool = True,
    show: bool = True,
) -> dict[str, MadeGene]:
    """Runs a recipe of several genes, or continues it, each from where its run folder stands.

    Ancestry and images are given if they are loaded already.

    Raises:
        SomeGenesFailedError: If some failed; what the others became is written.
        LearngeneError: If anything does not fit or cannot be written.
    """
    inputs = prepare_together(recipe, ancestry, images, keep=keep)
    planned = {name: ONE_STAGE[each.gene.method.making].planned(each, keep=keep) for name, each in inputs.items()}
    stages = [(replace(stage, name=f"gene {name}"), inputs[name].recipe) for name, (stage, _) in planned.items()]
    outcomes = run_stages(stages, next(iter(inputs.values())).images, keep=keep, show=show)
    made: dict[str, MadeGene] = {}
    failed: dict[str, LearngeneError] = {}
    for (name, each), outcome in zip(inputs.items(), outcomes, strict=True):
        try:
            if isinstance(outcome, LearngeneError):
                raise outcome
            with machine_faults():
                if ancestry is None:
                    write_once(partial(remember_teacher, each))
                trained = partial(_trained, each, outcome, planned[name][1])
                made[name] = train_gene(each.gene, each.recipe, trained, keep=keep)
        except LearngeneError as fault:
            failed[name] = fault
    if failed:
        raise SomeGenesFailedError(failed, made)
    return made


def prepare_together(
    recipe: GenesRecipe, ancestry: Ancestry | None = None, images: Splits | None = None, *, keep: bool = False
) -> dict[str, CondenseInputs]:
    """What every gene needs, of which ancestry and images are there once; ``keep`` looks where they will be kept."""
    out: dict[str, CondenseInputs] = {}
    faults = Faults()
    for name, one in recipe.genes.items():
        with faults.at(f"genes.{name}"):
            if keep:
                refuse_foreign_gene(gene_path(one.out), one.method)
            images = opened(one, images)
            out[name] = prepare(one, ancestry, images)
            ancestry = out[name].ancestry
            if keep:
                refuse_gene_path(gene_path(one.out), out[name].gene)
    faults.refuse()
    refuse_apart({name: each.recipe for name, each in out.items()})
    first, *others = out
    for name in others:
        if out[name].images.train.fingerprint() != out[first].images.train.fingerprint():
            raise LearngeneError(f"genes.{name}: numbers the classes otherwise than genes.{first}; condense it alone")
    return out


def _trained(inputs: CondenseInputs, result: TrainResult, more: Any) -> tuple[TrainResult, dict[str, Any]]:
    return result, provenance(inputs, result) | more()


def _without(name: str, fault: LearngeneError) -> str:
    return str(fault).removeprefix(f"gene {name}: ")
