"""A teacher behind vLLM that scores: `prompt_logprobs` on token ids.

Traps that this file knows: the server caps k (`--max-logprobs`); positions read from a prefix cache can carry stale
numbers, so a reply that used one is refused; the actual token stands in the list beyond the k and is no part of the
top; the JSON takes about 70 bytes per token and candidate, so a reply past the bound is refused before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.engines.http import Connection
from potstill.engines.reply import read_object, read_usage
from potstill.engines.sampler import Failure
from potstill.errors import InputError, TeacherError
from potstill.recipe.teacher import Server, Teacher
from potstill.signals import TopK

_BYTES_PER_CANDIDATE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The k most probable tokens at N positions, and ln p of the tokens that came (temperature 1)."""

    signal: TopK
    token_logp_N: Tensor


class ServerScorer(Connection):
    """`k` candidates per position; inside `async with`, many calls at once. Raises TeacherError where the server
    cannot do what is asked."""

    def __init__(self, writer: Teacher, server: Server, *, k: int) -> None:
        super().__init__(server, limit=server.max_reply_bytes, form=server.form, at_once=server.in_flight)
        self._model, self._server, self._k = writer.model, server, k

    async def score(self, ids: Sequence[int], *, start: int) -> Scored:
        """The distributions that predict `ids[start:]`, one per position; 1 <= start < len(ids)."""
        if len(ids) * (self._k + 1) * _BYTES_PER_CANDIDATE > self._server.max_reply_bytes:
            raise InputError(
                f"scoring {len(ids)} tokens at k = {self._k} takes more than {self._server.max_reply_bytes:,} bytes",
                way_out="lower k, shorten the text or raise teacher.engine.max_reply_bytes",
            )
        asked = {
            "model": self._model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self._k,
        }
        try:
            url, attempts = f"{self._server.url}/completions", self._server.attempts
            status, said = await self.replied(url, asked, attempts=attempts)
            reply = read_object(said) if status == 200 else {}
        except Failure as failure:
            raise TeacherError(f"the server did not score: {failure}", way_out="see that it runs, then again") from None
        if status != 200:
            raise TeacherError(
                f"the server does not score at k = {self._k} (status {status}: {said[:300].decode(errors='replace')})",
                way_out="lower k or start the server with a higher --max-logprobs",
            )
        return read_scores(reply, ids, start=start, k=self._k)


def read_scores(reply: Mapping[str, Any], ids: Sequence[int], *, start: int, k: int) -> Scored:
    """What a reply says of `ids[start:]`. Raises TeacherError where it is not what was asked for."""
    if (usage := read_usage(reply.get("usage"))) and usage.cached:
        raise TeacherError(
            "the server scored from its prefix cache, which can hold stale numbers",
            way_out="start it with --no-enable-prefix-caching",
        )
    listed = (reply.get("choices") or [{}])[0].get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != len(ids):
        raise TeacherError(
            f"the server gave no prompt_logprobs for {len(ids)} tokens",
            way_out="score with vLLM or a model in this process",
        )
    tops = [_top(entry, k) for entry in listed[start:]]
    tokens = [entry[str(token)]["logprob"] for entry, token in zip(listed[start:], ids[start:], strict=True)]
    top = TopK(
        ids_NK=torch.tensor([[token for token, _ in top] for top in tops]),
        logp_NK=torch.tensor([[logp for _, logp in top] for top in tops]),
    )
    return Scored(signal=top, token_logp_N=torch.tensor(tokens))


def _top(entry: Mapping[str, Mapping[str, Any]], k: int) -> list[tuple[int, float]]:
    """The k best by rank; the actual token is listed too, and is left out where it is not among them."""
    best = sorted((e["rank"], int(token), float(e["logprob"])) for token, e in entry.items() if e["rank"] <= k)
    if len(best) != k:
        raise TeacherError(f"the server gave {len(best)} of {k} candidates", way_out="lower k")
    return [(token, logp) for _, token, logp in best]
