"""Let an encoder classifier answer prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from potstill.evaluate.metrics import Array
from potstill.models.encoder import TextClassifier, asked_text
from potstill.records import Prompt
from potstill.store.ledger import Timing


@torch.inference_mode()
def classify(
    classifier: TextClassifier,
    prompts: Sequence[Prompt],
    *,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[Array, Timing]:
    """Its ln p over the choices (N, C), and what it took, from text to answers. Long prompts go together."""
    texts = [asked_text(p.messages) for p in prompts]
    start = time.perf_counter()
    lengths = [len(ids) for ids in classifier.tokenizer(texts)["input_ids"]]  # pyright: ignore[reportArgumentType]
    order = sorted(range(len(texts)), key=lambda i: (-lengths[i], i))
    logp_NC = np.zeros((len(texts), int(classifier.model.config.num_labels or 0)))
    done = 0
    while done < len(order):
        some = order[done : done + max(1, batch_tokens // max(lengths[order[done]], 1))]
        inputs = {
            name: value.to(classifier.model.device)
            for name, value in classifier.encode([texts[i] for i in some]).items()
        }
        logp_NC[some] = torch.log_softmax(classifier.model(**inputs).logits.float(), dim=-1).cpu().numpy()
        done += len(some)
        on_batch(done)
    return logp_NC, Timing(len(texts), sum(lengths), time.perf_counter() - start)
