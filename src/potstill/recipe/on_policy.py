"""How a student writes answers itself while it learns (`train.on_policy`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe.guards import RolloutGuards
from potstill.recipe.teacher import Http
from potstill.recipe.values import Count, Positive, Probability, Values


class TaskReward(Values):
    """What the recipe's own checks (`verify.checks`) say of the student's answers is a reward too: 1 where all pass, 0
    where one fails or the answer was cut off, less the mean of the other answers. One that a check is undecided about
    has none. Checks that cost money or compare answers (judges, reward models, majorities) are not asked."""

    weight: Positive = Field(1.0, description="nats that a passed answer is worth more than a failed one, a token")


class RolloutServer(Http):
    """A vLLM server that writes the student's answers. Before each call it takes the student's weights, in place, from
    a folder that both see, for which it has to be started with VLLM_SERVER_DEV_MODE=1 on that folder."""

    kind: Literal["vllm"]
    in_flight: Count = Field(256, description="most requests at once")
    weights_folder: str | None = Field(
        None, description="by default `writer` of the arm; one in memory, such as /dev/shm/writer, is faster"
    )


class OnPolicy(Values):
    """The student answers the prompts itself while it learns, and the teacher scores every token that it wrote (Agarwal
    et al. 2024, GKD): it learns from its own mistakes."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="of a step's examples that are its own (GKD's lambda)"
    )
    warm_up: Probability = Field(0.2, description="share of the steps, at first, that learn the kept answers instead")
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 128
    slots: Count = Field(32, description="answers written at once, in this process")
    samples: Count = Field(1, description="answers to each prompt of a step")
    steps_per_generation: Count = Field(
        1, description="optimizer steps whose answers are written in one call, before the first of them"
    )
    engine: RolloutServer | None = Field(None, description="who writes; by default the student in this process")
    teacher_mix: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="tokens are drawn from so much of the teacher's distribution and the rest of the student's own, "
        "which keeps a weak student on sensible text (Gu et al. 2024, MiniLLM: 0.2)",
    )
    reward: TaskReward | None = None
    guards: RolloutGuards | None = RolloutGuards()  # pyright: ignore[reportCallIssue]
