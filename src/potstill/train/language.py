"""What language models learn from token rows: whole answers, or a choice among a few. See `methods` for the terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype
from potstill.recipe.methods import LogitKd, Method, Sft
from potstill.text.tokens import Ids
from potstill.train.batch import Batch, Row, Whole, collate
from potstill.train.methods import Logged, terms
from potstill.train.objective import Pass, Step
from potstill.train.stopped import Spell, described
from potstill.train.teaching import Teach
from potstill.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenObjective:
    """Every token of an answer, out of the whole vocabulary; `teach` gives the soft targets of logit_kd."""

    method: Method
    teach: Teach | None = None
    spell: Spell | None = None

    def passes(self, step: Step[Row], world: World) -> Sequence[Sequence[Row]]:
        return world.share(step.rows, step.settings.pass_tokens)

    def prepare(self, model: PreTrainedModel, part: Sequence[Row], step: Step[Row]) -> Pass:
        batch = collate(part, (), whole=Whole.of(step.rows), device=model.device)
        signal = None if self.teach is None else self.teach(part)
        observe = step.observe or any(row.own for row in step.rows)

        def loss() -> tuple[Tensor, Logged]:  # products in half precision where the machine has it
            hidden_RD = _hidden(model, batch, step).to(compute_dtype())
            return terms(self.method, model, hidden_RD, batch, signal=signal, observe=observe)

        return Pass(loss, _read(part, batch))

    def describe(self, row: Row) -> dict[str, Any]:
        return described(row, self.spell)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceObjective:
    """An allowed answer out of a few, and to write it and stop."""

    method: Sft | LogitKd
    choices: Sequence[Ids]
    spell: Spell | None = None

    def passes(self, step: Step[Row], world: World) -> Sequence[Sequence[Row]]:
        return world.share(step.rows, step.settings.pass_tokens)

    def prepare(self, model: PreTrainedModel, part: Sequence[Row], step: Step[Row]) -> Pass:
        batch = collate(part, self.choices, whole=Whole.of(step.rows), device=model.device)

        def loss() -> tuple[Tensor, Logged]:
            return terms(self.method, model, _hidden(model, batch, step), batch)

        return Pass(loss, _read(part, batch))

    def describe(self, row: Row) -> dict[str, Any]:
        return described(row, self.spell)


def _hidden(model: PreTrainedModel, batch: Batch, step: Step[Row]) -> Tensor:
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
        again = step.settings.gradient_checkpointing
        return hidden_rows(model, batch.documents, batch.at_R, gradient_checkpointing=again)


def _read(part: Sequence[Row], batch: Batch) -> int:
    """A pass without weight only keeps step with other processes."""
    return batch.tokens if any(row.weight for row in part) else 0
