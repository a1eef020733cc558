"""Which sampler a recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from potstill.engines.canned import canned_from
from potstill.engines.sampler import Sampler
from potstill.errors import InputError
from potstill.models.locate import facts, locate
from potstill.recipe.teacher import Batches, Canned, Gguf, Local, Server
from potstill.recipe.whole import Recipe


def sampler_for(recipe: Recipe) -> Sampler:
    """Raises a PotstillError for everything that can be known to be wrong before a request. Sends nothing."""
    writer, how = recipe.teacher, recipe.generate
    match writer.engine:
        case Server() as engine:
            from potstill.engines.server import ServerSampler  # aiohttp costs 0.2 s

            return ServerSampler(writer, how, engine)
        case Canned() as engine:
            return canned_from(Path(engine.answers))
        case Gguf() as engine:
            from potstill.engines.gguf import GgufSampler

            return GgufSampler(_gguf_file(writer.model), how, engine)
        case Local() as engine:
            from potstill.engines.writer import LocalSampler  # torch takes seconds

            return LocalSampler(writer.model, writer.revision, how, engine)
        case Batches() as engine:
            from potstill.engines.batches import BatchSampler

            return BatchSampler(writer, how, engine)
        case _:
            assert_never(writer.engine)


def _gguf_file(model: str) -> Path:
    located = locate(model)
    if located.form != "gguf" or located.path is None:
        raise InputError(
            f"teacher.model: '{model}' is no .gguf file", way_out="give one, or another teacher.engine.kind"
        )
    facts(located)  # a damaged file is refused before llama.cpp sees it
    return located.path
