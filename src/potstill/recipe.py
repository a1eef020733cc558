"""The recipe: one YAML file that says which prompts, which teacher, which checks, which student, which method.

Strict, frozen, values only; `recipe_file` reads it from YAML and writes the resolved recipe back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from potstill import recipe_file
from potstill.values import Count, Name, Positive, Probability, Seed, Values

Control = Literal["base", "from_scratch", "hard_labels", "floor"]


class TextColumns(Values):
    """Which column of the source holds what. `text` becomes one user turn; `messages` is taken as it is."""

    text: str | None = None
    messages: str | None = None
    id: str | None = None

    @model_validator(mode="after")
    def _one_source_of_text(self) -> TextColumns:
        if (self.text is None) == (self.messages is None):
            raise ValueError("name exactly one of 'text' and 'messages'")
        return self


class Columns(TextColumns):
    """What people said of a prompt stands in columns too."""

    answer: str | None = Field(None, description="a person's answer, used to evaluate, never to train")
    grade: str | None = Field(None, description="a person's graded rating, used to evaluate")


class SplitSizes(Values):
    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


class Prompts(Values):
    """Where the prompts come from: a JSONL, CSV/TSV or Parquet file, or a folder saved by `datasets`."""

    source: str
    licence: str = Field(description="licence of the prompts, an SPDX id or a Hugging Face tag")
    columns: Columns
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    answer_by_grade: dict[str, tuple[float, float]] | None = Field(
        None, description="answer -> [lowest, highest] grade; rows outside every range are left out"
    )
    split: SplitSizes

    @model_validator(mode="after")
    def _people_answered(self) -> Prompts:
        if self.answer_by_grade and self.columns.grade is None:
            raise ValueError("'answer_by_grade' needs 'columns.grade'")
        if not self.answer_by_grade and self.columns.answer is None:
            raise ValueError("evaluation needs people's answers: name 'columns.answer' or 'answer_by_grade'")
        return self


class Shot(Values):
    """A worked example in the teacher's prompt."""

    prompt: str
    answer: str


class Teacher(Values):
    """The big frozen model. `template` (Jinja, the chat-template convention) replaces the one it carries."""

    model: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str
    instructions: str | None = None
    examples: tuple[Shot, ...] = ()
    template: str | None = None
    batch_tokens: Count = 1024


class Answers(Values):
    """The allowed answers. `prior` is what the teacher's average answer is calibrated to."""

    choices: tuple[str, ...] = Field(min_length=2)
    prior: tuple[Positive, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Answers:
        if len(set(self.choices)) != len(self.choices) or not all(c.strip() == c != "" for c in self.choices):
            raise ValueError("'choices' must be distinct, not empty, without surrounding blanks")
        if self.prior is not None and len(self.prior) != len(self.choices):
            raise ValueError(f"'prior' has {len(self.prior)} values for {len(self.choices)} choices")
        if self.prior is not None and abs(sum(self.prior) - 1) > 1e-6:
            raise ValueError(f"'prior' sums to {sum(self.prior):g}, not to 1")
        return self


class Verify(Values):
    """A teacher answer is kept when its mass on the allowed answers and its calibrated confidence suffice."""

    min_allowed_mass: Probability = 0.0
    min_confidence: Probability = 0.0


class Student(Values):
    """The teacher's embeddings and its first `layers` layers, with a template of its own."""

    layers: Count
    freeze_embeddings: bool = Field(True, description="keep the teacher's embeddings, and its head where they are tied")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="keep that many first layers as the teacher's too"
    )
    template: str | None = None

    @model_validator(mode="after")
    def _something_learns(self) -> Student:
        if self.freeze_layers >= self.layers:
            raise ValueError(f"'freeze_layers' is {self.freeze_layers}: no layer of {self.layers} would learn")
        return self


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


Method = Annotated[Sft | LogitKd, Field(discriminator="kind")]


Action = Literal["stop", "lower", "log"]
"""What follows a breach: exit 8 with the batch saved, half the learning rate from there on, or a line in the log."""


class LossGuard(Values):
    """A loss that runs away: above `times` the running median, `patience` steps in a row, once the warm-up is over."""

    action: Action = "stop"
    times: Annotated[float, Field(gt=1)] = 5.0
    window: Annotated[int, Field(ge=10)] = Field(50, description="steps that the median is taken over")
    patience: Count = 5


class Best(Values):
    """The weights at the validation with the best score are kept, not the last ones (Hugging Face's
    `load_best_model_at_end`); training may stop before its end where nothing gets better."""

    metric: Literal["nats_a_token", "kd", "pass_rate", "accuracy", "agreement", "kl_to_teacher"] = Field(
        description="a validation score (metric_for_best_model): nats_a_token, kd or pass_rate of a student that "
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


class Train(Loop):
    method: Method


class EncoderShape(Values):
    """An encoder with random weights (ModernBERT's architecture), reading the teacher's tokens."""

    layers: Count = 2
    hidden: Count = 128
    heads: Count = 2
    dropout: Probability = 0.1

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> EncoderShape:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"'hidden' is {self.hidden}, which {self.heads} heads cannot share in even parts")
        return self


class Encoder(Values):
    """One more arm, `encoder`: a classifier with the choices as its labels, taught on the student's examples by the
    recipe's method. It starts from a model or from random weights."""

    start: str | None = Field(None, description="hub id or folder of an encoder; its own tokenizer is used")
    revision: str | None = None
    licence: str | None = Field(None, description="of what it starts from")
    shape: EncoderShape | None = None
    epochs: Count = 3
    batch_size: Count = 32
    learning_rate: Positive = 3e-4

    @model_validator(mode="after")
    def _one_beginning(self) -> Encoder:
        if (self.start is None) == (self.shape is None):
            raise ValueError("name exactly one of 'start' and 'shape'")
        if (self.start is None) != (self.licence is None):
            raise ValueError("'licence' is that of 'start': name both or none")
        return self


class Evaluate(Values):
    batch_tokens: Count = 1024
    resamples: Annotated[int, Field(ge=100)] = 2000
    uncached_prompts: Count = Field(48, description="prompts that time the teacher without its cached prefix")
    generate_prompts: Count = Field(100, description="test prompts that the saved model answers through generate")


class Recipe(Values):
    """A whole run."""

    name: Name
    seed: Seed = 0
    prompts: Prompts
    teacher: Teacher
    answers: Answers
    verify: Verify = Verify()
    student: Student
    train: Train
    controls: tuple[Control, ...] = get_args(Control)
    encoder: Encoder | None = None
    evaluate: Evaluate = Evaluate()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _answers_agree(self) -> Recipe:
        named = {shot.answer for shot in self.teacher.examples} | set(self.prompts.answer_by_grade or {})
        if strange := sorted(named - set(self.answers.choices)):
            raise ValueError(f"answer '{strange[0]}' is not one of answers.choices {list(self.answers.choices)}")
        return self

    @model_validator(mode="after")
    def _best_is_scored(self) -> Recipe:
        scored = ("accuracy", "agreement", "kl_to_teacher")
        if self.train.best is not None and self.train.best.metric not in scored:
            raise ValueError(
                f"'train.best.metric' {self.train.best.metric} is not scored here: take one of {', '.join(scored)}"
            )
        return self


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe. Raises InputError (exit 2) with file, line, key, value and the way out."""
    return recipe_file.read(path, overrides, Recipe)
