"""Which families of timm can be a teacher, a source of layers and a descendant: tried, one after the other.

    python benchmarks/families.py [NAME ...] > results/benchmarks/families.json

Every family stands for one model of timm, made small: random weights, three layers, two heads, four by four patches.
What cannot be made small is tried at its own size as a teacher alone.

A *teacher* gives logits and features. A *source* is read off, built again and compared, and its layers are taken:
weight selection at its own size, narrower where timm can make that, Vanilla-LG and LSAMD. A *descendant* comes from a
TLEG gene that has a gradient in every tensor, computes what its descendant does, plans by stored numbers, and whose
descendant of another depth is written and loaded by stock timm.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from bench import finish, target

import learngene
from learngene import Ancestry, LearngeneError, ViTShape, save_descendant
from learngene.genes.gene import Learngene
from learngene.making.extract import extract
from learngene.methods import method

FAMILIES = {
    "vit_tiny_patch16_224": "AugReg ViT",
    "deit_tiny_patch16_224": "DeiT",
    "deit_tiny_distilled_patch16_224": "DeiT, distilled token",
    "deit3_small_patch16_224": "DeiT-III (LayerScale)",
    "vit_base_patch16_224": "MAE encoder, average pool",
    "vit_base_patch16_224_miil": "no qkv bias",
    "vit_medium_patch16_gap_240": "vit_*_gap",
    "vit_wee_patch16_reg1_gap_256": "reg1 gap (SO-ViT series)",
    "vit_little_patch16_reg4_gap_256": "reg4 gap",
    "vit_pwee_patch16_reg1_gap_256": "parallel scaling block, QK norm",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "vit_so150m_patch16_reg4_map_256": "reg4, attention pool",
    "vit_small_patch14_dinov2": "DINOv2",
    "vit_small_patch14_reg4_dinov2": "DINOv2 with registers",
    "vit_giant_patch14_dinov2": "DINOv2 giant (SwiGLU)",
    "vit_base_patch14_reg1_tipsv2": "TIPSv2",
    "vit_xsmall_patch16_clip_224": "OpenCLIP tower (pre-norm)",
    "vit_base_patch32_clip_quickgelu_224": "OpenAI CLIP (QuickGELU)",
    "vit_base_patch16_siglip_224": "SigLIP / SigLIP2 (attention pool)",
    "vit_base_patch16_siglip_gap_224": "SigLIP, average pool",
    "vit_so400m_patch14_siglip_gap_224": "SigLIP SO400M (ratio 3.74, heads of 72)",
    "vit_base_patch16_rpn_224": "res-post-norm",
    "vit_small_patch16_18x2_224": "two parallel blocks",
    "vit_intern300m_patch14_448": "InternViT",
    "aimv2_large_patch14_224": "AIMv2 (RMSNorm, SwiGLU)",
    "beit3_base_patch16_224": "BEiT-3 (sub-LN)",
    "flexivit_small": "FlexiViT",
    "eva02_tiny_patch14_224": "EVA-02 (RoPE, SwiGLU)",
    "vit_small_patch16_dinov3": "DINOv3 (RoPE, reg4, LayerScale)",
    "vit_small_plus_patch16_dinov3": "DINOv3+ (SwiGLU)",
    "vit_pe_core_tiny_patch16_384": "Perception Encoder",
    "vit_pe_lang_large_patch14_448": "Perception Encoder for language",
    "vit_pe_spatial_tiny_patch16_512": "Perception Encoder for space",
    "vit_small_patch16_lingbot": "LingBot (RoPE, reg4)",
    "vit_giant_patch16_lingbot": "LingBot giant (SwiGLU)",
    "vit_base_patch16_sapiens2": "Sapiens 2 (fewer heads of keys and values)",
    "eva_large_patch14_196": "EVA large",
    "eva_giant_patch14_224": "EVA giant",
    "eva_giant_patch14_clip_224": "EVA-CLIP",
    "eva02_base_patch14_224": "EVA-02, norm inside the MLP",
    "eva02_base_patch16_clip_224": "EVA-02-CLIP, norm inside attention and MLP",
    "eva02_enormous_patch14_clip_224": "EVA-02-CLIP, norms after",
    "vit_small_plus_patch16_dinov3_qkvb": "DINOv3+ with qkv bias",
    "vit_medium_patch16_rope_reg1_gap_256": "RoPE, one register, average pool",
    "vit_mediumd_patch16_rope_reg1_gap_256": "the same without LayerScale",
    "vit_small_patch16_rope_ape_224": "RoPE-ViT with position embedding",
    "vit_small_patch16_rope_224": "RoPE-ViT",
    "vit_small_patch16_rope_mixed_224": "RoPE-ViT, learned frequencies",
    "vit_relpos_small_patch16_224": "relative positions",
    "vit_relpos_small_patch16_rpn_224": "relative positions, norms after",
    "vit_relpos_medium_patch16_cls_224": "relative positions, class token",
    "vit_relpos_base_patch16_clsgap_224": "relative positions, class token but average pool",
    "vit_srelpos_small_patch16_224": "relative positions that all layers share",
    "beit_base_patch16_224": "BEiT",
    "beitv2_base_patch16_224": "BEiT v2",
    "samvit_base_patch16_224": "SAM encoder",
    "naflexvit_base_patch16_gap": "NaFlexViT",
    "naflexvit_base_patch16_siglip": "NaFlexViT SigLIP 2",
    "naflexvit_base_patch16_map": "NaFlexViT, attention pool",
    "naflexvit_base_patch16_parfac_gap": "NaFlexViT, factored positions",
    "vit_base_patch16_xp_224": "parallel attention and MLP, RMSNorm",
    "vit_dpwee_patch16_reg1_gap_256": "parallel differential attention",
    "vit_base_patch32_siglip_256": "SigLIP 2 (GELU by tanh)",
    "vit_base_mci_224": "MobileCLIP (convolutional stem)",
    "vit_small_patch16_36x1_224": "36 layers",
    "test_vit4": "RMSNorm, register, average pool",
    "qwen3_vit_88m": "Qwen3-VL tower",
    "gemma4_vit_167m": "Gemma 4 tower",
    "vit_tiny_r_s16_p8_224": "hybrid ResNet-ViT",
    "tiny_vit_5m_224": "TinyViT",
    "levit_128s": "LeViT",
    "swin_tiny_patch4_window7_224": "Swin",
    "swinv2_tiny_window8_256": "Swin v2",
    "hiera_tiny_224": "Hiera",
    "efficientvit_b0": "EfficientViT (MIT)",
    "efficientvit_m0": "EfficientViT (MSRA)",
    "xcit_nano_12_p16_224": "XCiT",
    "cait_xxs24_224": "CaiT",
    "vitamin_small_224": "ViTamin",
    "mobilevit_xxs": "MobileViT",
    "fastvit_t8": "FastViT",
    "coatnet_nano_rw_224": "CoAtNet",
    "convnext_atto": "ConvNeXt",
    "convnextv2_atto": "ConvNeXt v2",
    "resnet18": "ResNet",
    "mobilenetv3_small_050": "MobileNetV3",
    "mobilenetv4_conv_small": "MobileNetV4",
    "efficientnet_b0": "EfficientNet",
    "mambaout_femto": "MambaOut",
}
"""One model of every family, and what it stands for; the last ones are hierarchical or convolutional."""

ARGUMENTS: dict[str, dict[str, Any]] = {"vit_base_patch16_224": {"global_pool": "avg"}}
COLUMNS = ("teacher", "source", "descendant")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(FAMILIES)
    families = []
    for name in names:
        start = time.perf_counter()
        families.append({"name": name, "stands_for": FAMILIES.get(name, ""), **tried(name)})
        said = ", ".join(f"{column} {families[-1][column]}" for column in COLUMNS)
        print(f"{name}: {said} ({time.perf_counter() - start:.1f} s)", file=sys.stderr)
    counts = {column: sum(family[column] == "ok" for family in families) for column in COLUMNS}
    faults = sum(str(family[column]).startswith("fault") for family in families for column in COLUMNS)
    targets = [target("families that end in a traceback", faults, 0)]
    finish("families", {}, targets, families=families, counts=counts, of=len(families), timm=timm.__version__)


def tried(name: str) -> dict[str, Any]:
    """What works of one family, and of the rest why not."""
    try:
        shape = small(name)
    except Exception as error:
        kind = "refused" if isinstance(error, LearngeneError) else f"fault: {type(error).__name__}"
        out = {"teacher": outcome(lambda: teaches(Ancestry(name, pretrained=False)))}
        return {**out, "source": f"{kind}: {error}", "descendant": f"{kind}: {error}"}
    model = trained(shape)
    return {
        "teacher": outcome(lambda: teaches(Ancestry(model))),
        "source": outcome(lambda: gives_layers(model, shape)),
        "descendant": outcome(lambda: is_made(shape)),
    }


def outcome(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except LearngeneError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"fault: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "ok"


def small(name: str) -> ViTShape:
    """A small model of the family; at its own image size where its patches are not those of the image."""
    own = ViTShape.from_dict({"arch": name, "arch_args": ARGUMENTS.get(name, {}), "num_classes": 3, "depth": 3})
    fault: LearngeneError | None = None
    for changes in (
        {"embed_dim": 48, "num_heads": 2, "img_size": 4 * own.patch_size},
        {"embed_dim": 128, "num_heads": 2, "img_size": 4 * own.patch_size},
        {"embed_dim": 48, "num_heads": 2},
        {},
    ):
        try:
            shape = own.replace(**changes)
            shape.params()
        except LearngeneError as error:
            fault = error
        else:
            return shape
    assert fault is not None
    raise fault


def trained(shape: ViTShape) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(shape.arch, **shape.timm_kwargs()).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model


def images(shape: ViTShape) -> torch.Tensor:
    return torch.randn(2, shape.in_chans, shape.img_size, shape.img_size, generator=torch.Generator().manual_seed(0))


def teaches(ancestry: Ancestry) -> None:
    size = ancestry.preprocessing["input_size"]
    batch = torch.randn(2, *size)
    assert ancestry(batch).isfinite().all()
    assert ancestry.features(batch).shape == (2, ancestry.width)


@torch.no_grad()
def gives_layers(model: Any, shape: ViTShape) -> None:
    whole = extract(Ancestry(model), method="weight-selection")
    torch.testing.assert_close(whole.expand()(images(shape)), model(images(shape)), rtol=1e-4, atol=1e-5)
    for rule in ("official", "aligned"):
        narrow = whole.shape.replace(embed_dim=whole.shape.head_dim, num_heads=1, depth=2)
        try:
            narrow.params()
        except LearngeneError:  # such as a width whose MLP cannot be halved
            break
        assert whole.expand(narrow, rule=rule)(images(shape)).isfinite().all()
    for name, settings in (("vanilla-lg", {"last": 2}), ("lsamd", {"layers": [1, 3]})):
        made = extract(Ancestry(model), method=name, settings=settings).expand(4)
        assert made(images(shape)).isfinite().all()


def is_made(shape: ViTShape) -> None:
    gene = Learngene(method("tleg"), shape)
    gene.train()(images(shape)).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in gene.tensors().values())
    gene.eval()
    torch.testing.assert_close(gene(images(shape)), gene.expand()(images(shape)), rtol=1e-4, atol=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        gene.save(Path(folder) / "g.safetensors")
        made = learngene.load(Path(folder) / "g.safetensors").expand(5)
        rows = learngene.plan(Path(folder) / "g.safetensors")
        counted = next(row.params for row in rows if row.shape.depth == 5)
        assert counted == sum(value.numel() for value in made.parameters())
        save_descendant(made, Path(folder) / "des")
        stock = timm.create_model(f"local-dir:{folder}/des", pretrained=True).eval()
        assert torch.equal(stock(images(shape)), made(images(shape)))


if __name__ == "__main__":
    main()
