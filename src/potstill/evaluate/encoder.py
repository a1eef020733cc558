"""Let an encoder classifier answer prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from potstill.engines.local import ScoredBatch
from potstill.models.encoder import TextClassifier, asked_text
from potstill.records import Prompt


def classify(
    classifier: TextClassifier, prompts: Sequence[Prompt], *, batch_tokens: int, skip: frozenset[int] = frozenset()
) -> Iterator[ScoredBatch]:
    """Its ln p over the choices, batch by batch, long prompts together, timed from text to answers. Batches are planned
    over all prompts, and those in `skip` left out: one that is resumed between two of them computes the same bits."""
    texts = [asked_text(prompt.messages) for prompt in prompts]
    start = time.perf_counter()
    lengths = encoded_lengths(classifier, texts)
    order = sorted(range(len(texts)), key=lambda i: (-lengths[i], i))
    number = done = 0
    while done < len(order):
        planned = order[done : done + max(1, batch_tokens // max(lengths[order[done]], 1))]
        some = [i for i in planned if i not in skip]
        if some:
            rows = _logp(classifier, [texts[i] for i in some])
            now = time.perf_counter()
            yield ScoredBatch(number, tuple(some), rows, sum(lengths[i] for i in some), now - start)
            start = time.perf_counter()
        number, done = number + 1, done + len(planned)


def encoded_lengths(classifier: TextClassifier, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in classifier.tokenizer(list(texts))["input_ids"]]  # pyright: ignore[reportArgumentType]


@torch.inference_mode()
def _logp(classifier: TextClassifier, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    inputs = {name: value.to(classifier.model.device) for name, value in classifier.encode(texts).items()}
    logp_BC = torch.log_softmax(classifier.model(**inputs).logits.float(), dim=-1)
    return tuple(tuple(row) for row in logp_BC.tolist())
