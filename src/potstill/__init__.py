"""Potstill: a big model's ability on a job, distilled into a small model you own.

import potstill
run = potstill.distill(potstill.load_recipe("recipes/quickstart.yaml"))
run.read_scores()["arms"]["student"]["accuracy"]
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import recipe as _recipe
from potstill.errors import PotstillError
from potstill.recipe import Recipe

if TYPE_CHECKING:
    from potstill.pipeline import Run, distill

__all__ = ["PotstillError", "Recipe", "Run", "distill", "load_recipe"]
__version__ = version("potstill")


def load_recipe(path: str | Path, *overrides: str) -> Recipe:
    """Read a recipe file; `overrides` are of the form "train.epochs=2". Raises InputError."""
    return _recipe.load_recipe(Path(path), overrides)


def __getattr__(name: str) -> object:
    """The stages, when somebody asks for them: `import potstill` and the light verbs do without pyarrow."""
    if name not in ("Run", "distill"):
        raise AttributeError(f"module 'potstill' has no attribute '{name}'")
    from potstill import pipeline

    return getattr(pipeline, name)
