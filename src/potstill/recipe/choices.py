"""The recipe of a handful of allowed answers, until it is a task of the whole recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from potstill.recipe import file as recipe_file
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.prompts import TextColumns
from potstill.recipe.teacher import Shot
from potstill.recipe.train import Loop
from potstill.recipe.values import Count, Name, Positive, Probability, Seed, Values

Control = Literal["base", "from_scratch", "hard_labels", "floor"]


class ChoiceColumns(TextColumns):
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


class ChoicePrompts(Values):
    """Where the prompts come from: a JSONL, CSV/TSV or Parquet file, or a folder saved by `datasets`."""

    source: str
    licence: str = Field(description="licence of the prompts, an SPDX id or a Hugging Face tag")
    columns: ChoiceColumns
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    answer_by_grade: dict[str, tuple[float, float]] | None = Field(
        None, description="answer -> [lowest, highest] grade; rows outside every range are left out"
    )
    split: SplitSizes

    @model_validator(mode="after")
    def _people_answered(self) -> ChoicePrompts:
        if self.answer_by_grade and self.columns.grade is None:
            raise ValueError("'answer_by_grade' needs 'columns.grade'")
        if not self.answer_by_grade and self.columns.answer is None:
            raise ValueError("evaluation needs people's answers: name 'columns.answer' or 'answer_by_grade'")
        return self


class ChoiceTeacher(Values):
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


class ChoiceVerify(Values):
    """A teacher answer is kept when its mass on the allowed answers and its calibrated confidence suffice."""

    min_allowed_mass: Probability = 0.0
    min_confidence: Probability = 0.0


class ChoiceStudent(Values):
    """The teacher's embeddings and its first `layers` layers, with a template of its own."""

    layers: Count
    freeze_embeddings: bool = Field(True, description="keep the teacher's embeddings, and its head where they are tied")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="keep that many first layers as the teacher's too"
    )
    template: str | None = None

    @model_validator(mode="after")
    def _something_learns(self) -> ChoiceStudent:
        if self.freeze_layers >= self.layers:
            raise ValueError(f"'freeze_layers' is {self.freeze_layers}: no layer of {self.layers} would learn")
        return self


ChoiceMethod = Annotated[Sft | LogitKd, Field(discriminator="kind")]


class ChoiceTrain(Loop):
    method: ChoiceMethod


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


class ChoiceEvaluate(Values):
    batch_tokens: Count = 1024
    resamples: Annotated[int, Field(ge=100)] = 2000
    uncached_prompts: Count = Field(48, description="prompts that time the teacher without its cached prefix")
    generate_prompts: Count = Field(100, description="test prompts that the saved model answers through generate")


class ChoiceRecipe(Values):
    """A whole run."""

    name: Name
    seed: Seed = 0
    prompts: ChoicePrompts
    teacher: ChoiceTeacher
    answers: Answers
    verify: ChoiceVerify = ChoiceVerify()
    student: ChoiceStudent
    train: ChoiceTrain
    controls: tuple[Control, ...] = get_args(Control)
    encoder: Encoder | None = None
    evaluate: ChoiceEvaluate = ChoiceEvaluate()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _answers_agree(self) -> ChoiceRecipe:
        named = {shot.answer for shot in self.teacher.examples} | set(self.prompts.answer_by_grade or {})
        if strange := sorted(named - set(self.answers.choices)):
            raise ValueError(f"answer '{strange[0]}' is not one of answers.choices {list(self.answers.choices)}")
        return self

    @model_validator(mode="after")
    def _best_is_scored(self) -> ChoiceRecipe:
        scored = ("accuracy", "agreement", "kl_to_teacher")
        if self.train.best is not None and self.train.best.metric not in scored:
            raise ValueError(
                f"'train.best.metric' {self.train.best.metric} is not scored here: take one of {', '.join(scored)}"
            )
        return self


def load_choice_recipe(path: Path, overrides: Iterable[str] = ()) -> ChoiceRecipe:
    """Read a recipe. Raises InputError (exit 2) with file, line, key, value and the way out."""
    return recipe_file.read(path, overrides, ChoiceRecipe)
