"""The part of a data recipe that makes a student of its answers (`student`, `train`) and examines it (`evaluate`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from potstill.on_policy_recipe import OnPolicy
from potstill.prompt_file import PromptFile
from potstill.recipe import LogitKd, Loop, Sft
from potstill.teacher_recipe import Server
from potstill.values import Count, Positive, Probability, Values
from potstill.verify_recipe import Check, Judge, Majority, RewardModel


class Spaced(Values):
    """So many layers, evenly spaced, the first and the last among them."""

    spaced: Count


class Ranked(Values):
    """The so many layers that change their input the most on what the student will learn (Block Influence; Men et al.
    2024, ShortGPT)."""

    ranked: Count


def _each_once(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers:
        raise ValueError("an empty list leaves no layer: name some, or give null for all")
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise ValueError(f"layer {twice[0]} stands there twice")
    return layers


def _form(given: object) -> str:
    if isinstance(given, dict):
        return "<ranked>" if "ranked" in cast("dict[str, object]", given) else "<spaced>"
    if isinstance(given, Values):
        return "<ranked>" if isinstance(given, Ranked) else "<spaced>"
    return "<list>" if isinstance(given, list | tuple) else "<first>"


Listed = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_each_once)]
Layers = Annotated[
    Annotated[Count, Tag("<first>")]
    | Annotated[Listed, Tag("<list>")]
    | Annotated[Spaced, Tag("<spaced>")]
    | Annotated[Ranked, Tag("<ranked>")],
    Discriminator(_form),
]
"""The first so many, these (counted from 0, in this order), or as `Spaced` and `Ranked` say."""


class Lora(Values):
    """Two thin matrices beside each linear map of the layers learn, and nothing else; they are added to the weights at
    the end (low-rank adaptation; Hu et al. 2022). What they add is scaled by `alpha` / `rank`."""

    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="last names of the linear maps, such as q_proj; by default all in the layers"
    )


class Learner(Values):
    """A student that writes: layers of the model `start`, or all of it. It need not be the teacher."""

    start: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str
    weights: Literal["start", "random"] = Field(
        "start", description="random: the start's shape and tokenizer with fresh weights, which all learn"
    )
    layers: Layers | None = None
    lora: Lora | None = None
    freeze_embeddings: bool = Field(True, description="keep the start's embeddings, and its head where they are tied")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(0, description="keep that many first layers as they are too")
    template: str | None = None

    @property
    def keeps_embeddings(self) -> bool:
        """Whether they are not trained: those of random weights always are."""
        return self.freeze_embeddings and self.weights == "start"

    def made_of(self, layers: Sequence[int], of: int | None, start: str | None = None) -> str:
        """ "the first 4 of 30 layers of Qwen/Qwen3-0.6B", and that the weights are random where they are."""
        made = f"{spoken_layers(layers, of)} of {start or self.start}"
        return f"random weights in the shape of {made}" if self.weights == "random" else made

    @property
    def taken(self) -> int | None:
        """How many layers the student has; None: as many as its start."""
        match self.layers:
            case Spaced(spaced=count) | Ranked(ranked=count):
                return count
            case tuple():
                return len(self.layers)
            case _:
                return self.layers

    @model_validator(mode="after")
    def _random_weights_all_learn(self) -> Learner:
        if self.weights == "random":
            ranked = isinstance(self.layers, Ranked)
            unread = {"lora": self.lora, "freeze_layers": self.freeze_layers, "layers.ranked": ranked}
            if said := next((key for key, value in unread.items() if value), None):
                raise ValueError(f"'{said}' builds on what the start has learnt: 'weights' random has none of it")
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Learner:
        if self.taken is not None and self.freeze_layers >= self.taken:
            raise ValueError(f"'freeze_layers' is {self.freeze_layers}: no layer of {self.taken} would learn")
        return self


def spoken_layers(layers: Sequence[int], of: int | None) -> str:
    """ "the first 4 of 30 layers", "all 28 layers", "the layers 0, 4 and 9 (counted from 0) of 30"."""
    if list(layers) != list(range(len(layers))):
        before = ", ".join(map(str, layers[:-1]))
        named = f"layers {before} and {layers[-1]}" if before else f"layer {layers[-1]}"
        return f"the {named} (counted from 0)" + (f" of {of}" if of else "")
    if len(layers) == of:
        return f"all {of} layers"
    return f"the first {len(layers)}" + (f" of {of} layers" if of else " layers")


class ScoredBy(Values):
    """A model that scores answers token by token, in place of the teacher that wrote them: in this process, or behind a
    vLLM server, which gives its `k` most probable tokens and what is left as one outcome."""

    model: str = Field(
        description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package; the name that the "
        "server knows where there is an 'engine'"
    )
    revision: str | None = None
    licence: str
    template: str | None = Field(None, description="chat template (Jinja) in place of the model's own")
    quantization: Literal["int8"] | None = Field(
        None, description="int8: a byte a weight of the layers' linear maps, half of bf16; embeddings and head stay"
    )
    engine: Server | None = Field(None, description="a server with prompt_logprobs on token ids (vLLM)")
    tokenizer: str | None = Field(None, description="hub id or folder of the served model's tokenizer and template")
    k: Annotated[int, Field(ge=1, le=4096)] = Field(20, description="what vLLM's --max-logprobs allows by default")

    @model_validator(mode="after")
    def _served_or_here(self) -> ScoredBy:
        if self.engine is None and self.tokenizer is not None:
            raise ValueError("'tokenizer' goes with an 'engine': a model in this process brings its own")
        if self.engine is not None and self.quantization is not None:
            raise ValueError(
                "'quantization' is of a model in this process: a served one is quantised where it is served"
            )
        if self.engine is not None and self.tokenizer is None:
            raise ValueError("a served model's tokens must be known: name a hub id or folder in 'tokenizer'")
        if self.engine is not None and self.engine.form != "openai":
            raise ValueError(f"'engine.form' {self.engine.form} cannot score tokens: vLLM's form is openai")
        return self


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


LessonMethod = Annotated[Sft | LogitKd | PolicyGradient, Field(discriminator="kind")]


class Lessons(Loop):
    """Supervised fine-tuning on the kept answers (sequence-level KD; Kim and Rush 2016), soft targets at every one of
    their tokens (`logit_kd`; Hinton et al. 2015), or a policy gradient on the student's own. Only the assistant's last
    turn bears loss: its answer, or its reasoning too."""

    method: LessonMethod = Sft(kind="sft")
    learn: Literal["answer", "reasoning and answer"] = "answer"
    scored_by: ScoredBy | None = Field(
        None, description="for all but sft; by default the recipe's teacher, where it is a model in this process"
    )
    signal: Signal = Field(
        LiveSignal(kind="live"), description="what is kept of the teacher's scores; all but 'live' are computed once"
    )
    signals_folder: str | None = Field(
        None, description="where they are kept; by default a folder of the cache that all runs share"
    )

    on_policy: OnPolicy | None = None
    predict_with_generate: bool = Field(
        False, description="validations answer the prompts held back too, and verify.checks mark them: pass_rate"
    )

    @model_validator(mode="after")
    def _best_is_scored(self) -> Lessons:
        if self.best is None:
            return self
        match self.best.metric:
            case "nats_a_token":
                pass
            case "kd":
                if isinstance(self.method, Sft):
                    raise ValueError("'best.metric' kd is the distance to a teacher: 'method' sft has none to read")
            case "pass_rate":
                if not self.predict_with_generate:
                    raise ValueError("'best.metric' pass_rate marks answers: set 'predict_with_generate' to true")
            case other:
                raise ValueError(f"'best.metric' {other} is not scored here: take nats_a_token, kd or pass_rate")
        return self

    @model_validator(mode="after")
    def _own_answers_are_scored(self) -> Lessons:
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
    def _a_server_gives_its_top_alone(self) -> Lessons:
        if self.scored_by is None or self.scored_by.engine is None:
            return self
        if isinstance(self.signal, SampledSignal | HiddenSignal):
            raise ValueError(f"a server gives its most probable tokens, not 'signal' {self.signal.kind}: live or top_k")
        if isinstance(self.method, LogitKd) and self.method.temperature != 1:
            raise ValueError(f"a server scores at temperature 1: 'method.temperature' is {self.method.temperature:g}")
        return self

    @model_validator(mode="after")
    def _rewards_are_averages(self) -> Lessons:
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
    def _scores_are_read(self) -> Lessons:
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
