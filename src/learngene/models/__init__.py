"""Modules that timm lacks and that timm's Vision Transformer takes as parts."""
