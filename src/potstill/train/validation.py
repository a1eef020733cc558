"""What validations of a student that writes score beside nats per token, on the conversations held back from training.

The test prompts have no part in it: what chooses an epoch is split from what training was given.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype
from potstill.recipe import Recipe
from potstill.recipe.methods import LogitKd
from potstill.records import Example, Score
from potstill.train.advantages import Verdicts
from potstill.train.batch import Row, Whole, collate
from potstill.train.methods import terms
from potstill.train.rollout_buffer import own_row
from potstill.train.teaching import Teach

_EVERY = 20  # one question in so many shows how learning goes, and is not learnt
_SLOTS = 32
_AT_ONCE = 8


def held_out(recipe: Recipe, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(examples of choices to learn, examples held back): none where a split has validation prompts of its own."""
    if recipe.has_split:
        return list(examples), []
    if len(examples) <= _EVERY:
        return list(examples), list(examples[:1])
    held = [example for at, example in enumerate(examples) if at % _EVERY == 0]
    return [example for at, example in enumerate(examples) if at % _EVERY], held


def apart(rows: Sequence[Row], validation: Set[str] = frozenset()) -> tuple[list[Row], list[Row]]:
    """(rows to learn, rows held back): those of the `validation` prompts where there are any, else of one prompt in
    twenty. All answers to a prompt are on one side. Of so few that none can be spared the first is on both."""
    if held := [row for row in rows if row.prompt_id in validation]:
        return [row for row in rows if row.prompt_id not in validation], held
    number = {prefix: i for i, prefix in enumerate(dict.fromkeys(row.prefix for row in rows))}
    if len(number) <= _EVERY:
        return list(rows), [row for row in rows if number[row.prefix] == 0]
    held = [row for row in rows if number[row.prefix] % _EVERY == 0]
    return [row for row in rows if number[row.prefix] % _EVERY], held


@torch.no_grad()
def distance(model: PreTrainedModel, rows: Sequence[Row], method: LogitKd, teach: Teach) -> Score:
    """The method's divergence from its teacher per token, at its temperature and without T², as training logs it."""
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
class HeldOutPrompts:
    """The questions held back, answered greedily by the student as it is, and judged by the recipe's checks. What a
    check cannot say is not right."""

    questions: tuple[Row, ...]
    end_of_turn: int
    max_tokens: int
    verdicts: Verdicts

    @staticmethod
    def of(held: Sequence[Row], verdicts: Verdicts, *, end_of_turn: int, max_tokens: int) -> HeldOutPrompts:
        questions = tuple({(row.prefix, row.prompt_id): row for row in held}.values())
        return HeldOutPrompts(questions=questions, end_of_turn=end_of_turn, max_tokens=max_tokens, verdicts=verdicts)

    def __call__(self, model: PreTrainedModel) -> Score:
        prefixes = [row.prefix for row in self.questions]
        capacity = max(map(len, prefixes)) + self.max_tokens
        slots = min(_SLOTS, len(prefixes))
        rollouts = Rollouts(model, slots=slots, capacity_tokens=capacity, end_ids=[self.end_of_turn])
        written = rollouts.roll_out(prefixes, sampling=Sampling(temperature=0.0), max_new_tokens=self.max_tokens)
        answers = [own_row(row, one, prompt=one.prompt) for row, one in zip(self.questions, written, strict=True)]
        said = self.verdicts(answers)
        return Score(value=sum(verdict == 1 for verdict in said) / len(said), n=len(said))
