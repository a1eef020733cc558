"""From examples to tensors: which tokens are read, which bear loss, which examples make a step and which a pass.

Dimension key: T tokens read, R rows that bear loss, N target tokens, P prompts, C choices, M tokens of all choices,
O target tokens of the student's own answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from potstill.models.documents import Documents
from potstill.text.tokens import Ids


class Learnable(Protocol):
    """An example of any kind: how many tokens are read of it, and how many bear loss."""

    @property
    def tokens(self) -> int: ...

    @property
    def targets(self) -> int: ...


R = TypeVar("R", bound=Learnable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Of an answer that the student wrote: which of the step's examples it answers, whether it came to its end, ln q of
    every token as it was written, and ln of what each was drawn with (empty: the same; where a teacher mixed in, it is
    not). `train/advantages.py` adds what each token is worth, and out of what: ln p - ln q where a teacher was asked,
    and what the checks said (1, 0 or nothing)."""

    prompt: int
    cut_off: bool
    logp: tuple[float, ...]
    drawn_logp: tuple[float, ...] = ()
    advantage: tuple[float, ...] = ()
    log_ratio: tuple[float, ...] = ()
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One example in tokens: the student's prompt and the answer to learn with its end-of-turn token.

    `teacher_prefix` is the same prompt as the teacher reads it, where the teacher scores the answer; it ends its turns
    with the student's token or not (`ends_alike`), and only then says something about the last token. `teacher_logp` is
    its distribution over the choices, where there are choices. `prompt_id` is of the prompt that it answers.
    """

    prefix: Ids
    target: Ids
    teacher_logp: tuple[float, ...] = ()
    teacher_prefix: Ids = ()
    ends_alike: bool = True
    weight: float = 1.0
    own: Own | None = None
    prompt_id: str = ""

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.target) - 1

    @property
    def targets(self) -> int:
        return len(self.target)

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
class OwnTokens:
    """The tokens of own answers that were judged: where among the targets, whose (answers counted from 0), and what
    `Own` says of each. `importance_O` is q over the probability that the token was drawn with. `rewards` is the sum of
    what the checks said of the answers."""

    at_O: Tensor
    answer_O: Tensor
    logp_O: Tensor
    importance_O: Tensor
    advantage_O: Tensor
    log_ratio_O: Tensor | None
    rewards: float | None


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
    own: OwnTokens | None
    tokens: int


def collate(rows: Sequence[Row], choices: Sequence[Ids], *, whole: Whole, device: torch.device) -> Batch:
    """One document per example, and one more for every choice whose tokens the target's own document does not pass."""
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
        own=_own_tokens(rows, device),
        tokens=len(documents.ids_T),
    )


def _written(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    if not any(row.own for row in rows):
        return None
    logp = (row.own.logp if row.own else (math.nan,) * len(row.target) for row in rows)
    return torch.tensor([nats for some in logp for nats in some], device=device)


def _choices(rows: Sequence[Row], taken: Sequence[tuple[int, int, int]], device: torch.device) -> Choices:
    row_M, token_M, at_M = torch.tensor(taken, dtype=torch.long, device=device).T
    logp_PC = torch.tensor([row.teacher_logp for row in rows], device=device)
    return Choices(row_M, token_M, at_M, logp_PC)


def _own_tokens(rows: Sequence[Row], device: torch.device) -> OwnTokens | None:
    judged: list[Own] = []
    at: list[int] = []
    first = 0
    for row in rows:
        if row.own is not None and row.own.advantage:
            judged.append(row.own)
            at += range(first, first + len(row.target))
        first += len(row.target)
    if not judged:
        return None
    sizes = torch.tensor([len(own.logp) for own in judged], device=device)
    ratio = [value for own in judged for value in own.log_ratio]
    rewards = [own.reward for own in judged if own.reward is not None]
    logp_O = torch.tensor([value for own in judged for value in own.logp], device=device)
    drawn_O = torch.tensor([value for own in judged for value in own.drawn_logp or own.logp], device=device)
    return OwnTokens(
        at_O=torch.tensor(at, device=device),
        answer_O=torch.arange(len(judged), device=device).repeat_interleave(sizes),
        logp_O=logp_O,
        importance_O=(logp_O - drawn_O).exp(),
        advantage_O=torch.tensor([value for own in judged for value in own.advantage], device=device),
        log_ratio_O=torch.tensor(ratio, device=device) if ratio else None,
        rewards=sum(rewards) if rewards else None,
    )


def steps_of_epoch(count: int, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Which of `count` examples make every step of an epoch: a pure function of its arguments, so a resumed run sees
    what an unbroken one would. Nothing is sorted by length, since nothing is padded."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def passes(rows: Sequence[R], pass_tokens: int) -> list[list[R]]:
    """A step's examples in as few passes of at most `pass_tokens` tokens as first-fit decreasing finds; an example that
    is longer has a pass of its own."""
    bins: list[list[R]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -row.tokens):
        place = next((i for i, left in enumerate(room) if row.tokens <= left), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(pass_tokens)
        bins[place].append(row)
        room[place] -= row.tokens
    return bins
