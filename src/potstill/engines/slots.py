"""Rollouts of a `transformers` model in this process: answers of different length side by side in slots.

A prompt is computed once for all its answers, and what all prompts begin with once for all of them. A slot whose
answer is finished takes the next one at once; when nothing waits, the last slot moves into the gap, so that the tail of
a skewed batch pays for its living rows alone.

Dimension key: P prompts computed together, B active rows, R rows drawn, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from potstill.engines.local import KeptPrefix, shared_prefix
from potstill.engines.row_logits import row_logits
from potstill.engines.sampling import Drawn, Sampling, draw, uniforms
from potstill.engines.slot_cache import KeysValues, Masks, SlotCache
from potstill.errors import InputError
from potstill.models.packed import packed
from potstill.text.tokens import Ids

_PREFILL = 1024
"""Tokens of prompts, padding included, that are computed together, ahead of the slots that will take them."""
_WORTH_KEEPING = 16
"""Tokens of a shared beginning, where it is half of the prompts."""
_WORTH_PACKING = 16
"""Tokens of the longest answer: bringing the weights into order costs about what four steps gain."""
_SLACK = 4
"""Tokens more than a stop string has bytes: decoders may drop a space before the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer, the token that ended it included. `logp` is ln q at temperature 1 over all ids that may be drawn,
    `drawn_logp` ln of the probability each token was drawn with (temperature and truncation in; 0 where greedy)."""

    prompt: int
    index: int
    ids: Ids
    logp: tuple[float, ...]
    drawn_logp: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(slots=True)
class _Answer:
    """An answer being written. `number` is what its draws depend on, beside the seed, its index and the position."""

    prompt: int
    number: int
    index: int
    limit: int
    start: int
    prefix: KeysValues = field(default_factory=KeysValues)
    ids: list[int] = field(default_factory=list[int])
    logp: list[float] = field(default_factory=list[float])
    drawn_logp: list[float] = field(default_factory=list[float])
    stopped: bool = False

    @property
    def done(self) -> bool:
        return self.stopped or len(self.ids) == self.limit

    @property
    def length(self) -> int:
        """Tokens whose keys and values are kept: all but the last one written."""
        return self.start + len(self.ids) - 1

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
    values take slots x capacity_tokens, made once and kept from call to call, beside the prompts computed ahead.

    Reads the model's weights as they are at each call, of which fp32 ones on a CPU are copied until it ends. `end_ids`
    end an answer; a string of `stops` does so too, in whatever tokens it comes. The first `vocabulary` ids may be drawn
    (None: all that the head has). `prefilled` counts the prompt tokens computed so far."""

    def __init__(  # noqa: PLR0913
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        capacity_tokens: int,
        end_ids: Collection[int],
        vocabulary: int | None = None,
        stops: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if slots < 1:
            raise InputError(f"there are {slots} slots", way_out="give at least one")
        if stops and tokenizer is None:
            raise InputError(f"the stop string {stops[0]!r} cannot be seen without a tokenizer", way_out="give one")
        if "" in stops:
            raise InputError("a stop string is empty", way_out="leave it out")
        self._model, self._masks = model, Masks.of(model)
        self._slots, self._capacity, self._ends = slots, capacity_tokens, frozenset(end_ids)
        self._vocabulary = vocabulary
        self._stops, self._tokenizer = tuple(stops), tokenizer
        self._tail = max((len(stop.encode()) for stop in stops), default=0) + _SLACK
        self._cache: SlotCache | None = None
        self.prefilled = 0

    @torch.inference_mode()
    def roll_out(
        self,
        prompts: Sequence[Ids],
        *,
        n: int = 1,
        sampling: Sampling,
        max_new_tokens: int | Sequence[int],
        numbers: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """n answers a prompt, in the order of prompts and indices. `max_new_tokens` may differ between prompts.
        `numbers` name the prompts for their draws where these are part of a longer list; else positions do."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        self._check(prompts, limits, n)
        asked = _by_prompt(prompts, range(len(prompts)) if numbers is None else numbers, limits, n)
        waiting = deque(sorted(asked, key=lambda ids: -max(answer.limit for answer in asked[ids])))
        kept = self._beginning(list(asked))
        ready: deque[_Answer] = deque()
        active: list[_Answer] = []
        finished: list[Rollout] = []

        def compute_ahead() -> None:
            group = self._group(waiting, 0 if kept is None else len(kept.prefix))
            for answer in self._prefill({ids: asked[ids] for ids in group}, kept, sampling):
                if answer.done:
                    finished.append(answer.rollout())
                else:
                    ready.append(answer)

        with _evaluating(self._model), _prepared(self._model, max(limits, default=0)):
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

    def _check(self, prompts: Sequence[Ids], limits: Sequence[int], n: int) -> None:
        if n < 1:
            raise InputError(f"{n} answers a prompt were asked for", way_out="ask for at least one")
        for number, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not ids or limit < 1:
                raise InputError(
                    f"prompt {number} has {len(ids)} tokens and may be answered with {limit}",
                    way_out="give it at least one of each",
                )
            if len(ids) + limit > self._capacity:
                raise InputError(
                    f"prompt {number} has {len(ids)} tokens and its answer up to {limit}, but a slot holds "
                    f"{self._capacity}",
                    way_out="raise capacity_tokens or ask for shorter answers",
                )

    def _beginning(self, prompts: Sequence[Ids]) -> KeptPrefix | None:
        """What the prompts begin with, computed with the weights as they are now, where that saves something."""
        shared = shared_prefix(prompts)
        if len(prompts) < 2 or len(shared) < max(_WORTH_KEEPING, sum(map(len, prompts)) / len(prompts) / 2):
            return None
        self.prefilled += len(shared)
        return KeptPrefix(self._model, shared)

    def _group(self, waiting: deque[Ids], cut: int) -> list[Ids]:
        """The next prompts to compute together: as many as there are slots, within the budget, at least one."""
        group: list[Ids] = []
        longest = 0
        while waiting and len(group) < self._slots:
            longest = max(longest, len(waiting[0]) - cut)
            if group and longest * (len(group) + 1) > _PREFILL:
                break
            group.append(waiting.popleft())
        return group

    def _prefill(
        self, asked: dict[Ids, list[_Answer]], kept: KeptPrefix | None, sampling: Sampling
    ) -> Iterator[_Answer]:
        """The prompts' keys and values, padded on the right, and the first token of each of their answers."""
        cut = 0 if kept is None else len(kept.prefix)
        own_P = [ids[cut:] for ids in asked]
        longest = max(map(len, own_P))
        device = self._model.device
        rows = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in own_P], device=device)
        at_PL = torch.arange(cut, cut + longest, device=device).expand(len(own_P), longest)
        cache = DynamicCache() if kept is None else kept.cache(len(own_P))
        hidden_PLD = self._forward(rows, at_PL, cut + longest, cache)
        self.prefilled += sum(map(len, own_P))
        last_P = torch.tensor([len(ids) - 1 for ids in own_P], device=device)
        logits_PV = row_logits(self._model, hidden_PLD[torch.arange(len(own_P), device=device), last_P])
        computed: KeysValues = [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        for row, (ids, answers) in enumerate(asked.items()):
            size = len(ids)
            prefix = [(keys[row, :, :size].clone(), values[row, :, :size].clone()) for keys, values in computed]
            for answer in answers:
                answer.prefix = prefix
            self._draw(answers, logits_PV[row].expand(len(answers), -1), sampling)
            yield from answers

    def _place(self, answer: _Answer, active: list[_Answer]) -> None:
        """Into the first free slot, which follows the active ones."""
        if self._cache is None:
            like = [(keys.unsqueeze(0), values.unsqueeze(0)) for keys, values in answer.prefix]
            self._cache = SlotCache(like, slots=self._slots, capacity=self._capacity)
        self._cache.write(len(active), answer.prefix)
        answer.prefix = []
        active.append(answer)

    def _step(self, active: list[_Answer], sampling: Sampling) -> None:
        """One more token for every active row."""
        assert self._cache is not None
        device = self._model.device
        at_B = torch.tensor([answer.length for answer in active], device=device)
        longest = max(answer.length for answer in active) + 1
        self._cache.expect(at_B, longest)
        last_B1 = torch.tensor([[answer.ids[-1]] for answer in active], device=device)
        hidden_B1D = self._forward(last_B1, at_B.unsqueeze(-1), longest, self._cache)
        self._draw(active, row_logits(self._model, hidden_B1D[:, 0]), sampling)

    def _release(self, active: list[_Answer]) -> Iterator[Rollout]:
        """Takes finished answers out; the last row moves into each gap."""
        assert self._cache is not None
        for row in reversed(range(len(active))):
            if not active[row].done:
                continue
            yield active[row].rollout()
            last = active.pop()
            if row < len(active):
                self._cache.move(len(active), row, last.length)
                active[row] = last

    def _draw(self, answers: Sequence[_Answer], logits_RV: Tensor, sampling: Sampling) -> None:
        uniform_R = uniforms(
            sampling.seed,
            prompt_R=[answer.number for answer in answers],
            sample_R=[answer.index for answer in answers],
            position_R=[len(answer.ids) for answer in answers],
        )
        drawn: Drawn = draw(logits_RV[:, : self._vocabulary], sampling, uniform_R)
        found = zip(drawn.token_R.tolist(), drawn.logp_R.tolist(), drawn.drawn_logp_R.tolist(), strict=True)
        for answer, (token, logp, drawn_logp) in zip(answers, found, strict=True):
            answer.ids.append(token)
            answer.logp.append(logp)
            answer.drawn_logp.append(drawn_logp)
            answer.stopped = token in self._ends or self._says_stop(answer.ids)

    def _says_stop(self, ids: Sequence[int]) -> bool:
        if self._tokenizer is None or not self._stops:
            return False
        text = self._tokenizer.decode(list(ids[-self._tail :]), skip_special_tokens=False)
        return any(stop in text for stop in self._stops)

    def _forward(self, ids_BL: Tensor, at_BL: Tensor, keys: int, cache: DynamicCache | SlotCache) -> Tensor:
        """Last hidden states (B, L, D)."""
        base: Any = self._model.base_model
        mask = self._masks.over(at_BL, keys, self._model.dtype)
        return base(
            input_ids=ids_BL, attention_mask=mask, position_ids=at_BL, past_key_values=cache, use_cache=True
        ).last_hidden_state


def _by_prompt(
    prompts: Sequence[Ids], numbers: Sequence[int], limits: Sequence[int], n: int
) -> dict[Ids, list[_Answer]]:
    """The answers to write, by what they are asked: a prompt may stand there several times."""
    asked: dict[Ids, list[_Answer]] = {}
    for i, (ids, number, limit) in enumerate(zip(prompts, numbers, limits, strict=True)):
        answers = [_Answer(i, number, index, limit, len(ids)) for index in range(n)]
        asked.setdefault(tuple(ids), []).extend(answers)
    return asked


def _prepared(model: PreTrainedModel, tokens: int) -> AbstractContextManager[None]:
    """Weights in the order that steps of a few rows like, where answers are long enough to pay for that."""
    return packed(model) if tokens >= _WORTH_PACKING else nullcontext()


@contextmanager
def _evaluating(model: PreTrainedModel) -> Generator[None]:
    """Without dropout, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
