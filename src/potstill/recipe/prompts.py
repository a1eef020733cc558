"""Where prompts come from (`prompts`): a file or a folder, and which of its columns holds what; procedural
tasks; or what the teacher writes after a few."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, Tag, model_validator

from potstill.recipe.values import Count, Probability, Values, by_kind


class TextColumns(Values):
    """Which column of the source holds what; `data.question` is the column `question` of the object `data`. `text`
    becomes one user turn, `messages` is the conversation so far: a list of turns or its JSON text, also in ShareGPT's
    form. Where it ends with the assistant's turn, that turn is left out."""

    text: str | tuple[str, ...] | None = Field(
        default=None,
        description="a column; several, which are joined by a newline; or a Jinja template of columns, such as "
        "'{{ instruction }}: {{ input }}'",
    )
    messages: str | None = None
    ignored: tuple[str, ...] = Field(
        default=(), description="fields of messages that are not asked, such as timestamp: others are refused"
    )
    id: str | None = None

    @model_validator(mode="after")
    def _one_source_of_text(self) -> TextColumns:
        if (self.text is None) == (self.messages is None):
            raise ValueError("name exactly one of 'text' and 'messages'")
        if self.text == ():
            raise ValueError("'text' names no column")
        return self


class Columns(TextColumns):
    """`reference`: what checks compare with (a gold answer, unit tests); any JSON value. Any of a list of texts or
    numbers is right, but an answer's code passes all of a list of tests. Where there are choices it is a person's
    answer. It is never trained on. `tools`: definitions of functions that may be called, in OpenAI's form: a list or
    its JSON text."""

    reference: str | None = None
    grade: str | None = Field(None, description="a person's graded rating, used to evaluate")
    tools: str | None = None


class SplitSizes(Values):
    """How many prompts of one source train, validate and test: drawn by a hash of their text."""

    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


class DataFiles(Values):
    """A JSONL, JSON, CSV/TSV or Parquet file (text also as .gz), or a folder of them: saved by `datasets`, or as it
    lies on the Hugging Face hub."""

    source: str
    source_split: str | None = Field(
        default=None, description="which split of a folder that holds several is read, such as train"
    )
    header: tuple[str, ...] | None = Field(default=None, description="column names of a CSV that has no header line")
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="what stands between the cells of a CSV; by default found in its first lines",
    )


class PromptFile(DataFiles):
    """Prompts from files. Streamed: they may be millions; with a `split` they are read whole."""

    kind: Literal["file"] = "file"
    licence: str = Field(description="licence of the prompts, an SPDX id or a Hugging Face tag")
    columns: Columns
    reference_by_grade: dict[str, tuple[float, float]] | None = Field(
        None, description="reference -> [lowest, highest] grade; rows outside every range are left out"
    )
    split: SplitSizes | None = Field(None, description="one source for all; else test prompts are `evaluate.prompts`")

    @model_validator(mode="after")
    def _graded(self) -> PromptFile:
        if self.reference_by_grade and self.columns.grade is None:
            raise ValueError("'reference_by_grade' needs 'columns.grade'")
        if self.reference_by_grade and self.columns.reference is not None:
            raise ValueError("'reference_by_grade' makes the reference: leave 'columns.reference' out")
        return self


class ReasoningGym(Values):
    """Procedural tasks from the package reasoning-gym: as many as wanted, the same for the same seed."""

    kind: Literal["reasoning_gym"]
    task: str = Field(description="a name such as chain_sum")
    size: Count
    config: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue], description="the task's own settings, such as {max_terms: 2}"
    )
    licence: Literal["apache-2.0"] = "apache-2.0"


class Expand(Values):
    """New prompts that the teacher writes after a few of yours. It is asked until there are `to`, or five times the
    requests that should do."""

    kind: Literal["expand"]
    seeds: PromptFile
    to: Count = Field(description="how many prompts, the seeds among them")
    show: Count = Field(4, description="seeds shown in a request")
    per_request: Count = Field(5, description="new prompts asked for in a request")
    overlap: Probability = Field(0.5, description="share of word triples above which a prompt is a near-duplicate")
    max_tokens: Count = 512

    @property
    def licence(self) -> str:
        return self.seeds.licence


Source = Annotated[
    Annotated[PromptFile, Tag("file")]
    | Annotated[ReasoningGym, Tag("reasoning_gym")]
    | Annotated[Expand, Tag("expand")],
    by_kind("file"),
]
