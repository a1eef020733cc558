"""Which of the good answers are kept (`select`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from potstill.recipe.prompts import DataFiles
from potstill.recipe.values import Count, Probability, Values


class EvaluationSet(DataFiles):
    """What nobody may train on: prompts and answers of an evaluation set. A sample is dropped where its prompt or its
    answer shares `words` words in a row with it."""

    columns: tuple[str, ...] = Field(min_length=1, description="the columns whose text counts")
    words: Count = 13


class Select(Values):
    """Which of the passed answers are kept, after their prompt's share of passed answers lay within `pass_rate`.

    `prefer: learnable` takes those whose tokens the student, before its first step, finds least surprising (GRAPE:
    Zhang et al. 2025). `weight: pass_rate` lets hard prompts count for more instead of dropping the easy ones.
    """

    keep: Count = Field(1, description="most answers per prompt")
    prefer: Literal["first", "shortest", "score", "learnable"] = "first"
    pass_rate: tuple[Probability, Probability] = (0.0, 1.0)
    weight: Literal["pass_rate"] | None = Field(
        None, description="fill the column `weight`: 2 (1 - (passed + 1) / (answers + 2)), 1 for a pass rate of a half"
    )
    near_duplicates: Probability | None = Field(
        None, description="drop an answer whose prompt-and-answer shares more than this of its word triples (Jaccard)"
    )
    evaluation: EvaluationSet | None = None
    pairs: bool = Field(False, description="write chosen and rejected answers too, in TRL's columns")

    @model_validator(mode="after")
    def _a_band(self) -> Select:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError(f"'pass_rate' is {list(self.pass_rate)}: the first must not be above the second")
        return self
