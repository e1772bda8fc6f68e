"""What a run is told: recipes and their sections, as YAML, flags and Python build them."""

from learngene.recipe.loading import load_recipe

__all__ = ["load_recipe"]
