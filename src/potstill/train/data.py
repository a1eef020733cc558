"""What is learnt: examples as they are, or with the student's own answers in the place of some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from potstill.recipe.guards import LossGuard, RolloutGuards
from potstill.train.batch import Learnable, Row
from potstill.train.guards import Rules
from potstill.train.rollout_buffer import RolloutBuffer

R = TypeVar("R", bound=Learnable)

Judge = Callable[[Sequence[Row]], list[Row]]
"""Says of the student's own answers among the rows of a step what each is worth."""


@dataclass(frozen=True, slots=True)
class Data(Generic[R]):
    """Examples that are learnt as they are."""

    rows: Sequence[R]

    def of_step(self, kept: Callable[[int], list[R]], step: int, total: int) -> list[R]:
        """The examples of a step of `total`; `kept` gives those that the order of the epochs has for any step."""
        return kept(step)

    def own(self, rows: Sequence[R]) -> list[Row]:
        """Those that the student wrote itself."""
        return []

    def rules(self, guard: LossGuard | None) -> Rules:
        """What the training is guarded by."""
        return Rules(loss=guard)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From the state of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyData(Data[Row]):
    """The buffer puts the student's own answers in the place of some; `judge` says what they are worth, where something
    beside the objective's teacher does; `guards` are theirs."""

    buffer: RolloutBuffer
    judge: Judge | None = None
    guards: RolloutGuards | None = None

    def of_step(self, kept: Callable[[int], list[Row]], step: int, total: int) -> list[Row]:
        rows = self.buffer(kept, step, total)
        return rows if self.judge is None else self.judge(rows)

    def own(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row.own]

    def rules(self, guard: LossGuard | None) -> Rules:
        kept_length = sum(len(row.target) for row in self.rows) / len(self.rows)
        return Rules(loss=guard, own=self.guards, kept_length=kept_length)

    def state(self) -> dict[str, Any]:
        return {"rollouts": self.buffer.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.buffer.restore(state["rollouts"])
