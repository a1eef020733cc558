"""How many answers the teacher writes, for how much (`generate`), and what is asked again (`rescue`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from potstill.recipe.teacher import Teacher
from potstill.recipe.values import Count, Positive, Values

Truncated = Literal["keep", "drop", "longer"]


class Generate(Values):
    """How many answers per prompt, sampled how, for how much.

    `truncated` says what becomes of an answer that reached max_tokens: kept, dropped, or asked again with twice the
    tokens up to `longest`. `parameters` are sent as they are (reasoning_effort, chat_template_kwargs, ...); null leaves
    one out that would be sent (temperature, top_p, seed).
    """

    n: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 512
    truncated: Truncated = "keep"
    longest: Count | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    budget: Positive | None = Field(None, description="US dollars that are never exceeded")
    prices: str | None = Field(None, description="a price file such as recipes/prices.yaml")

    @model_validator(mode="after")
    def _consistent(self) -> Generate:
        if (self.truncated == "longer") != (self.longest is not None):
            raise ValueError("'longest' goes with 'truncated: longer', and only with it")
        if self.longest is not None and self.longest <= self.max_tokens:
            raise ValueError(f"'longest' is {self.longest}, not above 'max_tokens' ({self.max_tokens})")
        if taken := sorted({"model", "messages", "n", "stream", "max_tokens"} & set(self.parameters)):
            raise ValueError(f"'parameters' may not set '{taken[0]}': the engine does")
        if taken := [name for name in ("temperature", "top_p", "seed") if self.parameters.get(name) is not None]:
            whose = "the recipe's 'seed'" if taken[0] == "seed" else f"'generate.{taken[0]}'"
            raise ValueError(f"'parameters' may not set '{taken[0]}', only leave it out (null): {whose} sets it")
        return self

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _left_out_elsewhere(cls, value: object, info: ValidationInfo) -> object:
        if value is None:
            raise ValueError(f"null leaves it out under 'parameters': {{{info.field_name}: null}}")
        return value


class Try(Values):
    """`samples` answers to each prompt that is still without a passed one: by the same teacher or another, with its
    instructions or a `hint` after them. The student never sees the hint."""

    samples: Count
    hint: str | None = Field(None, min_length=1)
    teacher: Teacher | None = None


class Rescue(Values):
    """Ask again where no answer passed, so that checks do not silently drop what is hard. The tries come in turn; the
    first that brings a passed answer ends it for that prompt."""

    tries: tuple[Try, ...] = Field(min_length=1)
    budget: Positive | None = Field(None, description="US dollars for all tries together, beyond generate.budget")
