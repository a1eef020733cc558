"""A recipe of free text: prompts in, n answers each out (`potstill generate`), the good ones kept (`potstill verify`),
a student that learnt them (`potstill train`).

It is told from a whole `Recipe` by its `generate:` section. Editing it never throws an answer away: answers are kept
by what was asked of whom, and every one that still fits is used again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from potstill import recipe as recipes
from potstill.prompt_file import PromptFile
from potstill.student_recipe import Exam, Learner, Lessons
from potstill.teacher_recipe import Batches, Server, Writer
from potstill.values import Count, Name, Positive, Probability, Seed, Values
from potstill.verify_recipe import Judge, RewardModel, Select, Verification

Truncated = Literal["keep", "drop", "longer"]


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
    a_request: Count = Field(5, description="new prompts asked for in a request")
    overlap: Probability = Field(0.5, description="share of word triples above which a prompt is a near-duplicate")
    max_tokens: Count = 512

    @property
    def licence(self) -> str:
        return self.seeds.licence


def _source_kind(given: object) -> str:
    kind = cast("dict[str, object]", given).get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
    return str(kind or "file")


Source = Annotated[
    Annotated[PromptFile, Tag("file")]
    | Annotated[ReasoningGym, Tag("reasoning_gym")]
    | Annotated[Expand, Tag("expand")],
    Discriminator(_source_kind),
]


class Generate(Values):
    """How many answers a prompt, sampled how, for how much.

    `truncated` says what becomes of an answer that reached max_tokens: kept, dropped, or asked again with twice the
    tokens up to `longest`. `parameters` are sent as they are (reasoning_effort, chat_template_kwargs, ...).
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
        if taken := sorted({"model", "messages", "n", "seed", "stream", "max_tokens"} & set(self.parameters)):
            raise ValueError(f"'parameters' may not set '{taken[0]}': the engine does")
        return self


class DataRecipe(Values):
    """Prompts, a teacher, how it is asked, and which of its answers are good."""

    name: Name
    seed: Seed = 0
    prompts: Source
    teacher: Writer
    generate: Generate = Generate()  # pyright: ignore[reportCallIssue]
    verify: Verification | None = None
    select: Select = Select()  # pyright: ignore[reportCallIssue]
    student: Learner | None = None
    train: Lessons = Lessons()  # pyright: ignore[reportCallIssue]
    evaluate: Exam | None = None

    @property
    def licensed(self) -> dict[str, str]:
        """Everything with a licence, by its key in the recipe: all are checked before anything is paid."""
        found = {"teacher.licence": self.teacher.licence, "prompts.licence": self.prompts.licence}
        if self.student is not None:
            found["student.licence"] = self.student.licence
        for number, check in enumerate(self.verify.checks if self.verify else ()):
            if isinstance(check, Judge):
                found[f"verify.checks.{number}.teacher.licence"] = check.teacher.licence
            elif isinstance(check, RewardModel):
                found[f"verify.checks.{number}.licence"] = check.licence
        if self.evaluate is not None:
            found["evaluate.prompts.licence"] = self.evaluate.prompts.licence
        return found

    @property
    def licences(self) -> str:
        """What travels with every row."""
        return f"{self.teacher.licence} (teacher), {self.prompts.licence} (prompts)"

    @model_validator(mode="after")
    def _selection_follows_checks(self) -> DataRecipe:
        if self.verify is None and self.select != Select():  # pyright: ignore[reportCallIssue]
            raise ValueError("'select' chooses among checked answers: add 'verify' with its checks")
        if self.student is None and self.evaluate is not None:
            raise ValueError("'evaluate' examines a student: add 'student'")
        return self

    @model_validator(mode="after")
    def _budget_has_a_price(self) -> DataRecipe:
        exam = self.evaluate.budget if self.evaluate else None
        paid = isinstance(self.teacher.engine, Server | Batches)
        for key, budget in (("generate.budget", self.generate.budget), ("evaluate.budget", exam)):
            if budget is not None and not (paid and self.generate.prices):
                raise ValueError(f"'{key}' needs a served teacher and a price file ('generate.prices')")
        if self.evaluate and self.generate.budget is not None and exam is None:
            raise ValueError("'generate.budget' does not cover the exam: say what that may cost in 'evaluate.budget'")
        return self


def load(path: Path, overrides: Iterable[str] = ()) -> DataRecipe:
    """Read a data recipe. Raises InputError (exit 2) with file, line, key and the way out."""
    return recipes.read(path, overrides, DataRecipe)


def is_data_recipe(path: Path) -> bool:
    """Whether the file has a `generate:` section."""
    return recipes.has_section(path, "generate")
