"""From examples to tensors: which tokens are read, which bear loss, which examples make a step and which a pass.

Dimension key: T tokens read, R rows that bear loss, N target tokens, P prompts, C choices, M tokens of all choices.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.engines.slots import Rollout
from potstill.models.documents import Documents
from potstill.text.tokens import Ids


@dataclass(frozen=True, slots=True)
class Row:
    """One example in tokens: the student's prompt and the answer to learn with its end-of-turn token.

    `teacher_prefix` is the same prompt as the teacher reads it, where the teacher scores the answer; it ends its turns
    with the student's token or not (`ends_alike`), and only then says something about the last token. `teacher_logp` is
    its distribution over the choices, where there are choices. `written` is how the student wrote the target itself.
    """

    prefix: Ids
    target: Ids
    teacher_logp: tuple[float, ...] = ()
    teacher_prefix: Ids = ()
    ends_alike: bool = True
    weight: float = 1.0
    written: Rollout | None = None

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.target) - 1

    @property
    def scored(self) -> int:
        """How many of the target's tokens have soft targets from a teacher that scores."""
        return len(self.target) if self.ends_alike else len(self.target) - 1


@dataclass(frozen=True, slots=True)
class Whole:
    """What the terms of an optimizer step are divided by: counted over all its passes and processes before the first
    backward (Unsloth and Hugging Face 2024 on gradient accumulation: a mean of means is another objective)."""

    target_weight: float
    prompts: int

    @staticmethod
    def of(rows: Sequence[Row]) -> Whole:
        return Whole(sum(row.weight * len(row.target) for row in rows), len(rows))


@dataclass(frozen=True, slots=True)
class Choices:
    """Where the tokens of the allowed answers are predicted, and the teacher's distribution over the answers."""

    row_M: Tensor
    token_M: Tensor
    at_M: Tensor
    teacher_logp_PC: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass. `at_R` are the tokens that bear loss; those that predict `target_N` come first. `weight_N` sums to 1
    over the passes of a step, and `share` of a prompt to 1 too. `scored_N` are the targets with soft targets,
    `written_N` the writer's ln q of those that the student wrote itself (NaN of others; None where there are none)."""

    documents: Documents
    at_R: Tensor
    target_N: Tensor
    weight_N: Tensor
    scored_N: Tensor
    written_N: Tensor | None
    share: float
    choices: Choices | None
    tokens: int


def collate(rows: Sequence[Row], choices: Sequence[Ids], *, whole: Whole, device: torch.device) -> Batch:
    """One document an example, and one more for every choice whose tokens the target's own document does not pass."""
    sequences = [(*row.prefix, *row.target[:-1]) for row in rows]
    places: dict[tuple[int, int], int] = {}  # (document, position) -> row that bears loss
    for n, row in enumerate(rows):
        for step in range(len(row.target)):
            places[n, len(row.prefix) - 1 + step] = len(places)
    taken: list[tuple[int, int, int]] = []  # row, token, p * C + c
    for n, row in enumerate(rows):
        for c, choice in enumerate(choices):
            at = n if row.target[: len(choice) - 1] == choice[:-1] else len(sequences)
            if at == len(sequences):
                sequences.append((*row.prefix, *choice[:-1]))
            for step, token in enumerate(choice):
                place = places.setdefault((at, len(row.prefix) - 1 + step), len(places))
                taken.append((place, token, n * len(choices) + c))
    documents = Documents.of(sequences, device)
    scored = [step < row.scored for row in rows for step in range(len(row.target))]
    weights = [row.weight / whole.target_weight for row in rows for _ in row.target]
    return Batch(
        documents=documents,
        at_R=torch.tensor([documents.start_S[s] + position for s, position in places], device=device),
        target_N=torch.tensor([token for row in rows for token in row.target], device=device),
        weight_N=torch.tensor(weights, device=device),
        scored_N=torch.tensor(scored, device=device),
        written_N=_written(rows, device),
        share=1 / whole.prompts,
        choices=_choices(rows, taken, device) if choices else None,
        tokens=len(documents.ids_T),
    )


def _written(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    if not any(row.written for row in rows):
        return None
    logp = (row.written.logp if row.written else (math.nan,) * len(row.target) for row in rows)
    return torch.tensor([nats for some in logp for nats in some], device=device)


def _choices(rows: Sequence[Row], taken: Sequence[tuple[int, int, int]], device: torch.device) -> Choices:
    row_M, token_M, at_M = torch.tensor(taken, dtype=torch.long, device=device).T
    logp_PC = torch.tensor([row.teacher_logp for row in rows], device=device)
    return Choices(row_M, token_M, at_M, logp_PC)


def steps_of_epoch(count: int, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Which of `count` examples make every step of an epoch: a pure function of its arguments, so a resumed run sees
    what an unbroken one would. Nothing is sorted by length, since nothing is padded."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def passes(rows: Sequence[Row], pass_tokens: int) -> list[list[Row]]:
    """A step's examples in as few passes of at most `pass_tokens` tokens as first-fit decreasing finds; an example that
    is longer has a pass of its own."""
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -row.tokens):
        place = next((i for i, left in enumerate(room) if row.tokens <= left), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(pass_tokens)
        bins[place].append(row)
        room[place] -= row.tokens
    return bins
