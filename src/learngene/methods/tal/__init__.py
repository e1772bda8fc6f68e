"""Task-Aware Learngene and the graph hypernetworks it is compared with. Nothing imported here imports torch."""

from learngene.methods.tal.hypernetwork import GHN3, TAL, Hypernetwork, LoGAH, hypernetwork_of

__all__ = ["GHN3", "TAL", "Hypernetwork", "LoGAH", "hypernetwork_of"]
