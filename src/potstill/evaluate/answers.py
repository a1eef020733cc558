"""Let a model answer prompts: by scoring the choices, by classifying, and, for a saved folder alone, by writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from potstill.engines.local import ChoiceScorer, ScoredBatch
from potstill.engines.reply import split_inline
from potstill.evaluate.metrics import Array
from potstill.models.encoder import TextClassifier, asked_text
from potstill.models.load import compute_dtype, device
from potstill.records import Prompt
from potstill.store.requests import Timing
from potstill.text.tokens import Ids

_WRITTEN_AT_ONCE = 64


def answer_choices(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    choices: Sequence[Ids],
    *,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[Array, Timing]:
    """ln p(choice | prompt) as the model says it (N, C), nothing cached, and what it took."""
    batches = ChoiceScorer(model, choices).score(prompts, batch_tokens=batch_tokens)
    return gathered(batches, (len(prompts), len(choices)), on_batch=on_batch)


def gathered(
    batches: Iterable[ScoredBatch], shape: tuple[int, int], *, on_batch: Callable[[int], None] = lambda _: None
) -> tuple[Array, Timing]:
    """The rows of all batches in the order of their prompts (N, C), and what they took."""
    logp_NC = np.zeros(shape)
    tokens, seconds, done = 0, 0.0, 0
    for batch in batches:
        logp_NC[list(batch.positions)] = batch.choice_logp
        tokens, seconds, done = tokens + batch.tokens, seconds + batch.seconds, done + len(batch.positions)
        on_batch(done)
    return logp_NC, Timing(shape[0], tokens, seconds)


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


def write_answers(folder: Path, prompts: Sequence[Prompt]) -> list[tuple[str, bool]]:
    """What the model folder alone answers through `generate`, and whether it stopped by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(), local_files_only=True)
    model = model.to(device()).eval()  # pyright: ignore[reportArgumentType]
    answers: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), _WRITTEN_AT_ONCE):
        some = [[m.as_dict() for m in p.messages] for p in prompts[start : start + _WRITTEN_AT_ONCE]]
        asked = tokenizer.apply_chat_template(
            some, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        ).to(model.device)
        with torch.inference_mode():
            written = model.generate(**asked)[:, asked["input_ids"].shape[1] :]  # pyright: ignore[reportAttributeAccessIssue]
        stop = model.generation_config.eos_token_id
        for row in written:
            _, said, _ = split_inline(str(tokenizer.decode(row, skip_special_tokens=True)))
            answers.append((said.strip(), bool((row == stop).any())))
    return answers
