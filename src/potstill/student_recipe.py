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


class LiveSignal(Values):
    """The whole distribution, computed by the teacher in every epoch anew."""

    kind: Literal["live"]


class TopKSignal(Values):
    """The `k` most probable tokens and what is left as one outcome: 198 bytes a token at 64 of 49,152."""

    kind: Literal["top_k"]
    k: Annotated[int, Field(ge=1, le=4096)] = 64


class SampledSignal(Values):
    """Tokens drawn from the teacher, unbiased in few bytes (Anshumann et al. 2025): about 40 a token at 32 draws."""

    kind: Literal["sampled"]
    draws: Annotated[int, Field(ge=1, le=255)] = 32


class HiddenSignal(Values):
    """Hidden states and the head: the whole distribution for a number a channel."""

    kind: Literal["hidden"]
    dtype: Literal["int8", "bf16"] = "int8"


Signal = Annotated[LiveSignal | TopKSignal | SampledSignal | HiddenSignal, Field(discriminator="kind")]


class Lessons(Train):
    """Supervised fine-tuning on the kept answers (sequence-level KD; Kim and Rush 2016), or soft targets at every one
    of their tokens (`logit_kd`; Hinton et al. 2015). Only the assistant's last turn bears loss: its answer, or its
    reasoning too."""

    method: Method = Sft(kind="sft")
    learn: Literal["answer", "reasoning and answer"] = "answer"
    scored_by: ScoredBy | None = Field(
        None, description="for logit_kd; by default the recipe's teacher, where it is a model in this process"
    )
    signal: Signal = Field(
        LiveSignal(kind="live"), description="what is kept of the teacher's scores; all but 'live' are computed once"
    )
    signals_folder: str | None = Field(
        None, description="where they are kept; by default a folder of the cache that all runs share"
    )

    @model_validator(mode="after")
    def _scores_are_read(self) -> Lessons:
        if self.scored_by is not None and isinstance(self.method, Sft):
            raise ValueError("'scored_by' gives soft targets: 'method' sft reads none, logit_kd does")
        if isinstance(self.signal, LiveSignal):
            if self.signals_folder is not None:
                raise ValueError("'signals_folder' keeps signals: choose the 'signal' top_k, sampled or hidden")
        elif isinstance(self.method, Sft):
            raise ValueError("'signal' is what a teacher says of tokens: 'method' sft reads none, logit_kd does")
        elif isinstance(self.signal, SampledSignal) and self.method.divergence != "forward_kl":
            raise ValueError(f"draws estimate 'forward_kl' alone, not '{self.method.divergence}': take top_k or hidden")
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
