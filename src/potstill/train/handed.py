"""What training is handed by rooms that it may not import, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from potstill.recipe import Arm
from potstill.records import Example, Score
from potstill.train.loop import Fitted
from potstill.verify.rewards import Reward


@dataclass(frozen=True, slots=True)
class Handed:
    """`validator(arm, held)` scores a model that chooses: on the validation prompts, or on examples `held` back where
    the recipe has no split. `rewarding(arm)` opens the recipe's checks, for rewards and for validations that write."""

    validator: Callable[[Arm, Sequence[Example]], Callable[[Any], dict[str, Score]]]
    rewarding: Callable[[Arm], AbstractContextManager[Reward]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many examples an arm learnt, which `layers` of its start it has, `of` so many, and what it took. `left_out`
    counts examples that could not be learnt exactly, by reason."""

    examples: int
    fitted: Fitted
    layers: tuple[int, ...] | None = None
    of: int | None = None
    left_out: dict[str, int] = field(default_factory=dict[str, int])
