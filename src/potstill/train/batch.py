"""From examples to tensors: which tokens are read, which rows bear loss, which batch comes when.

Dimension key: B sequences, L tokens, R rows that bear loss, N prompts, C choices, M tokens of all choices.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.text.tokens import Ids


@dataclass(frozen=True, slots=True)
class Row:
    """One example in tokens: the student's prompt, the answer to learn with its end-of-turn token, and the teacher's
    distribution over the choices, where there are choices."""

    prefix: Ids
    target: Ids
    teacher_logp: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.target) - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded on the right. `b_R`, `l_R` say which positions bear loss; the targets' rows come first, in `target_R`."""

    ids_BL: Tensor
    b_R: Tensor
    l_R: Tensor
    target_R: Tensor
    choice_row_M: Tensor
    choice_token_M: Tensor
    choice_at_M: Tensor
    teacher_logp_NC: Tensor
    tokens: int


def collate(rows: Sequence[Row], choices: Sequence[Ids], *, device: torch.device) -> Batch:
    """One sequence a prompt, and one more for every choice whose tokens the target's own sequence does not pass."""
    sequences = [(*row.prefix, *row.target[:-1]) for row in rows]
    places: dict[tuple[int, int], int] = {}  # (sequence, position) -> row that bears loss
    targets: list[int] = []
    for n, row in enumerate(rows):
        for step, token in enumerate(row.target):
            places[n, len(row.prefix) - 1 + step] = len(places)
            targets.append(token)
    taken: list[tuple[int, int, int]] = []  # row, token, n * C + c
    for n, row in enumerate(rows):
        for c, choice in enumerate(choices):
            at = n if row.target[: len(choice) - 1] == choice[:-1] else len(sequences)
            if at == len(sequences):
                sequences.append((*row.prefix, *choice[:-1]))
            for step, token in enumerate(choice):
                place = places.setdefault((at, len(row.prefix) - 1 + step), len(places))
                taken.append((place, token, n * len(choices) + c))
    longest = max(map(len, sequences))
    padded = [[*ids, *[0] * (longest - len(ids))] for ids in sequences]
    b_R, l_R = torch.tensor(list(places), device=device).T
    choice_row_M, choice_token_M, choice_at_M = torch.tensor(taken, dtype=torch.long, device=device).reshape(-1, 3).T
    return Batch(
        ids_BL=torch.tensor(padded, device=device),
        b_R=b_R,
        l_R=l_R,
        target_R=torch.tensor(targets, device=device),
        choice_row_M=choice_row_M,
        choice_token_M=choice_token_M,
        choice_at_M=choice_at_M,
        teacher_logp_NC=torch.tensor([row.teacher_logp for row in rows], device=device),
        tokens=sum(map(len, sequences)),
    )


def batch_order(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch: a pure function of its arguments, so a resumed run sees what an unbroken one would.

    Rows are shuffled, then sorted by length within windows of eight batches (little padding), then the batches are
    shuffled.
    """
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    window = batch_size * 8
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: lengths[i])
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    draw.shuffle(batches)
    return batches
