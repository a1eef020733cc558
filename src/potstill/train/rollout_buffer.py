"""On-policy distillation: the student writes, the teacher scores every token of it (Agarwal et al. 2024, GKD).

What is written depends on the weights, the seed and the step alone, where it is written in this process. Answers for
several steps may be written in one call: those of later steps wait in `RolloutBuffer` and in every checkpoint.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from potstill.engines.rollout_server import ServedRollouts
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout, Rollouts, TeacherMix
from potstill.errors import InputError
from potstill.models.load import compute_dtype
from potstill.models.save import save_weights
from potstill.recipe.on_policy import OnPolicy
from potstill.train.batch import Own, Row
from potstill.train.teaching import LiveTeacher, Teach

Kept = Callable[[int], list[Row]]
"""The rows of a step, with the answers that were kept for them."""


class Writes(Protocol):
    """Who writes: `n` answers to the prompt of each row, with the student's weights as they are at each call, in the
    order of rows and indices."""

    def __call__(self, rows: Sequence[Row], *, n: int, sampling: Sampling, max_new_tokens: int) -> list[Rollout]: ...


def own_row(row: Row, one: Rollout, *, prompt: int) -> Row:
    """The row with an answer of the student's own to the `prompt`-th. One that was cut off ends in no end-of-turn
    token."""
    cut_off = one.finish == "length"
    own = Own(prompt=prompt, cut_off=cut_off, logp=one.logp, drawn_logp=one.drawn_logp)
    return replace(row, target=one.ids, ends_alike=row.ends_alike or cut_off, own=own)


@dataclass(frozen=True, slots=True)
class _Due:
    """An answer to the `at`-th example of a step to come."""

    at: int
    answer: Rollout


class RolloutBuffer:
    """Puts the student's own answers (`samples` to each prompt) in place of the kept ones, in the share of a step's
    examples that the recipe says. Those of `steps_per_generation` steps are written in one call."""

    def __init__(self, how: OnPolicy, writes: Writes, *, seed: int) -> None:
        self._how, self._writes, self._seed = how, writes, seed
        self._ahead: dict[int, list[_Due]] = {}

    @staticmethod
    def here(  # noqa: PLR0913
        model: PreTrainedModel,
        how: OnPolicy,
        *,
        end_of_turn: int,
        longest_prefix: int,
        vocabulary: int | None = None,
        teacher: TeacherMix | None = None,
        seed: int,
    ) -> RolloutBuffer:
        """Written by the student in this process. Make it before the model is trained."""
        writes = WritesHere(
            model,
            slots=how.slots,
            capacity_tokens=longest_prefix + how.max_tokens,
            end_of_turn=end_of_turn,
            vocabulary=vocabulary,
            teacher=teacher,
        )
        return RolloutBuffer(how, writes, seed=seed)

    def __call__(self, kept: Kept, step: int, total: int) -> list[Row]:
        """The rows of optimizer step `step` of `total`."""
        rows = kept(step)
        if step < self._how.warm_up * total:
            return rows
        if step not in self._ahead:
            steps = range(step, min(total, step + self._how.steps_per_generation))
            self._ahead = self._written({number: kept(number) for number in steps})
        found: list[list[Row]] = [[row] for row in rows]
        for at, dues in _by_example(self._ahead.pop(step)).items():
            found[at] = [own_row(rows[at], due.answer, prompt=at) for due in dues]
        return [row for answers in found for row in answers]

    def state(self) -> dict[str, Any]:
        """What was written for steps to come, for a checkpoint."""
        return {str(step): [asdict(due) for due in dues] for step, dues in self._ahead.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._ahead = {
            int(step): [_Due(due["at"], _rollout(due["answer"])) for due in dues] for step, dues in state.items()
        }

    def _written(self, rows: Mapping[int, Sequence[Row]]) -> dict[int, list[_Due]]:
        """The own answers of these steps. A coin falls for every example of every step."""
        coins = {step: random.Random(f"{self._seed}/{step}") for step in rows}
        mine = [
            (step, at)
            for step, some in rows.items()
            for at in range(len(some))
            if coins[step].random() < self._how.share
        ]
        found: dict[int, list[_Due]] = {step: [] for step in rows}
        if not mine:
            return found
        written = self._writes(
            [rows[step][at] for step, at in mine],
            n=self._how.samples,
            sampling=Sampling(
                temperature=self._how.temperature, top_p=self._how.top_p, seed=coins[min(rows)].getrandbits(63)
            ),
            max_new_tokens=self._how.max_tokens,
        )
        for one in written:
            step, at = mine[one.prompt]
            found[step].append(_Due(at, one))
        return found


class WritesHere:
    """The student itself, in slots, in this process.

    Where the machine computes in half precision, a copy of the weights in half precision writes: it is brought up to
    date at each call. Ids from `vocabulary` on are never drawn: they stand for nothing, and the teacher may have no
    embedding for them. A `teacher` that mixes in reads its own prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        capacity_tokens: int,
        end_of_turn: int,
        vocabulary: int | None = None,
        teacher: TeacherMix | None = None,
    ) -> None:
        self._model = self._writer = model
        if compute_dtype() != next(model.parameters()).dtype:
            self._writer = copy.deepcopy(model).to(compute_dtype()).requires_grad_(False)  # pyright: ignore[reportArgumentType]
        self._mixed = teacher is not None
        self._rollouts = Rollouts(
            self._writer,
            slots=slots,
            capacity_tokens=capacity_tokens,
            end_ids=[end_of_turn],
            vocabulary=vocabulary,
            teacher=teacher,
        )

    def __call__(self, rows: Sequence[Row], *, n: int, sampling: Sampling, max_new_tokens: int) -> list[Rollout]:
        self._catch_up()
        return self._rollouts.roll_out(
            [row.prefix for row in rows],
            n=n,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            teacher_prompts=[row.teacher_prefix for row in rows] if self._mixed else None,
        )

    @torch.no_grad()
    def _catch_up(self) -> None:
        if self._writer is not self._model:
            for mine, trained in zip(self._writer.parameters(), self._model.parameters(), strict=True):
                mine.copy_(trained)


class WritesThere:
    """A vLLM server that takes the student's weights out of `folder` before every call."""

    def __init__(self, model: PreTrainedModel, server: ServedRollouts, folder: Path) -> None:
        self._model, self._server, self._folder = model, server, folder

    def __call__(self, rows: Sequence[Row], *, n: int, sampling: Sampling, max_new_tokens: int) -> list[Rollout]:
        save_weights(self._model, self._folder, dtype=compute_dtype())
        self._server.take_weights(self._folder)
        prompts = [row.prefix for row in rows]
        return self._server.roll_out(prompts, n=n, sampling=sampling, max_new_tokens=max_new_tokens)


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


def _by_example(dues: Sequence[_Due]) -> dict[int, list[_Due]]:
    found: dict[int, list[_Due]] = {}
    for due in dues:
        found.setdefault(due.at, []).append(due)
    return found


def _rollout(kept: Mapping[str, Any]) -> Rollout:
    lists = {name: tuple(kept[name]) for name in ("ids", "logp", "drawn_logp")}
    return Rollout(prompt=kept["prompt"], index=kept["index"], finish=kept["finish"], **lists)
