"""The recipe: one YAML file that says which prompts, which teacher, which checks, which student, which method.

Strict, frozen, values only; `recipe.file` reads it from YAML and writes the resolved recipe back.
"""

from potstill.recipe.whole import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]
