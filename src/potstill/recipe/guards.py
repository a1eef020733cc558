"""What stops a training that has gone wrong, or slows it down."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe.values import Count, Positive, Probability, Values

Action = Literal["stop", "lower", "log"]
"""What follows a breach: exit 8 with the batch saved, half the learning rate from there on, or a line in the log."""


class LossGuard(Values):
    """A loss that runs away: above `times` the running median, `patience` steps in a row, once the warm-up is over."""

    action: Action = "stop"
    times: Annotated[float, Field(gt=1)] = 5.0
    window: Annotated[int, Field(ge=10)] = Field(50, description="steps that the median is taken over")
    patience: Count = 5


class RolloutGuards(Values):
    """What the student's own answers must keep to, as running means over steps; null leaves one out. Every value is in
    metrics.jsonl under its name here; `docs/design/guards.md` says why each bound is where it is."""

    action: Action = "stop"
    patience: Count = Field(5, description="steps in a row beyond a bound that are a breach")
    eos_rate: Probability | None = Field(
        0.2, description="least share of answers that end by themselves, once it has been twice that"
    )
    rollout_length: Annotated[float, Field(gt=1)] | None = Field(
        3.0, description="times that the mean length may leave the span of its start and the kept answers"
    )
    repetition: Probability | None = Field(0.5, description="most tokens, as a share, in a loop that an answer ends in")
    student_entropy: Probability | None = Field(
        0.1, description="least share of its start's and the teacher's entropy on the same text"
    )
    support_overlap: Probability | None = Field(
        0.3, description="least share of tokens among the teacher's 20 most probable, once it has been twice that"
    )
    log_probability_gap: Positive | None = Field(
        0.2, description="most nats per token between the engine that writes and the trainer"
    )
