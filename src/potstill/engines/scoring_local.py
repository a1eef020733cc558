"""A `transformers` teacher in this process that scores.

Dimension key: L tokens, N scored positions, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from transformers import PreTrainedModel

from potstill.engines.scorer import Scored
from potstill.models.forward import head_logits, hidden_rows


class LocalScorer:
    """The exact distribution, of which the `k` most probable tokens are kept. The head runs in fp32."""

    def __init__(self, model: PreTrainedModel, *, k: int) -> None:
        self._model, self._k = model, k
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def score(self, ids: Sequence[int], *, start: int) -> Scored:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._score, ids, start)

    @torch.inference_mode()
    def _score(self, ids: Sequence[int], start: int) -> Scored:
        device = self._model.device
        ids_1L = torch.tensor([list(ids)], device=device)
        at_N = torch.arange(start - 1, len(ids) - 1, device=device)
        hidden_ND = hidden_rows(self._model, ids_1L, torch.zeros_like(at_N), at_N, cache=None)
        logp_NV = torch.log_softmax(head_logits(self._model, hidden_ND).float(), dim=-1)
        top = logp_NV.topk(self._k, dim=-1)
        token_N = logp_NV.gather(-1, ids_1L[0, start:, None])[:, 0]
        return Scored(
            ids_NK=top.indices.cpu().numpy(),
            logp_NK=top.values.cpu().numpy(),
            token_logp_N=token_N.cpu().numpy(),
        )
