"""What the student minimises (`train.method`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe.values import Positive, Probability, Values


class Sft(Values):
    """Cross-entropy on the teacher's answer (sequence-level KD; Kim and Rush 2016)."""

    kind: Literal["sft"]


Divergence = Literal[
    "forward_kl", "reverse_kl", "jeffreys", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation"
]


class LogitKd(Values):
    """T² D(teacher_T, student_T) + alpha x cross-entropy (Hinton et al. 2015): over the allowed answers, or over the
    vocabulary at every token of a whole answer. By default D is KL(teacher || student)."""

    kind: Literal["logit_kd"]
    divergence: Divergence = "forward_kl"
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="of jsd: GKD's 0 is 'forward_kl' and its 1 is 'reverse_kl'"
    )
    skew: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="of the skew KLs: the teacher's share in the mix"
    )
    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _nothing_unread(self) -> LogitKd:
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ValueError(f"'beta' belongs to the divergence 'jsd', not to '{self.divergence}'")
        if self.skew != 0.1 and not self.divergence.startswith("skew"):
            raise ValueError(f"'skew' belongs to the skew KLs, not to '{self.divergence}'")
        return self


class PolicyGradient(Values):
    """What the student wrote itself becomes more probable where the teacher finds it more probable than the student
    does: a token's reward is the log-ratio ln p - ln q, and the gradient is on average that of -KL(student || teacher)
    (Gu et al. 2024, MiniLLM; Lu et al. 2025, "On-policy distillation"). Kept answers (those of the warm-up, and what
    `on_policy.share` leaves) are learnt by cross-entropy.

    `level: token`: a token's reward, and the later ones of its answer, each step further off times `discount`. `level:
    sequence`: the whole answer's log-ratio for each of its tokens, less the mean of the other answers'.
    """

    kind: Literal["policy_gradient"]
    level: Literal["token", "sequence"] = "token"
    discount: Probability = Field(0.0, description="of level token; 0 is the next token alone, 1 the whole rest")
    clip: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.2, description="bounds 1 -+ clip of the ratio to the probability it was written with (PPO); null: none"
    )
    mean: Literal["tokens", "answers"] = Field(
        "tokens", description="of a step: over its tokens, or over its answers, each the mean of its own tokens"
    )

    @model_validator(mode="after")
    def _nothing_unread(self) -> PolicyGradient:
        if self.level == "sequence" and self.discount:
            raise ValueError("'discount' belongs to the level 'token': a sequence's reward is not discounted")
        return self


Method = Annotated[Sft | LogitKd | PolicyGradient, Field(discriminator="kind")]
