"""What is kept of a step that stopped the training: its batch, and the numbers it made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import GuardStopped
from potstill.store.files import write_atomic
from potstill.text.tokens import Ids
from potstill.train.batch import Row

Spell = Callable[[Ids], str]
"""What token ids spell."""


def stopped(
    what: str, why: str, examples: Sequence[Mapping[str, Any]], *, to: Path | None, numbers: Mapping[str, float]
) -> GuardStopped:
    """Save the batch of the step that `what` names, where there is a file for it; returns what to raise."""
    if to is None:
        return GuardStopped(f"{what}: {why}", way_out="lower the learning rate, or change the bounds (guards)")
    told = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    batch = {"what": what, "why": why, **told, "examples": examples}
    write_atomic(to, json.dumps(batch, indent=1, ensure_ascii=False))
    return GuardStopped(
        f"{what}: {why}; its batch is in {to}",
        way_out="look at it, lower train.learning_rate, or change the bounds (train.guards, train.on_policy.guards)",
    )


def described(row: Row, spell: Spell | None) -> dict[str, Any]:
    """A token row as people read it."""
    ids = {"prompt_ids": row.prefix, "answer_ids": row.target, "weight": row.weight}
    own = {"written_by_student": row.own is not None}
    text = {} if spell is None else {"prompt": spell(row.prefix), "answer": spell(row.target)}
    return {**text, **own, **ids}
