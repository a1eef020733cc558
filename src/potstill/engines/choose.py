"""Which sampler a recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from potstill.data_recipe import Batches, Canned, DataRecipe, Gguf, Local, Server
from potstill.engines.canned import canned_from
from potstill.engines.sampler import Sampler


def sampler_for(recipe: DataRecipe) -> Sampler:
    """Raises a PotstillError for everything that can be known to be wrong before a request. Sends nothing."""
    writer, how = recipe.teacher, recipe.generate
    match writer.engine:
        case Server() as engine:
            from potstill.engines.server import ServerSampler  # aiohttp costs 0.2 s

            return ServerSampler(writer, how, engine)
        case Canned() as engine:
            return canned_from(Path(engine.answers))
        case Batches() | Gguf() | Local():
            raise NotImplementedError
        case _:
            assert_never(writer.engine)
