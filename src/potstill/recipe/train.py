"""How students are trained (`train`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe.guards import LossGuard
from potstill.recipe.methods import LogitKd, Method, PolicyGradient, Sft
from potstill.recipe.on_policy import OnPolicy
from potstill.recipe.scoring import HiddenSignal, LiveSignal, SampledSignal, ScoredBy, Signal
from potstill.recipe.values import Count, Positive, Probability, Values


class Best(Values):
    """The weights at the validation with the best score are kept, not the last ones (Hugging Face's
    `load_best_model_at_end`); training may stop before its end where nothing gets better."""

    metric: Literal["nats_per_token", "kd", "pass_rate", "accuracy", "agreement", "kl_to_teacher"] = Field(
        description="a validation score (metric_for_best_model): nats_per_token, kd or pass_rate of a student that "
        "writes; accuracy, agreement or kl_to_teacher where there are choices"
    )
    early_stopping_patience: Count | None = Field(
        None, description="stop after so many validations in a row without a better score; by default never"
    )
    early_stopping_threshold: Annotated[float, Field(ge=0)] = Field(
        0.0, description="a score that is better by no more than this does not make patience begin anew"
    )

    @model_validator(mode="after")
    def _nothing_unread(self) -> Best:
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("'early_stopping_threshold' is read with 'early_stopping_patience' alone: set both")
        return self


class Loop(Values):
    """The training loop, the same for every arm and method."""

    epochs: Count = 3
    batch_size: Count = 32
    learning_rate: Positive = 3e-4
    warmup: Probability = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="after the warm-up: a cosine to a tenth, or flat and in the last fifth down to nothing"
    )
    pass_tokens: Count = Field(
        8192, description="tokens in memory at once; a step that has more is accumulated over several passes"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of all that is computed in this process, teacher and rollouts too; auto: POTSTILL_PRECISION where "
        "it is set, else bf16 where the hardware multiplies it, else fp32",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="layers are computed once more in the backward pass: far less memory, about a third more time",
    )
    average: Probability = Field(0.0, description="the model is the mean of its weights over this last share of steps")
    checkpoint_seconds: Positive = 20.0
    validations: Count = Field(4, description="how often the validation prompts are scored while training")
    best: Best | None = Field(None, description="which validation's weights are kept; by default the last ones are")
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="where else metrics.jsonl is written; each needs the extra of its name"
    )
    guards: LossGuard | None = Field(LossGuard(), description="null: only what is not finite stops a run")  # pyright: ignore[reportCallIssue]

    @property
    def better(self) -> Literal["smaller", "larger"]:
        """Which of two scores of `best` is the better one (greater_is_better)."""
        counted = ("pass_rate", "accuracy", "agreement")
        return "larger" if self.best is not None and self.best.metric in counted else "smaller"

    @model_validator(mode="after")
    def _best_can_be_chosen(self) -> Loop:
        if self.best is None:
            return self
        if self.average:
            raise ValueError("'average' is the mean of the last steps and 'best' takes one of them: set one")
        patience = self.best.early_stopping_patience
        if patience is not None and self.validations < patience + 2:
            raise ValueError(
                f"'best.early_stopping_patience' {patience} never stops anything in {self.validations} 'validations': "
                f"take at least {patience + 2}"
            )
        return self


class TrainSettings(Loop):
    """Supervised fine-tuning on the kept answers (sequence-level KD; Kim and Rush 2016), soft targets at every one of
    their tokens (`logit_kd`; Hinton et al. 2015), or a policy gradient on the student's own. Only the assistant's last
    turn bears loss: its answer, or its reasoning too."""

    method: Method = Sft(kind="sft")
    learn: Literal["answer", "reasoning and answer"] = "answer"
    scored_by: ScoredBy | None = Field(
        None, description="for all but sft; by default the recipe's teacher, where it is a model in this process"
    )
    signal: Signal = Field(
        LiveSignal(kind="live"), description="what is kept of the teacher's scores; all but 'live' are computed once"
    )
    signals_folder: str | None = Field(
        None,
        description="where they are kept; by default a folder of the cache that all runs share, or of the run for a "
        "served teacher without 'scored_by.revision'",
    )

    on_policy: OnPolicy | None = None
    predict_with_generate: bool = Field(
        False, description="validations answer the prompts held back too, and verify.checks judge them: pass_rate"
    )

    @model_validator(mode="after")
    def _best_is_scored(self) -> TrainSettings:
        metric = self.best and self.best.metric
        if metric == "kd" and isinstance(self.method, Sft):
            raise ValueError("'best.metric' kd is the distance to a teacher: 'method' sft has none to read")
        if metric == "pass_rate" and not self.predict_with_generate:
            raise ValueError("'best.metric' pass_rate is of answers: set 'predict_with_generate' to true")
        return self

    @model_validator(mode="after")
    def _own_answers_are_scored(self) -> TrainSettings:
        if self.on_policy is None:
            if isinstance(self.method, PolicyGradient):
                raise ValueError("'method' policy_gradient learns from the student's own answers: add 'on_policy'")
            return self
        if isinstance(self.method, Sft):
            raise ValueError(
                "'on_policy' answers are scored by a teacher: 'method' sft reads no scores, logit_kd and "
                "policy_gradient do"
            )
        if not isinstance(self.signal, LiveSignal):
            raise ValueError("'on_policy' answers are new every time: 'signal' must be live")
        if self.on_policy.teacher_mix and self.on_policy.engine is not None:
            raise ValueError(
                "'on_policy.teacher_mix' lets student and teacher write every token together, in this process: leave "
                "out 'on_policy.engine', or set it to 0"
            )
        if self.on_policy.teacher_mix and self.scored_by is not None and self.scored_by.engine is not None:
            raise ValueError(
                "'on_policy.teacher_mix' draws every token from the teacher's whole distribution, which a server does "
                "not give: name a model in this process in 'scored_by', or set it to 0"
            )
        if isinstance(self.method, LogitKd) and self.method.alpha:
            raise ValueError("cross-entropy would teach the student its own answers: set 'method.alpha' to 0")
        return self

    @model_validator(mode="after")
    def _a_server_gives_its_top_alone(self) -> TrainSettings:
        if self.scored_by is None or self.scored_by.engine is None:
            return self
        if isinstance(self.signal, SampledSignal | HiddenSignal):
            raise ValueError(f"a server gives its most probable tokens, not 'signal' {self.signal.kind}: live or top_k")
        if isinstance(self.method, LogitKd) and self.method.temperature != 1:
            raise ValueError(f"a server scores at temperature 1: 'method.temperature' is {self.method.temperature:g}")
        if self.signals_folder is not None and self.scored_by.revision is None:
            raise ValueError(
                "'signals_folder' may be shared by runs, but a server may have other weights under the same name by "
                "then: state which they are in 'scored_by.revision', or leave the folder out (the run's is taken)"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_averages(self) -> TrainSettings:
        how = self.on_policy
        if how is None or not (how.reward or isinstance(self.method, PolicyGradient)):
            return self
        for key in ("temperature", "top_p"):
            if (value := getattr(how, key)) != 1:
                raise ValueError(
                    f"'on_policy.{key}' is {value:g}: a policy gradient is an average over what the student itself "
                    "would write, so set it to 1"
                )
        return self

    @model_validator(mode="after")
    def _scores_are_read(self) -> TrainSettings:
        if self.scored_by is not None and isinstance(self.method, Sft):
            raise ValueError("'scored_by' gives soft targets: 'method' sft reads none, logit_kd does")
        if isinstance(self.signal, LiveSignal):
            if self.signals_folder is not None:
                raise ValueError("'signals_folder' keeps signals: choose the 'signal' top_k, sampled or hidden")
        elif not isinstance(self.method, LogitKd):
            raise ValueError(
                f"'signal' is what a teacher says of tokens: 'method' {self.method.kind} reads none, logit_kd does"
            )
        elif isinstance(self.signal, SampledSignal) and self.method.divergence != "forward_kl":
            raise ValueError(f"draws estimate 'forward_kl' alone, not '{self.method.divergence}': take top_k or hidden")
        return self
