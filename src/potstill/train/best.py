"""Which of the weights that were validated are kept, and when nothing better is to be hoped for.

The scores so far lie in every checkpoint, so a resumed run chooses and stops as an unbroken one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import GuardStopped
from potstill.recipe.train import Loop
from potstill.records import Score
from potstill.store.checkpoints import Checkpoints
from potstill.train.state import TrainState


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The step whose weights the model has, its score, and whether training ended before its last step."""

    metric: str
    score: float
    step: int
    stopped_early: bool


def told(chosen: Chosen | None) -> dict[str, int]:
    """What metrics.jsonl says of it, in the row of the last step."""
    return {} if chosen is None else {"best_step": chosen.step, "stopped_early": chosen.stopped_early}


@dataclass(frozen=True, slots=True)
class Choice:
    """Of a model in training. Without `best` in its settings nothing is weighed, and the last weights are kept."""

    settings: Loop
    state: TrainState[Any]

    def weigh(self, found: Mapping[str, Score], *, of: str) -> float | None:
        """Take in a validation of the weights as they are; returns their score if they are the best so far. Raises
        GuardStopped on a score that is no number: there would be no best."""
        if (best := self.settings.best) is None:
            return None
        score = found[best.metric].value
        if not math.isfinite(score):
            raise GuardStopped(
                f"{of} stopped at step {self.state.step}: validation {best.metric} is {score}",
                way_out="lower train.learning_rate; the last checkpoint is kept",
            )
        self.state.scores.append((self.state.step, score))
        return score if self._best[0] == self.state.step else None

    def over(self, total: int) -> bool:
        """Whether training ends after this step: the last one of `total`, or one that patience does not go beyond."""
        return self.state.step == total or self._exhausted

    def made(self, total: int) -> Chosen | None:
        """What is chosen where training is over."""
        if (best := self.settings.best) is None or not self.over(total):
            return None
        step, score = self._best
        return Chosen(metric=best.metric, score=score, step=step, stopped_early=self.state.step < total)

    def settle(self, total: int, checkpoints: Checkpoints) -> Chosen | None:
        """Put the chosen weights in place of the last ones."""
        chosen = self.made(total)
        if chosen is not None and chosen.step != self.state.step:
            self.state.go_back(checkpoints, step=chosen.step)
        return chosen

    @property
    def _exhausted(self) -> bool:
        """Whether so many validations in a row as patience allows brought nothing better."""
        if (best := self.settings.best) is None or best.early_stopping_patience is None:
            return False
        waited, highest = 0, -math.inf
        for _, score in self.state.scores:
            waited = 0 if self._sign * score > highest + best.early_stopping_threshold else waited + 1
            highest = max(highest, self._sign * score)
        return waited >= best.early_stopping_patience

    @property
    def _sign(self) -> int:
        return 1 if self.settings.better == "larger" else -1

    @property
    def _best(self) -> tuple[int, float]:
        """Step and score; of equal scores the first."""
        return max(self.state.scores, key=lambda one: self._sign * one[1])
