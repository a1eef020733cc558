"""How surprising a model finds given answers: the mean cross-entropy of their tokens.

Dimension key: R rows that are scored, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from potstill.engines.local import plan_batches
from potstill.engines.row_logits import row_logits
from potstill.models.documents import Documents
from potstill.models.forward import hidden_rows
from potstill.text.tokens import Ids

_BATCH_TOKENS = 4096
_ROWS = 1024  # rows of logits at once


@torch.inference_mode()
def mean_nats(model: PreTrainedModel, rows: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Nats per token of every (prefix, target), in order: -ln p(target | prefix) / tokens of the target. Batched by
    length, each batch at most 4,096 tokens, or one sequence."""
    found = [0.0] * len(rows)
    for batch in plan_batches([len(prefix) + len(target) - 1 for prefix, target in rows], _BATCH_TOKENS):
        for at, value in zip(batch, _batch(model, [rows[i] for i in batch]), strict=True):
            found[at] = value
    return found


def _batch(model: PreTrainedModel, rows: Sequence[tuple[Ids, Ids]]) -> list[float]:
    documents = Documents.of([(*prefix, *target[:-1]) for prefix, target in rows], model.device)
    places = zip(rows, documents.start_S, strict=True)
    at = [start + len(prefix) - 1 + i for (prefix, target), start in places for i in range(len(target))]
    target_R = torch.tensor([token for _, target in rows for token in target], device=model.device)
    hidden_RD = hidden_rows(model, documents, torch.tensor(at, device=model.device))
    nats_R = torch.cat(
        [
            torch.nn.functional.cross_entropy(row_logits(model, some_RD), some_R, reduction="none")
            for some_RD, some_R in zip(hidden_RD.split(_ROWS), target_R.split(_ROWS), strict=True)
        ]
    )
    return [part.mean().item() for part in nats_R.split([len(target) for _, target in rows])]
