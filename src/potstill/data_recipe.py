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

from potstill import recipe_file
from potstill.prompt_file import PromptFile
from potstill.recipe import Sft
from potstill.student_recipe import Exam, Learner, Lessons, Ranked, ScoredBy
from potstill.teacher_recipe import Batches, Gguf, Local, Server, Writer
from potstill.values import Count, Name, Positive, Probability, Seed, Values
from potstill.verify_recipe import Select, Verification

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


class Try(Values):
    """`samples` answers to each prompt that is still without a passed one: by the same teacher or another, with its
    instructions or a `hint` after them. The student never sees the hint."""

    samples: Count
    hint: str | None = Field(None, min_length=1)
    teacher: Writer | None = None


class Rescue(Values):
    """Ask again where no answer passed, so that checks do not silently drop what is hard. The tries come in turn; the
    first that brings a passed answer ends it for that prompt."""

    tries: tuple[Try, ...] = Field(min_length=1)
    budget: Positive | None = Field(None, description="US dollars for all tries together, beyond generate.budget")


class DataRecipe(Values):
    """Prompts, a teacher, how it is asked, and which of its answers are good."""

    name: Name
    seed: Seed = 0
    prompts: Source
    teacher: Writer
    generate: Generate = Generate()  # pyright: ignore[reportCallIssue]
    verify: Verification | None = None
    select: Select = Select()  # pyright: ignore[reportCallIssue]
    rescue: Rescue | None = None
    student: Learner | None = None
    train: Lessons = Lessons()  # pyright: ignore[reportCallIssue]
    evaluate: Exam | None = None

    @property
    def licensed(self) -> dict[str, str]:
        """Everything with a licence, by its key in the recipe: all are checked before anything is paid."""
        found = {"teacher.licence": self.teacher.licence, "prompts.licence": self.prompts.licence}
        if self.student is not None:
            found["student.licence"] = self.student.licence
        if self.verify is not None:
            found |= {f"verify.{key}": licence for key, licence in self.verify.licensed.items()}
        if self.train.scored_by is not None:
            found["train.scored_by.licence"] = self.train.scored_by.licence
        if self.evaluate is not None:
            found["evaluate.prompts.licence"] = self.evaluate.prompts.licence
        for number, again in enumerate(self.rescue.tries if self.rescue else ()):
            if again.teacher is not None:
                found[f"rescue.tries.{number}.teacher.licence"] = again.teacher.licence
        return found

    def asked(self, rescue: int) -> Writer:
        """Who wrote the answers of a rescue try; 0: the teacher."""
        again = self.rescue.tries[rescue - 1] if self.rescue and rescue else None
        return self.teacher if again is None or again.teacher is None else again.teacher

    def licences_of(self, writer: Writer) -> str:
        """What travels with every row that `writer` wrote."""
        return f"{writer.licence} (teacher), {self.prompts.licence} (prompts)"

    @property
    def licences(self) -> str:
        """Of everything that the kept answers come from."""
        rescuers = [again.teacher for again in (self.rescue.tries if self.rescue else ()) if again.teacher]
        teachers = dict.fromkeys(writer.licence for writer in (self.teacher, *rescuers))
        return f"{', '.join(f'{licence} (teacher)' for licence in teachers)}, {self.prompts.licence} (prompts)"

    @model_validator(mode="after")
    def _selection_follows_checks(self) -> DataRecipe:
        if self.verify is None and self.select != Select():  # pyright: ignore[reportCallIssue]
            raise ValueError("'select' chooses among checked answers: add 'verify' with its checks")
        if self.verify is None and self.rescue is not None:
            raise ValueError("'rescue' asks again where no answer passed the checks: add 'verify' with its checks")
        if self.student is None and self.select.prefer == "learnable":
            raise ValueError("'select.prefer: learnable' is the student's own opinion of the answers: add 'student'")
        if self.student is not None and self.select.prefer == "learnable" and isinstance(self.student.layers, Ranked):
            raise ValueError(
                "'select.prefer: learnable' asks the student which answers to keep, and ranked 'student.layers' ask "
                "those which layers it has: list the layers, or take them spaced"
            )
        if self.student is None and self.evaluate is not None:
            raise ValueError("'evaluate' examines a student: add 'student'")
        return self

    @property
    def scored_by(self) -> ScoredBy | None:
        """Who scores the kept answers token by token: the model named for it, or the teacher where it runs here."""
        if self.train.scored_by is not None or isinstance(self.train.method, Sft):
            return self.train.scored_by
        match self.teacher.engine:
            case Local(template=template):
                pass
            case Gguf():
                template = None
            case _:
                return None
        writer = self.teacher
        return ScoredBy.model_validate(
            {"model": writer.model, "revision": writer.revision, "licence": writer.licence, "template": template}
        )

    @model_validator(mode="after")
    def _somebody_scores(self) -> DataRecipe:
        if self.student is not None and not isinstance(self.train.method, Sft) and self.scored_by is None:
            raise ValueError(
                f"'train.method' is {self.train.method.kind}, but the teacher does not run in this process: name "
                "a model that scores its answers in 'train.scored_by', or learn by 'sft'"
            )
        return self

    @model_validator(mode="after")
    def _somebody_rewards(self) -> DataRecipe:
        rewards = self.train.on_policy is not None and self.train.on_policy.reward is not None
        if rewards and not (self.verify and self.verify.alone):
            raise ValueError(
                "'train.on_policy.reward' is what checks say of one answer by itself: add such a check to "
                "'verify.checks' (judges, reward models and majorities are not asked)"
            )
        return self

    @model_validator(mode="after")
    def _validations_can_be_marked(self) -> DataRecipe:
        if self.train.predict_with_generate and not (self.verify and self.verify.alone):
            raise ValueError(
                "'train.predict_with_generate' has one answer a prompt marked: give 'verify' a check that needs no "
                "other answer, no judge and no reward model"
            )
        return self

    @model_validator(mode="after")
    def _rescue_asks_something_new(self) -> DataRecipe:
        for number, again in enumerate(self.rescue.tries if self.rescue else ()):
            if self.generate.temperature == 0 and again.hint is None and again.teacher is None:
                raise ValueError(
                    f"'rescue.tries.{number}' asks the same teacher the same at temperature 0: raise "
                    "'generate.temperature' or give the try a 'hint' or a 'teacher'"
                )
        return self

    @model_validator(mode="after")
    def _budget_has_a_price(self) -> DataRecipe:
        exam = self.evaluate.budget if self.evaluate else None
        paid = isinstance(self.teacher.engine, Server | Batches)
        tries = range(1, len(self.rescue.tries) + 1) if self.rescue else ()
        again = any(isinstance(self.asked(number).engine, Server | Batches) for number in tries)
        saved = self.rescue.budget if self.rescue else None
        for key, budget, served in (
            ("generate.budget", self.generate.budget, paid),
            ("evaluate.budget", exam, paid),
            ("rescue.budget", saved, again),
        ):
            if budget is not None and not (served and self.generate.prices):
                raise ValueError(f"'{key}' needs a served teacher and a price file ('generate.prices')")
        if again and self.generate.budget is not None and saved is None:
            raise ValueError("'generate.budget' does not cover the rescue: say what that may cost in 'rescue.budget'")
        if self.evaluate and self.generate.budget is not None and exam is None:
            raise ValueError("'generate.budget' does not cover the exam: say what that may cost in 'evaluate.budget'")
        return self


def load(path: Path, overrides: Iterable[str] = ()) -> DataRecipe:
    """Read a data recipe. Raises InputError (exit 2) with file, line, key and the way out."""
    return recipe_file.read(path, overrides, DataRecipe)


def is_data_recipe(path: Path) -> bool:
    """Whether the file has a `generate:` section."""
    return recipe_file.has_section(path, "generate")
