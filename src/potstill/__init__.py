"""Potstill: a big model's ability on a job, distilled into a small model you own.

import potstill
run = potstill.distill(potstill.load_recipe("recipes/quickstart.yaml"))
run.read_scores()["arms"]["student"]["accuracy"]
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import PotstillError
from potstill.recipe.choices import ChoiceRecipe
from potstill.recipe.choices import load_choice_recipe as _load

if TYPE_CHECKING:
    from potstill.records import Stage, Watch
    from potstill.store.run import Run

__all__ = ["ChoiceRecipe", "PotstillError", "distill", "load_recipe"]
__version__ = version("potstill")


def load_recipe(path: str | Path, *overrides: str) -> ChoiceRecipe:
    """Read a recipe file; `overrides` are of the form "train.epochs=2". Raises InputError."""
    return _load(Path(path), overrides)


def distill(
    recipe: ChoiceRecipe,
    *,
    folder: Path | None = None,
    through: Stage = "report",
    watch: Watch | None = None,
) -> Run:
    """Run the recipe's stages in order, as `potstill run` does; see `potstill.pipeline.distill`."""
    # torch and transformers take seconds to import: `import potstill` and the light verbs do without them.
    from potstill import pipeline
    from potstill.records import unwatched

    return pipeline.distill(recipe, folder=folder, through=through, watch=watch or unwatched)
