"""The test set, and how it is scored (`evaluate`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from potstill.recipe.checks import Check, Judge, Majority, RewardModel
from potstill.recipe.prompts import PromptFile
from potstill.recipe.values import Count, Positive, Values


class Evaluate(Values):
    """The test set: prompts that nobody trained on, answered greedily by every arm. `checks` say which answers are
    right; where there are choices and no checks, those are that equal the reference. What selection must not keep
    (`select.evaluation`) should name the same file."""

    prompts: PromptFile | None = Field(None, description="a source of its own; else `prompts.split` holds some out")
    checks: tuple[Check, ...] = ()
    max_tokens: Count = 512
    batch_size: Count = Field(32, description="answers that the student writes at once")
    resamples: Annotated[int, Field(ge=100)] = 2000
    processes: Count = Field(2, description="checks at once")
    budget: Positive | None = Field(None, description="US dollars for the teacher's answers, beyond generate.budget")
    batch_tokens: Count = Field(1024, description="tokens that an arm reads at once where it scores choices")
    uncached_prompts: Count = Field(48, description="prompts that time the teacher without its cached prefix (choices)")
    generate_prompts: Count = Field(100, description="test prompts that the saved model writes answers to (choices)")

    @model_validator(mode="after")
    def _one_answer_each(self) -> Evaluate:
        if any(isinstance(check, Majority) for check in self.checks):
            raise ValueError("'checks' may not hold a majority: every prompt is answered once")
        if any(isinstance(check, Judge | RewardModel) for check in self.checks):
            raise ValueError("'checks' may not hold a judge or a reward model: scores come from checks alone")
        return self
