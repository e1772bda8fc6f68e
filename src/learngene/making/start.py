"""Scalers for one size: templates are another gene's and stay, and scalers alone are trained.

So WAVE makes a size that its gene was not condensed at: on little data, for a fraction of what the gene took. What
comes out is a gene file of its own, whose auxiliary shape is that size.
"""

from __future__ import annotations

from learngene.data.images import ImageSet
from learngene.genes.gene import Learngene
from learngene.methods import default_settings, method
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError, told_of
from learngene.vits.class_names import some


def started_gene(recipe: CondenseRecipe) -> Learngene:
    """The gene that a recipe with ``start`` trains, with the settings of the gene that it starts from.

    Raises:
        LearngeneError: If that gene is of another method, of other settings, or of a shape whose templates do not fit.
            Its classes are compared by ``refuse_other_classes``, once those of the images are numbered.
    """
    assert recipe.start
    with told_of("start.gene"):
        given = Learngene.load(recipe.start.gene)
        kind, other = given.method, method(recipe.method, recipe.settings)
        if kind.name != other.name:
            raise LearngeneError(f"{recipe.start.gene} is of {kind.name}, not of {other.name}; set method={kind.name}")
        frozen = {"frozen_templates": True}
        if recipe.settings and default_settings(other) | frozen != default_settings(kind) | frozen:
            raise LearngeneError(f"{recipe.start.gene} has other settings than this recipe; leave settings out")
        kind = method(kind.name, default_settings(kind) | frozen)
        kind.refuse_auxiliary(recipe.shape)
        given_tensors, fresh = given.tensors(), Learngene(kind, recipe.shape, seed=recipe.train.seed).tensors()
        for name, value in fresh.items():
            if kind.shared(name) and given_tensors[name].shape != value.shape:
                raise LearngeneError(
                    f"templates of {name.removeprefix('T.')} are {tuple(given_tensors[name].shape)}, and shape needs "
                    f"{tuple(value.shape)}; give shape the gene's heads, patches, image size and classes"
                )
        made = kind.at_shape(given_tensors, given.shape, recipe.shape) if recipe.start.scalers == "made" else fresh
        tensors = {n: (given_tensors[n] if kind.shared(n) else made[n]).detach().clone() for n in fresh}
    start = {"digest": given.metadata["digest"], "scalers": recipe.start.scalers}
    classes = {name: given.metadata[name] for name in ("classes",) if name in given.metadata}
    return Learngene(kind, recipe.shape, tensors, metadata={"start": start, **classes})


def started_from(gene: Learngene) -> str | None:
    """The digest of the gene that a gene was started from, if it was."""
    digest: str | None = gene.metadata.get("start", {}).get("digest")
    return digest


def refuse_other_classes(gene: Learngene, images: ImageSet) -> None:
    """Raises ``LearngeneError`` if a gene was started from one of other classes, or in another order."""
    known = gene.metadata.get("classes")
    if known and images.named and known != (own := images.class_names):
        raise LearngeneError(
            f"start.gene: was condensed on {some(known)}, and {images.where} has {some(own)}; templates of "
            "a head are of its classes in their order, so use images of the same"
        )
