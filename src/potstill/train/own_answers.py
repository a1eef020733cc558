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
from potstill.engines.slots import Rollout, Rollouts, TeacherMix
from potstill.errors import InputError
from potstill.models.load import compute_dtype
from potstill.student_recipe import OnPolicy
from potstill.train.batch import Own, Row
from potstill.train.teaching import LiveTeacher, Teach


def own_row(row: Row, one: Rollout, *, prompt: int) -> Row:
    """The row with an answer of the student's own to the `prompt`-th. One that was cut off ends in no end-of-turn
    token."""
    cut_off = one.finish == "length"
    own = Own(prompt=prompt, cut_off=cut_off, logp=one.logp, drawn_logp=one.drawn_logp)
    return replace(row, target=one.ids, ends_alike=row.ends_alike or cut_off, own=own)


def teacher_mix(how: OnPolicy, teach: Teach, rows: Sequence[Row]) -> TeacherMix | None:
    """The teacher as it mixes in, where the recipe says so; `rows` are all there will be. Raises InputError where it
    cannot: its distribution is read where the student writes, and an answer must end for both."""
    if not how.teacher_mix:
        return None
    if not isinstance(teach, LiveTeacher):
        raise InputError(
            "'train.on_policy.teacher_mix' draws tokens from the teacher too, but it is not in this process",
            way_out="name a model in 'train.scored_by' without an 'engine', or set it to 0",
        )
    if not all(row.ends_alike for row in rows):
        raise InputError(
            "'train.on_policy.teacher_mix' lets the teacher end answers, but it ends its turns with another token than "
            "the student",
            way_out="give both one template ('train.scored_by.template', 'student.template'), or set it to 0",
        )
    longest = max(len(row.teacher_prefix) for row in rows)
    return TeacherMix(model=teach.model, share=how.teacher_mix, capacity_tokens=longest + how.max_tokens)


class OwnAnswers:
    """Puts the student's own answers (`samples` to each prompt) in place of the kept ones, in the share of a step's
    examples that the recipe says.

    Writes with a half-precision copy of the weights where the machine computes in half precision: the copy is brought
    up to date before it writes. Make it before the model is trained. Ids from `vocabulary` on are never drawn: they
    stand for nothing, and the teacher may have no embedding for them. A `teacher` that mixes in reads its own prompts.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: PreTrainedModel,
        how: OnPolicy,
        *,
        end_of_turn: int,
        longest_prefix: int,
        vocabulary: int | None = None,
        teacher: TeacherMix | None = None,
        seed: int,
    ) -> None:
        self._model, self._how, self._seed, self._mixed = model, how, seed, teacher is not None
        self._writer = model
        if compute_dtype() != next(model.parameters()).dtype:
            self._writer = copy.deepcopy(model).to(compute_dtype()).requires_grad_(False)  # pyright: ignore[reportArgumentType]
        self._rollouts = Rollouts(
            self._writer,
            slots=how.slots,
            capacity_tokens=longest_prefix + how.max_tokens,
            end_ids=[end_of_turn],
            vocabulary=vocabulary,
            teacher=teacher,
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
            teacher_prompts=[rows[i].teacher_prefix for i in mine] if self._mixed else None,
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
