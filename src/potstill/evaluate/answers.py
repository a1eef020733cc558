"""Let a model answer prompts: by scoring the choices, and, for a saved folder alone, by writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from potstill.engines.local import ChoiceScorer, ScoredBatch
from potstill.engines.reply import split_inline
from potstill.evaluate.metrics import Array
from potstill.models.load import compute_dtype, device
from potstill.records import Prompt
from potstill.store.requests import Timing
from potstill.text.tokens import Ids


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


def write_answers(folder: Path, prompts: Sequence[Prompt], *, batch_size: int = 64) -> list[tuple[str, bool]]:
    """What the model folder alone answers through `generate`, and whether it stopped by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(), local_files_only=True)
    model = model.to(device()).eval()  # pyright: ignore[reportArgumentType]
    answers: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), batch_size):
        some = [[m.as_dict() for m in p.messages] for p in prompts[start : start + batch_size]]
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
