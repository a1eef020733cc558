"""What it costs that every on-policy step observes entropies, rank and gap: steps at SmolLM2's vocabulary, observed and
not, in turn, beside the loss alone. The weights are not fine-tuned, the time is the same.

    .venv/bin/python benchmarks/observing.py

Dimension key: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from on_policy_experiment import REVERSE
from on_policy_tasks import MODEL, learn, lessons
from torch import Tensor

from potstill.engines.slots import Rollout
from potstill.losses import CrossEntropy, Hidden, ReverseKl, linear_divergence
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.models.student import first_layers, freeze
from potstill.recipe.on_policy import OnPolicy
from potstill.signals import Signal
from potstill.train import language
from potstill.train.batch import Row
from potstill.train.rollout_buffer import RolloutBuffer, WritesHere
from potstill.train.teaching import LiveTeacher

LAYERS, PROMPT, ANSWER, BATCH, STEPS = 8, 45, 43, 8, 11


def step_seconds() -> dict[bool, list[float]]:
    """Of whole steps, from the first token written to the gradient: by whether they were observed."""
    teacher = load(locate(MODEL), dtype=torch.float32).model.requires_grad_(False)
    student = first_layers(teacher, LAYERS)
    freeze(student, embeddings=True, layers=0)
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 40_000, (STEPS * BATCH, PROMPT), generator=draw).tolist()
    rows = [Row(prefix=tuple(ids), target=(2,), teacher_prefix=tuple(ids)) for ids in prompts]
    own = OnPolicy(warm_up=0.0, max_tokens=ANSWER, slots=BATCH)
    here = WritesHere(student, slots=BATCH, capacity_tokens=PROMPT + ANSWER, end_of_turn=2)
    scorer, terms = LiveTeacher(teacher, [row.teacher_prefix for row in rows]), language.terms
    begun: list[float] = []
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def writes(some: Sequence[Row], **asked: Any) -> list[Rollout]:
        if begun:
            seconds[len(begun) % 2 == 1].append(time.perf_counter() - begun[-1])  # of the step before
        begun.append(time.perf_counter())
        return here(some, **asked)

    def in_turn(*given: Any, signal: Signal | None, observe: bool) -> Any:
        return terms(*given, signal=signal, observe=observe and len(begun) % 2 == 1)

    language.terms = in_turn
    how = lessons(REVERSE, epochs=1, batch=BATCH, rate=1e-9, validations=1, on_policy=own)
    learn(student, rows, how, seed=0, teach=scorer, own=RolloutBuffer(own, writes, seed=0))
    return {observed: some[1:] for observed, some in seconds.items()}  # the first of each warms up


def loss_seconds(*, observed: bool) -> float:
    """Of the loss's forward and backward alone, as many tokens as a step has."""
    V, D, N = 49_152, 576, BATCH * ANSWER
    head_VD, student_ND = torch.randn(V, D) * 0.04, torch.randn(N, D)
    teacher, target_N = Hidden(student_ND + 0.3 * torch.randn(N, D), head_VD), torch.randint(V, (N,))

    def once() -> float:
        hidden_ND: Tensor = student_ND.clone().requires_grad_()
        begin = time.perf_counter()
        linear_divergence(
            hidden_ND,
            head_VD,
            teacher=teacher,
            divergence=ReverseKl(),
            cross_entropy=CrossEntropy(target_N, weight=0.0) if observed else None,
            observe=(lambda _: None) if observed else None,
        ).sum().backward()
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(6))


def main() -> None:
    steps = step_seconds()
    for observed in (True, False):
        alone, whole = loss_seconds(observed=observed), statistics.median(steps[observed])
        name = "observed" if observed else "not observed"
        print(
            f"{name}: a step {whole:.2f} s ({', '.join(f'{s:.2f}' for s in steps[observed])}), its loss {alone:.3f} s"
        )


if __name__ == "__main__":
    main()
