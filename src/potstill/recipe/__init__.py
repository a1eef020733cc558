"""The recipe: one YAML file that says which prompts, which teacher, which checks, which student, which method.

Strict, frozen, values only; `recipe.file` reads it from YAML and writes the resolved recipe back.
"""

from collections.abc import Iterable
from pathlib import Path

from potstill.recipe import file
from potstill.recipe.arms import Arm, arms_of
from potstill.recipe.request import GenerationRequest
from potstill.recipe.whole import Recipe

__all__ = ["Arm", "GenerationRequest", "Recipe", "arms_of", "load_recipe"]


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and try its arms. Raises InputError (exit 2) with file, line, key, value and the way out."""
    recipe = file.read(path, overrides)
    arms_of(recipe)
    return recipe
