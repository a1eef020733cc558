"""Rollouts of `transformers` models in this process: answers of different length side by side in slots.

A prompt is computed once for all its answers, and what all prompts begin with once for all of them. A slot whose
answer is finished takes the next one at once; when nothing waits, the last slot moves into the gap, so that the tail of
a skewed batch pays for its living rows alone. Where a teacher mixes in, two models go in lockstep: a slot holds the
same answer in both, behind the prompt that each of them reads.

Dimension key: P prompts computed together, B active rows, R rows drawn, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.engines.sampling import Drawn, Sampling, draw, draw_mixed, uniforms
from potstill.engines.slot_model import decoder_of
from potstill.errors import InputError
from potstill.text.tokens import Ids

_PREFILL = 1024
"""Tokens of prompts, padding included, that are computed together, ahead of the slots that will take them."""

Asked = tuple[Ids, ...]
"""A prompt as each of the models reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer, the token that ended it included. `logp` is ln q at temperature 1 over all ids that may be drawn,
    `drawn_logp` ln of the probability each token was drawn with (a teacher, temperature and truncation in; 0 where
    greedy)."""

    prompt: int
    index: int
    ids: Ids
    logp: tuple[float, ...]
    drawn_logp: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherMix:
    """Tokens come from a p + (1 - a) q: `share` a, `model` p, q the student (Gu et al. 2024, MiniLLM, section 2.2:
    teacher-mixed sampling). `capacity_tokens` as of `Rollouts`, with the prompts that the teacher reads."""

    model: PreTrainedModel
    share: float
    capacity_tokens: int


@dataclass(slots=True)
class _Answer:
    """An answer being written. `number` is what its draws depend on, beside the seed, its index and the position.
    `starts` are the lengths of its prompt, `prefixes` what a slot is given of it, one a model."""

    prompt: int
    number: int
    index: int
    limit: int
    starts: tuple[int, ...]
    prefixes: tuple[Any, ...] = ()
    ids: list[int] = field(default_factory=list[int])
    logp: list[float] = field(default_factory=list[float])
    drawn_logp: list[float] = field(default_factory=list[float])
    stopped: bool = False

    @property
    def done(self) -> bool:
        return self.stopped or len(self.ids) == self.limit

    def length(self, model: int) -> int:
        """Tokens whose keys and values that model keeps: all but the last one written."""
        return self.starts[model] + len(self.ids) - 1

    def rollout(self) -> Rollout:
        return Rollout(
            prompt=self.prompt,
            index=self.index,
            ids=tuple(self.ids),
            logp=tuple(self.logp),
            drawn_logp=tuple(self.drawn_logp),
            finish="stop" if self.stopped else "length",
        )


class Rollouts:
    """The slots of one model: `slots` answers at a time, each of at most `capacity_tokens` with its prompt. Keys and
    values take slots x capacity_tokens, made once and kept from call to call, beside the prompts computed ahead. A
    `teacher` that mixes in has as many slots.

    Reads the models' weights as they are at each call, of which fp32 ones on a CPU are copied until it ends. `end_ids`
    end an answer. The first `vocabulary` ids may be drawn (None: all that every head has)."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        capacity_tokens: int,
        end_ids: Collection[int],
        vocabulary: int | None = None,
        teacher: TeacherMix | None = None,
    ) -> None:
        if slots < 1:
            raise InputError(f"there are {slots} slots", way_out="give at least one")
        self._models = [decoder_of(model, slots=slots, capacity=capacity_tokens)]
        self._mix = 0.0
        if teacher is not None:
            if not 0 < teacher.share < 1:
                raise InputError(f"the teacher's share is {teacher.share}", way_out="give a number between 0 and 1")
            self._mix = teacher.share
            self._models.append(decoder_of(teacher.model, slots=slots, capacity=teacher.capacity_tokens))
        self._slots, self._ends, self._vocabulary = slots, frozenset(end_ids), vocabulary

    @property
    def prefilled(self) -> int:
        """Prompt tokens computed so far, by all models."""
        return sum(model.prefilled for model in self._models)

    @torch.inference_mode()
    def roll_out(
        self,
        prompts: Sequence[Ids],
        *,
        n: int = 1,
        sampling: Sampling,
        max_new_tokens: int | Sequence[int],
        numbers: Sequence[int] | None = None,
        teacher_prompts: Sequence[Ids] | None = None,
    ) -> list[Rollout]:
        """n answers per prompt, in the order of prompts and indices. `max_new_tokens` may differ between prompts.
        `numbers` name the prompts for their draws where these are part of a longer list; else positions do.
        `teacher_prompts` are the same prompts as a teacher that mixes in reads them."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        read = self._read(prompts, teacher_prompts, limits, n)
        asked = _by_prompt(read, range(len(prompts)) if numbers is None else numbers, limits, n)
        waiting = deque(sorted(asked, key=lambda one: -max(answer.limit for answer in asked[one])))
        ready: deque[_Answer] = deque()
        active: list[_Answer] = []
        finished: list[Rollout] = []

        def compute_ahead() -> None:
            group = self._group(waiting)
            for answer in self._prefill({one: asked[one] for one in group}, sampling):
                if answer.done:
                    finished.append(answer.rollout())
                else:
                    ready.append(answer)

        with self._writing(list(asked), max(limits, default=0)):
            while waiting or ready or active:
                while len(active) < self._slots and (waiting or ready):
                    if not ready:
                        compute_ahead()
                        continue
                    self._place(ready.popleft(), active)
                if active:
                    self._step(active, sampling)
                    finished += self._release(active)
        return sorted(finished, key=lambda one: (one.prompt, one.index))

    @contextmanager
    def _writing(self, asked: Sequence[Asked], longest: int) -> Generator[None]:
        with ExitStack() as stack:
            for at, model in enumerate(self._models):
                stack.enter_context(model.writing([one[at] for one in asked], longest))
            yield

    def _read(
        self, prompts: Sequence[Ids], teacher_prompts: Sequence[Ids] | None, limits: Sequence[int], n: int
    ) -> list[Asked]:
        """The prompts as every model reads them, after a look at whether slots can hold them."""
        if n < 1:
            raise InputError(f"{n} answers per prompt were asked for", way_out="ask for at least one")
        self._models[0].check(prompts, limits)
        if len(self._models) == 1:
            if teacher_prompts is not None:
                raise InputError("there are prompts for a teacher, but none mixes in", way_out="leave them out")
            return [(tuple(ids),) for ids in prompts]
        if teacher_prompts is None or len(teacher_prompts) != len(prompts):
            raise InputError("the teacher that mixes in reads every prompt too", way_out="give teacher_prompts")
        self._models[1].check(teacher_prompts, limits, whose="the teacher's ")
        return [(tuple(ours), tuple(theirs)) for ours, theirs in zip(prompts, teacher_prompts, strict=True)]

    def _group(self, waiting: deque[Asked]) -> list[Asked]:
        """The next prompts to compute together: as many as there are slots, within the budget, at least one."""
        group: list[Asked] = []
        longest = 0
        while waiting and len(group) < self._slots:
            own = (len(ids) - model.cut for ids, model in zip(waiting[0], self._models, strict=True))
            longest = max(longest, *own)
            if group and longest * (len(group) + 1) > _PREFILL:
                break
            group.append(waiting.popleft())
        return group

    def _prefill(self, asked: dict[Asked, list[_Answer]], sampling: Sampling) -> Iterator[_Answer]:
        """The prompts' keys and values in every model, and the first token of each of their answers."""
        found = [model.prefill([one[at] for one in asked]) for at, model in enumerate(self._models)]
        for row, answers in enumerate(asked.values()):
            prefixes = tuple(prefix_P[row] for _, prefix_P in found)
            for answer in answers:
                answer.prefixes = prefixes
            self._draw(answers, [logits_PV[row].expand(len(answers), -1) for logits_PV, _ in found], sampling)
            yield from answers

    def _place(self, answer: _Answer, active: list[_Answer]) -> None:
        """Into the first free slot, which follows the active ones."""
        for model, prefix in zip(self._models, answer.prefixes, strict=True):
            model.place(len(active), prefix)
        answer.prefixes = ()
        active.append(answer)

    def _step(self, active: list[_Answer], sampling: Sampling) -> None:
        """One more token for every active row."""
        last_B = [answer.ids[-1] for answer in active]
        logits = [model.step(last_B, [answer.length(at) for answer in active]) for at, model in enumerate(self._models)]
        self._draw(active, logits, sampling)

    def _release(self, active: list[_Answer]) -> Iterator[Rollout]:
        """Takes finished answers out; the last row moves into each gap."""
        for row in reversed(range(len(active))):
            if not active[row].done:
                continue
            yield active[row].rollout()
            last = active.pop()
            if row < len(active):
                for at, model in enumerate(self._models):
                    model.move(len(active), row, last.length(at))
                active[row] = last

    def _draw(self, answers: Sequence[_Answer], logits: Sequence[Tensor], sampling: Sampling) -> None:
        """The next token of every answer, out of what each model says of it (R, V)."""
        uniform_R = uniforms(
            sampling.seed,
            prompt_R=[answer.number for answer in answers],
            sample_R=[answer.index for answer in answers],
            position_R=[len(answer.ids) for answer in answers],
        )
        drawn = self._drawn([logits_RV[:, : self._vocabulary] for logits_RV in logits], sampling, uniform_R)
        found = zip(drawn.token_R.tolist(), drawn.logp_R.tolist(), drawn.drawn_logp_R.tolist(), strict=True)
        for answer, (token, logp, drawn_logp) in zip(answers, found, strict=True):
            answer.ids.append(token)
            answer.logp.append(logp)
            answer.drawn_logp.append(drawn_logp)
            answer.stopped = token in self._ends

    def _drawn(self, logits: Sequence[Tensor], sampling: Sampling, uniform_R: Tensor) -> Drawn:
        if len(logits) == 1:
            return draw(logits[0], sampling, uniform_R)
        student_RV, teacher_RV = logits
        both = min(student_RV.shape[1], teacher_RV.shape[1])
        return draw_mixed(
            student_RV[:, :both], teacher_RV[:, :both].to(student_RV.device), self._mix, sampling, uniform_R
        )


def _by_prompt(
    prompts: Sequence[Asked], numbers: Sequence[int], limits: Sequence[int], n: int
) -> dict[Asked, list[_Answer]]:
    """The answers to write, by what they are asked: a prompt may stand there several times."""
    asked: dict[Asked, list[_Answer]] = {}
    for i, (one, number, limit) in enumerate(zip(prompts, numbers, limits, strict=True)):
        answers = [_Answer(i, number, index, limit, tuple(map(len, one))) for index in range(n)]
        asked.setdefault(one, []).extend(answers)
    return asked
