"""Shapes of Vision Transformers on paper, and what timm lacks to build, save and run them."""
