"""The part of a data recipe that makes a student of its answers (`student`, `train`) and examines it (`evaluate`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.prompt_file import PromptFile
from potstill.recipe import Method, Sft, Student, Train
from potstill.values import Count, Positive, Values
from potstill.verify_recipe import Check, Judge, Majority, RewardModel


class Learner(Student):
    """A student that writes: the first `layers` layers of the model `start`, which need not be the teacher."""

    start: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str


class ScoredBy(Values):
    """A model in this process that scores the kept answers token by token, in place of the teacher that wrote them."""

    model: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str
    template: str | None = Field(None, description="chat template (Jinja) in place of the model's own")


class Lessons(Train):
    """Supervised fine-tuning on the kept answers (sequence-level KD; Kim and Rush 2016), or soft targets at every one
    of their tokens (`logit_kd`; Hinton et al. 2015). Only the assistant's last turn bears loss: its answer, or its
    reasoning too."""

    method: Method = Sft(kind="sft")
    learn: Literal["answer", "reasoning and answer"] = "answer"
    scored_by: ScoredBy | None = Field(
        None, description="for logit_kd; by default the recipe's teacher, where it is a model in this process"
    )

    @model_validator(mode="after")
    def _scores_are_read(self) -> Lessons:
        if self.scored_by is not None and isinstance(self.method, Sft):
            raise ValueError("'scored_by' gives soft targets: 'method' sft reads none, logit_kd does")
        return self


class Exam(Values):
    """Prompts that nobody trained on, answered greedily by teacher and student, and the checks that say which answers
    are right. What selection must not keep (`select.evaluation`) should name the same file."""

    prompts: PromptFile
    checks: tuple[Check, ...] = Field(min_length=1)
    max_tokens: Count = 512
    batch_size: Count = Field(32, description="answers that the student writes at once")
    resamples: Annotated[int, Field(ge=100)] = 2000
    processes: Count = Field(2, description="checks at once")
    budget: Positive | None = Field(None, description="US dollars for the teacher's answers, beyond generate.budget")

    @model_validator(mode="after")
    def _one_answer_each(self) -> Exam:
        if any(isinstance(check, Majority) for check in self.checks):
            raise ValueError("'checks' may not hold a majority: every prompt is answered once")
        if any(isinstance(check, Judge | RewardModel) for check in self.checks):
            raise ValueError("'checks' may not hold a judge or a reward model: an exam's marks come from checks alone")
        return self
