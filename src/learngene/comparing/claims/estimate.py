"""What a group of claims costs to test, before anything is run."""

from __future__ import annotations

from learngene.comparing.cells import lay_out_declared
from learngene.comparing.claims.groups import ClaimGroup
from learngene.comparing.cost import ancestry_macs, cost_of, own_macs, part_macs
from learngene.recipe.compare import SOURCE, CompareRecipe
from learngene.system.errors import LearngeneError


def estimate(group: ClaimGroup, recipe: CompareRecipe) -> str:
    """One line with the number of jobs and their multiply-adds, by the sizes that the protocol declares."""
    if not group.needs_runs:
        return f"{group.id}: exact tests only, nothing is trained"
    if recipe.sizes is None:
        raise LearngeneError(f"{group.id}: this protocol declares no sizes, so its cost cannot be known without data")
    comparison, images = lay_out_declared(recipe)
    # A row, a super net or a stage 1 is trained once, whatever the number of genes that share it.
    parts = {path: macs for gene in comparison.genes for path, macs in part_macs(gene, images).items()}
    genes = sum(own_macs(gene, images) for gene in comparison.genes) + sum(parts.values())
    ancestries = sum(ancestry_macs(ancestry, images[SOURCE]) for ancestry in comparison.ancestries.values())
    tuning = sum(cost_of(cell, comparison, images).tune for cell in comparison.cells)
    counts = f"{len(comparison.ancestries)} ancestries, {len(comparison.genes)} genes, {len(comparison.cells)} cells"
    each = {"ancestries": ancestries, "genes": genes, "tuning": tuning}
    shares = ", ".join(f"{value / 1e15:.3g} for {what}" for what, value in each.items())
    return f"{group.id}: {counts}; {(genes + ancestries + tuning) / 1e15:.3g} P multiply-adds ({shares})"
