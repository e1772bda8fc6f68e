"""Any-size genes: one set of templates by hand, scalers of a few layers, and scalers trained for one size alone."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import learngene as lg
from learngene.genes.gene import Learngene
from learngene.making.start import started_gene
from learngene.methods import method
from learngene.methods.tiles import MATRICES
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError
from pico import FAST, batch, make_images, pico_gene, pico_shape


def test_every_kind_of_matrix_is_made_of_the_same_templates() -> None:
    gene = pico_gene("any-size", {"tile": 4, "templates": [3], "layers": 2}, depth=3)
    t, w = gene.tensors(), gene.weights()
    assert {name for name in t if name.startswith("T.") and t[name].shape == (3, 4, 4)} == {"T.matrix"}
    for layer, (first, second) in enumerate(((1, 0), (0.5, 0.5), (0, 1))):
        for name in ("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"):
            scalers = first * t[f"S.{name}"][0] + second * t[f"S.{name}"][1]
            value = sum(torch.kron(scalers[..., n], t["T.matrix"][n]) for n in range(3))
            assert torch.allclose(w[f"blocks.{layer}.{name}"], value, atol=1e-6), (layer, name)


def test_the_first_and_the_last_layer_may_have_scalers_besides() -> None:
    settings = {"tile": 4, "templates": [3], "layers": 2}
    kinds = [method("any-size", settings | more) for more in ({}, {"ends": True})]
    plain, gene = (Learngene(kind, pico_shape(depth=3)) for kind in kinds)
    before = gene.weights()
    assert all(torch.equal(value, before[name]) for name, value in plain.weights().items())  # they begin at 0
    with torch.no_grad():
        gene.tensors()["E.attn.proj.weight"][1, 0, 2, 1] = (
            2.0  # the last layer, the tile above at the right, template 1
        )
    after, name = gene.weights(), "blocks.2.attn.proj.weight"
    assert [key for key, value in after.items() if not torch.equal(value, before[key])] == [name]
    assert torch.allclose((after[name] - before[name])[:4, 8:12], 2 * gene.tensors()["T.matrix"][1], atol=1e-6)
    assert gene.expand(pico_shape(depth=1)).blocks[0].attn.proj.weight.shape == (16, 16)
    assert gene.method.describe(gene.shape, gene.shape)[::2] == ["E[0] + S[0]", "E[1] + S[1]"]
    one = pico_shape(depth=1)
    assert gene.method.describe(gene.shape, one) == ["1/2 E[0] + 1/2 E[1] + 1/2 S[0] + 1/2 S[1]"]
    moved = gene.weights(one)["blocks.0.attn.proj.weight"][:4, 8:12]
    with torch.no_grad():
        gene.tensors()["E.attn.proj.weight"].zero_()
    still = gene.weights(one)["blocks.0.attn.proj.weight"][:4, 8:12]
    assert torch.allclose(moved - still, gene.tensors()["T.matrix"][1], atol=1e-6)  # half of 2, in a single layer


def test_stored_numbers_by_hand() -> None:
    """64 x 6 in tiles of 16: 48 x 256 numbers of templates, and four layers of 192 places of 48 scalers."""
    shape = lg.ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10)
    sizes = method("any-size").gene_tensors(shape)
    assert sizes["T.matrix"] == (48, 16, 16)
    assert sum(torch.Size(sizes[f"S.{name}"]).numel() for name in MATRICES) == 4 * 192 * 48
    assert sum(torch.Size(size).numel() for name, size in sizes.items() if name.startswith("S.")) == 37_792
    ends = method("any-size", {"ends": True}).gene_tensors(shape)
    assert sum(torch.Size(size).numel() for name, size in ends.items() if name.startswith("E.")) == 2 * 192 * 48


def test_every_size_of_deit_comes_from_twelve_megabytes() -> None:
    base = lg.ViTShape(embed_dim=768, depth=12, num_heads=12, num_classes=1000, class_token=True)
    assert 4 * sum(torch.Size(size).numel() for size in method("any-size").gene_tensors(base).values()) < 12e6
    for heads in (3, 6):
        method("any-size").refuse(base, base.replace(embed_dim=64 * heads, num_heads=heads))


def test_a_multiple_of_the_width_computes_the_same() -> None:
    gene = pico_gene("any-size", {"tile": 4})
    with torch.no_grad():
        for value in gene.tensors().values():
            value.mul_(0.5)
    images = batch(gene.shape)
    assert torch.allclose(gene.expand(pico_shape(embed_dim=32, num_heads=4))(images), gene(images), atol=2e-6)


# -- scalers for one size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wave", "any-size"])
@pytest.mark.parametrize("scalers", ["made", "fresh"])
def test_templates_stay_and_scalers_are_trained(name: str, scalers: str, images: Path, tmp_path: Path) -> None:
    given, wide = pico_gene(name, {"tile": 4}), pico_shape(embed_dim=24, num_heads=3, depth=3)
    given.save(tmp_path / "given.safetensors")
    fields: dict[str, Any] = {
        "method": name, "shape": wide, "data": {"source": str(images), "workers": 0}, "distill": {"alpha": 0},
        "start": {"gene": tmp_path / "given.safetensors", "scalers": scalers},
    }  # fmt: skip
    start = started_gene(CondenseRecipe(**fields, train=FAST))
    sizes = {key: value.shape for key, value in start.tensors().items() if key.startswith("S.")}
    assert sizes["S.mlp.fc2.weight"][1:3] == (6, 12)
    made, own = given.weights(wide), start.weights()
    same = all(torch.allclose(own[key], made[key], atol=1e-6) for key in made)
    assert same == (scalers == "made")
    done = lg.condense(**fields, show=False, **FAST)
    for key, value in given.tensors().items():
        if key.startswith("T."):
            assert torch.equal(done.tensors()[key], value), key
    assert all(not torch.equal(done.tensors()[key], start.tensors()[key]) for key in sizes)
    assert done.metadata["start"] == {"digest": lg.load(fields["start"]["gene"]).metadata["digest"], "scalers": scalers}
    done.save(tmp_path / "done.safetensors")
    loaded = lg.load(tmp_path / "done.safetensors")
    assert torch.equal(loaded.expand()(batch(wide)), done.eval()(batch(wide)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": "tleg"}, "recipe: start: a gene of tleg has no templates; leave it out"),
        ({"method": "any-size"}, "start.gene: {gene} is of wave, not of any-size; set method=wave"),
        ({"settings": {"vectors": 3}}, "start.gene: {gene} has other settings than this recipe; leave settings out"),
        ({"shape": pico_shape(patch_size=2)}, "start.gene: templates of pos_embed are (4, 1, 4, 8), and shape "
                                              "needs (4, 1, 16, 8); give shape the gene's heads, patches, image siz"),
        ({"shapes": [{"depth": 2}]}, "recipe: start: trains scalers for shape alone; leave out shapes and depths"),
        ({"out": "{gene}"}, "recipe: out: {gene} is the gene that is started from and would be lost; choose another"),
        ({"start": {"gene": "none.safetensors"}}, "start.gene: none.safetensors: "),
        ({"start": {"gene": "x", "scalers": "old"}}, "recipe: start.scalers: Input should be 'made' or 'fresh'"),
    ],
)  # fmt: skip
def test_a_gene_that_does_not_fit_is_refused(changes: dict[str, Any], line: str, images: Path, tmp_path: Path) -> None:
    gene = tmp_path / "wave.safetensors"
    Learngene(method("wave"), pico_shape()).save(gene)
    fields: dict[str, Any] = {"method": "wave", "shape": pico_shape(), "start": {"gene": gene}, "distill": {"alpha": 0}}
    if "out" in changes:
        changes = {"out": gene.with_suffix("")}
    with pytest.raises(LearngeneError, match="^" + re.escape(line.format(gene=gene))):
        lg.condense(**fields | changes, data={"source": str(images), "workers": 0}, show=False, **FAST)


@pytest.mark.parametrize("change", ["gene", "classes"])
def test_a_run_is_of_the_gene_and_of_the_classes_that_it_was_begun_with(
    change: str, images: Path, tmp_path: Path
) -> None:
    gene, other = tmp_path / "gene.safetensors", make_images(tmp_path / "other", classes=("red", "blue"))
    for number, path in enumerate((gene, tmp_path / "second.safetensors")):
        made = Learngene(method("wave"), pico_shape(), seed=number, metadata={"classes": ["blue", "green", "red"]})
        made.save(path)
    fields: dict[str, Any] = {"method": "wave", "shape": pico_shape(), "start": {"gene": gene}, "distill": {"alpha": 0}}
    fields |= {"data": {"source": str(images), "workers": 0}, "out": tmp_path / "run", "show": False}
    if change == "gene":
        lg.condense(**fields, **FAST)
        (tmp_path / "second.safetensors").replace(gene)
    else:
        (other / "train" / "pink").mkdir()
        for split in ("train", "val"):
            shutil.copytree(other / split / "red", other / split / "pink", dirs_exist_ok=True)
        fields["data"] = {"source": str(other), "workers": 0}
    with pytest.raises(LearngeneError, match="of another gene" if change == "gene" else "start.gene: was condensed on"):
        lg.condense(**fields, **FAST)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        LearngeneError, match=r"^any-size: templates are of all matrices together, so give a list of one number$"
    ):
        method("any-size", {"templates": (1, 2, 3, 4)})
