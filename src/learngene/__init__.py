"""Condense one large Vision Transformer into a learngene and expand it into timm ViTs of any depth.

The public names are loaded when first used, so that ``import learngene`` and the command line stay instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from learngene.vits.timm_registration import register_with_timm
from learngene.vits.without_compiler import keep_compiler_out

if TYPE_CHECKING:
    from learngene.devices.export import export, export_onnx
    from learngene.devices.measure import OnDevice, measure_on_device
    from learngene.genes.ancestry import Ancestry
    from learngene.genes.elastic import ElasticViT
    from learngene.genes.gene import Learngene
    from learngene.genes.plan import Budget, Candidate, plan
    from learngene.genes.plan_sizes import PlannedSize, plan_sizes
    from learngene.making import block_features as features
    from learngene.making.condense import condense
    from learngene.making.extract import extract
    from learngene.making.finetune import evaluate, finetune, scratch
    from learngene.making.hyper import guidance
    from learngene.making.hyper.embedding import embed_task
    from learngene.making.hyper.tune import tune
    from learngene.making.pool import stitches
    from learngene.making.probe import Probes, probe
    from learngene.making.search.make import search
    from learngene.making.together import condense_together
    from learngene.making.zero_shot import zero_shot
    from learngene.methods import method
    from learngene.methods.tal import predict as hypernetworks
    from learngene.methods.tal.task_embedding import TaskEmbedding
    from learngene.recipe.hyper import Guidance
    from learngene.recipe.loading import load_recipe
    from learngene.recipe.sections import Distill
    from learngene.shipping.ship import ship
    from learngene.system.errors import LearngeneError
    from learngene.training import losses
    from learngene.vits.descendant_folder import load_descendant, save_descendant
    from learngene.vits.segmenter import segment
    from learngene.vits.shape import ViTShape
    from learngene.vits.speed import latency
    from learngene.vits.stitched_shape import StitchedShape

__version__ = "0.2.0"

_HOMES = {
    "Ancestry": "genes.ancestry",
    "Budget": "genes.plan",
    "Candidate": "genes.plan",
    "Distill": "recipe.sections",
    "ElasticViT": "genes.elastic",
    "Guidance": "recipe.hyper",
    "Learngene": "genes.gene",
    "LearngeneError": "system.errors",
    "OnDevice": "devices.measure",
    "Probes": "making.probe",
    "StitchedShape": "vits.stitched_shape",
    "TaskEmbedding": "methods.tal.task_embedding",
    "ViTShape": "vits.shape",
    "condense": "making.condense",
    "condense_together": "making.together",
    "embed_task": "making.hyper.embedding",
    "evaluate": "making.finetune",
    "export": "devices.export",
    "export_onnx": "devices.export",
    "extract": "making.extract",
    "finetune": "making.finetune",
    "PlannedSize": "genes.plan_sizes",
    "latency": "vits.speed",
    "load_descendant": "vits.descendant_folder",
    "load_recipe": "recipe",
    "measure_on_device": "devices.measure",
    "method": "methods",
    "plan": "genes.plan",
    "plan_sizes": "genes.plan_sizes",
    "probe": "making.probe",
    "save_descendant": "vits.descendant_folder",
    "scratch": "making.finetune",
    "search": "making.search.make",
    "segment": "vits.segmenter",
    "ship": "shipping.ship",
    "tune": "making.hyper.tune",
    "zero_shot": "making.zero_shot",
}

_MODULES = {
    "features": "making.block_features",
    "guidance": "making.hyper.guidance",
    "hypernetworks": "methods.tal.predict",
    "losses": "training.losses",
    "stitches": "making.pool.stitches",
}
"""Modules with the papers' parts, one by one; see docs/parts.md."""

__all__ = ["__version__", "load", *_HOMES, *_MODULES]

register_with_timm()
keep_compiler_out()


def load(path: str, *, verify_content: bool = True) -> "Learngene":
    """Reads a gene file; short for ``Learngene.load``."""
    from learngene.genes.gene import Learngene

    return Learngene.load(path, verify_content=verify_content)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"learngene.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'learngene' has no attribute '{name}'")
    return getattr(import_module(f"learngene.{_HOMES[name]}"), name)
