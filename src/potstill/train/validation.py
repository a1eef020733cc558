"""What validations of a student that writes score beside nats a token, on the conversations held back from training.

The exam's prompts have no part in it: what chooses an epoch is split from what training was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from potstill.engines.reply import split_inline
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype
from potstill.recipe import LogitKd
from potstill.records import Message, Sample, Score
from potstill.text.tokens import Codec, Ids
from potstill.train.batch import Row, Whole, collate
from potstill.train.methods import terms
from potstill.train.rows import Weighted
from potstill.train.teaching import Teach

Asked = Sequence[Message]
Mark = Callable[[Sequence[tuple[Asked, Sample]]], Score]
"""The share of answers that are right, each beside what was asked."""

_EVERY = 20  # one question in so many shows how learning goes, and is not learnt
_SLOTS = 32
_AT_ONCE = 8


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows to learn, rows held back). All answers to a question are on one side. Of so few that none can be spared the
    first is on both."""
    number = {prefix: i for i, prefix in enumerate(dict.fromkeys(row.prefix for row in rows))}
    if len(number) <= _EVERY:
        return list(rows), [row for row in rows if number[row.prefix] == 0]
    held = [row for row in rows if number[row.prefix] % _EVERY == 0]
    return [row for row in rows if number[row.prefix] % _EVERY], held


@torch.no_grad()
def distance(model: PreTrainedModel, rows: Sequence[Row], method: LogitKd, teach: Teach) -> Score:
    """The method's divergence from its teacher a token, at its temperature and without T², as training logs it."""
    even = [replace(row, weight=1.0) for row in rows]
    total, whole = 0.0, Whole.of(even)
    for begin in range(0, len(even), _AT_ONCE):
        some = even[begin : begin + _AT_ONCE]
        batch = collate(some, (), whole=whole, device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
            hidden_RD = hidden_rows(model, batch.documents, batch.at_R).to(compute_dtype())
        total += terms(method, model, hidden_RD, batch, signal=teach(some))[1]["kd"]
    return Score(value=total, n=sum(row.scored for row in rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiz:
    """The questions held back, answered greedily by the student as it is, and marked."""

    questions: Mapping[Ids, Asked]
    codec: Codec
    max_tokens: int
    mark: Mark

    @staticmethod
    def of(held: Sequence[Row], conversations: Sequence[Weighted], codec: Codec, mark: Mark, *, longest: int) -> Quiz:
        wanted = {row.prefix for row in held}
        asked = ((codec.prefix(asked), asked) for (*asked, _), _ in conversations)
        questions = {prefix: asked for prefix, asked in asked if prefix in wanted}
        return Quiz(questions=questions, codec=codec, max_tokens=longest, mark=mark)

    def __call__(self, model: PreTrainedModel) -> Score:
        prefixes, end = list(self.questions), self.codec.end_of_turn("x")
        capacity = max(map(len, prefixes)) + self.max_tokens
        rollouts = Rollouts(model, slots=min(_SLOTS, len(prefixes)), capacity_tokens=capacity, end_ids=[end])
        greedy = Sampling(temperature=0.0)
        written = rollouts.roll_out(prefixes, sampling=greedy, max_new_tokens=self.max_tokens)
        samples = [self._sample(one.ids, cut_off=one.finish == "length") for one in written]
        return self.mark(list(zip(self.questions.values(), samples, strict=True)))

    def _sample(self, ids: Ids, *, cut_off: bool) -> Sample:
        said = self.codec.tokenizer.decode(list(ids), skip_special_tokens=True)
        reasoning, text, closed = split_inline(said)
        finish = "length" if cut_off else "stop"
        return Sample(prompt_id="", text=text, reasoning=reasoning, finish=finish, cut_off=cut_off or not closed)
