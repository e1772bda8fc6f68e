"""Condense one large Vision Transformer into a learngene and expand it into timm ViTs of any depth.

The public names are loaded when first used, so that ``import learngene`` and the command line stay instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from learngene._version import __version__
from learngene.models.known_to_timm import register_with_timm

if TYPE_CHECKING:
    from learngene.ancestry import Ancestry
    from learngene.budget import Budget, Candidate, plan
    from learngene.condensing import condense
    from learngene.descendant import load_descendant, save_descendant
    from learngene.elastic import ElasticViT
    from learngene.errors import LearngeneError
    from learngene.export import export_onnx
    from learngene.extracting import extract
    from learngene.finetuning import evaluate, finetune, scratch
    from learngene.gene import Learngene
    from learngene.hyper.embedding import embed_task
    from learngene.hyper.run import tune
    from learngene.measure import latency
    from learngene.methods.tal.task import TaskEmbedding
    from learngene.models.segmenter import segment
    from learngene.recipe import load_recipe
    from learngene.searching.run import search
    from learngene.shape import ViTShape
    from learngene.stitched import StitchedShape

_HOMES = {
    "Ancestry": "ancestry",
    "Budget": "budget",
    "Candidate": "budget",
    "ElasticViT": "elastic",
    "Learngene": "gene",
    "LearngeneError": "errors",
    "StitchedShape": "stitched",
    "TaskEmbedding": "methods.tal.task",
    "ViTShape": "shape",
    "condense": "condensing",
    "embed_task": "hyper.embedding",
    "evaluate": "finetuning",
    "export_onnx": "export",
    "extract": "extracting",
    "finetune": "finetuning",
    "latency": "measure",
    "load_descendant": "descendant",
    "load_recipe": "recipe",
    "plan": "budget",
    "save_descendant": "descendant",
    "scratch": "finetuning",
    "search": "searching.run",
    "segment": "models.segmenter",
    "tune": "hyper.run",
}

__all__ = ["__version__", "load", *_HOMES]

register_with_timm()


def load(path: str, *, verify_content: bool = True) -> "Learngene":
    """Reads a gene file; short for ``Learngene.load``."""
    from learngene.gene import Learngene

    return Learngene.load(path, verify_content=verify_content)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'learngene' has no attribute '{name}'")
    return getattr(import_module(f"learngene.{_HOMES[name]}"), name)
