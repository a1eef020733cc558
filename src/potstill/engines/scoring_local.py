"""A `transformers` teacher in this process that scores.

Dimension key: T tokens, N scored positions, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.engines.scorer import Scored
from potstill.models.documents import Documents
from potstill.models.forward import head_logits, hidden_rows, logit_terms
from potstill.signals import Hidden, TopK


class LocalScorer:
    """Hidden states and the head (`k` None: the whole distribution), or its `k` most probable tokens; fp32 head."""

    def __init__(self, model: PreTrainedModel, *, k: int | None) -> None:
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

    @torch.no_grad()  # not inference mode: what comes out takes part in training
    def _score(self, ids: Sequence[int], start: int) -> Scored:
        device = self._model.device
        documents = Documents.of([tuple(ids)], device)
        at_N = torch.arange(start - 1, len(ids) - 1, device=device)
        hidden_ND = hidden_rows(self._model, documents, at_N)
        logits_NV = head_logits(self._model, hidden_ND)
        lse_N = logits_NV.logsumexp(dim=-1)
        token_logp_N = logits_NV.gather(-1, documents.ids_T[start:, None])[:, 0] - lse_N
        if self._k is None:
            return Scored(signal=self._hidden(hidden_ND), token_logp_N=token_logp_N)
        top = logits_NV.topk(self._k, dim=-1)
        signal = TopK(ids_NK=top.indices, logp_NK=top.values - lse_N[:, None], lse_N=lse_N)
        return Scored(signal=signal, token_logp_N=token_logp_N)

    def _hidden(self, hidden_ND: Tensor) -> Hidden:
        head: Any = self._model.get_output_embeddings()
        scale, softcap = logit_terms(self._model)
        return Hidden(hidden_ND, head.weight, bias_V=head.bias, logit_scale=scale, softcap=softcap)
