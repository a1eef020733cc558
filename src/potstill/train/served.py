"""A teacher behind a vLLM server that scores what the student learns: its k most probable tokens at every target."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.engines.scoring_server import Scored, ServerScorer
from potstill.models.load import device
from potstill.recipe.teacher import Server, Teacher
from potstill.signals import TopK
from potstill.train.batch import Row

_FIRST_ATTEMPTS = 3  # a server that was never heard is not waited for long


class ServedTeacher:
    """All rows of a call are asked for at once. What the server leaves out of its k is one outcome together."""

    def __init__(self, model: str, licence: str, server: Server, *, k: int) -> None:
        self._writer, self._server, self._k = Teacher(model=model, licence=licence, engine=server), server, k
        self._heard = False

    def __call__(self, rows: Sequence[Row]) -> TopK:
        tops = self.each(rows)
        ids_NK, logp_NK = torch.cat([top.ids_NK for top in tops]), torch.cat([top.logp_NK for top in tops])
        return TopK(ids_NK.to(device()), logp_NK.to(device()))

    def each(self, rows: Sequence[Row]) -> list[TopK]:
        """The same, row by row, on the CPU."""
        return [scored.signal for scored in asyncio.run(self._scores(rows))]

    def token_logp(self, rows: Sequence[Row]) -> Tensor:
        """ln p of the targets themselves, shape (N,), on the CPU."""
        return torch.cat([scored.token_logp_N for scored in asyncio.run(self._scores(rows))])

    async def _scores(self, rows: Sequence[Row]) -> list[Scored]:
        attempts = self._server.attempts if self._heard else min(self._server.attempts, _FIRST_ATTEMPTS)
        server = self._server.model_copy(update={"attempts": attempts})
        async with ServerScorer(self._writer, server, k=self._k) as scorer:
            asked = [(*row.teacher_prefix, *row.target[: row.scored]) for row in rows]
            scores = [scorer.score(ids, start=len(row.teacher_prefix)) for ids, row in zip(asked, rows, strict=True)]
            found = await asyncio.gather(*scores)
        self._heard = True
        return found
