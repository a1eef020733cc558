"""On-policy distillation: the student writes, the teacher scores every token of it (Agarwal et al. 2024, GKD).

What is written in a step depends on the weights, the seed and the step alone, so a resumed run needs nothing kept.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout, Rollouts
from potstill.models.load import compute_dtype
from potstill.student_recipe import OnPolicy
from potstill.train.batch import Own, Row


def own_row(row: Row, one: Rollout, *, prompt: int) -> Row:
    """The row with an answer of the student's own to the `prompt`-th. One that was cut off ends in no end-of-turn
    token."""
    cut_off = one.finish == "length"
    own = Own(prompt=prompt, cut_off=cut_off, logp=one.logp)
    return replace(row, target=one.ids, ends_alike=row.ends_alike or cut_off, own=own)


class OwnAnswers:
    """Puts the student's own answers (`samples` to each prompt) in place of the kept ones, in the share of a step's
    examples that the recipe says.

    Writes with a half-precision copy of the weights where the machine computes in half precision: the copy is brought
    up to date before it writes. Make it before the model is trained. Ids from `vocabulary` on are never drawn: they
    stand for nothing, and the teacher may have no embedding for them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        how: OnPolicy,
        *,
        end_of_turn: int,
        longest_prefix: int,
        vocabulary: int | None = None,
        seed: int,
    ) -> None:
        self._model, self._how, self._seed = model, how, seed
        self._writer = model
        if compute_dtype() != next(model.parameters()).dtype:
            self._writer = copy.deepcopy(model).to(compute_dtype()).requires_grad_(False)  # pyright: ignore[reportArgumentType]
        self._rollouts = Rollouts(
            self._writer,
            slots=how.slots,
            capacity_tokens=longest_prefix + how.max_tokens,
            end_ids=[end_of_turn],
            vocabulary=vocabulary,
        )

    def __call__(self, rows: Sequence[Row], step: int, total: int) -> list[Row]:
        """The rows of optimizer step `step` of `total`."""
        coin = random.Random(f"{self._seed}/{step}")
        mine = [i for i in range(len(rows)) if coin.random() < self._how.share]
        if not mine or step < self._how.warm_up * total:
            return list(rows)
        self._catch_up()
        written = self._rollouts.roll_out(
            [rows[i].prefix for i in mine],
            n=self._how.samples,
            sampling=Sampling(temperature=self._how.temperature, top_p=self._how.top_p, seed=coin.getrandbits(63)),
            max_new_tokens=self._how.max_tokens,
        )
        found: list[list[Row]] = [[row] for row in rows]
        for i in mine:
            found[i] = []
        for one in written:
            i = mine[one.prompt]
            found[i].append(own_row(rows[i], one, prompt=i))
        return [row for answers in found for row in answers]

    @torch.no_grad()
    def _catch_up(self) -> None:
        if self._writer is not self._model:
            for mine, trained in zip(self._writer.parameters(), self._model.parameters(), strict=True):
                mine.copy_(trained)
