"""A whole recipe: which prompts, which teacher, which checks, which student, which method, which test set.

Editing it never throws an answer away: answers are kept by what was asked of whom, and every one that still fits is
used again.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from potstill.recipe.checks import Verify
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.generate import Generate, Rescue
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.prompts import PromptFile, Source
from potstill.recipe.request import GenerationRequest
from potstill.recipe.rules import RULES
from potstill.recipe.scoring import ScoredBy
from potstill.recipe.select import Select
from potstill.recipe.student import AnyStudent
from potstill.recipe.task import Choice, Task, Text
from potstill.recipe.teacher import Gguf, Local, Teacher
from potstill.recipe.train import TrainSettings
from potstill.recipe.values import Name, Seed, Values

Control = Literal["base", "from_scratch", "hard_labels", "sft", "tfidf"]
"""base: the student before its first step. from_scratch: its shape, random weights. hard_labels, sft: its method is
plain fine-tuning on the teacher's answers, of choices and of texts. tfidf: TF-IDF and logistic regression on those."""


class Recipe(Values):
    """One task from prompts to a student that does it, and what the student is compared with."""

    name: Name
    seed: Seed = 0
    task: Task = Text()
    prompts: Source
    teacher: Teacher
    generate: Generate = Generate()  # pyright: ignore[reportCallIssue]
    verify: Verify | None = None
    select: Select = Select()  # pyright: ignore[reportCallIssue]
    rescue: Rescue | None = None
    student: AnyStudent | None = None
    train: TrainSettings = TrainSettings()  # pyright: ignore[reportCallIssue]
    controls: tuple[Control, ...] | None = Field(
        None, description="by default base, and of choices from_scratch, hard_labels and tfidf too"
    )
    arms: dict[Name, dict[str, JsonValue]] = Field(
        default_factory=dict[str, Any],
        description="name -> overrides of `student` and `train`, such as student.layers: 2",
    )
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for rule in RULES:
            rule(self)
        return self

    @property
    def request(self) -> GenerationRequest:
        """What the teacher is asked to learn from; the test prompts are asked by `evaluate`."""
        return GenerationRequest(
            prompts=self.prompts,
            teacher=self.teacher,
            generate=self.generate,
            seed=self.seed,
            task=self.task,
            splits=("train", "validation") if self.has_split else None,
        )

    @property
    def has_split(self) -> bool:
        """Whether `prompts` holds validation and test prompts too."""
        return isinstance(self.prompts, PromptFile) and self.prompts.split is not None

    @property
    def compared(self) -> tuple[Control, ...]:
        """The controls, the default ones where the recipe names none."""
        if self.controls is not None:
            return self.controls
        if isinstance(self.task, Text):
            return ("base",)
        controls: list[Control] = ["base"]
        if self.student is not None and self.student.has_learned:
            controls.append("from_scratch")
        if isinstance(self.train.method, LogitKd):
            controls.append("hard_labels")
        return (*controls, "tfidf")

    @property
    def judged(self) -> bool:
        """Whether answers are chosen before anybody learns them: those of choices are calibrated at least."""
        return self.verify is not None or isinstance(self.task, Choice)

    @property
    def test_prompts(self) -> Source | None:
        """Where the test prompts are: in a source of their own, or held out of `prompts`."""
        if self.evaluate is None:
            return None
        return self.evaluate.prompts or self.prompts

    @property
    def licensed(self) -> dict[str, str]:
        """Everything with a licence, by its key in the recipe: all are checked before anything is paid."""
        found = {"teacher.licence": self.teacher.licence, "prompts.licence": self.prompts.licence}
        if self.student is not None and self.student.licence is not None:
            found["student.licence"] = self.student.licence
        if self.verify is not None:
            found |= {f"verify.{key}": licence for key, licence in self.verify.licensed.items()}
        if self.train.scored_by is not None:
            found["train.scored_by.licence"] = self.train.scored_by.licence
        if self.evaluate is not None and self.evaluate.prompts is not None:
            found["evaluate.prompts.licence"] = self.evaluate.prompts.licence
        for number, again in enumerate(self.rescue.tries if self.rescue else ()):
            if again.teacher is not None:
                found[f"rescue.tries.{number}.teacher.licence"] = again.teacher.licence
        return found

    def asked(self, rescue: int) -> Teacher:
        """Who wrote the answers of a rescue try; 0: the teacher."""
        again = self.rescue.tries[rescue - 1] if self.rescue and rescue else None
        return self.teacher if again is None or again.teacher is None else again.teacher

    def licences_of(self, teacher: Teacher) -> str:
        """What travels with every row that `teacher` wrote."""
        return f"{teacher.licence} (teacher), {self.prompts.licence} (prompts)"

    @property
    def licences(self) -> str:
        """Of everything that the kept answers come from."""
        rescuers = [again.teacher for again in (self.rescue.tries if self.rescue else ()) if again.teacher]
        teachers = dict.fromkeys(teacher.licence for teacher in (self.teacher, *rescuers))
        return f"{', '.join(f'{licence} (teacher)' for licence in teachers)}, {self.prompts.licence} (prompts)"

    @property
    def scored_by(self) -> ScoredBy | None:
        """Who scores the kept answers token by token: the model named for it, or the teacher where it runs here."""
        if self.train.scored_by is not None or isinstance(self.train.method, Sft) or isinstance(self.task, Choice):
            return self.train.scored_by
        match self.teacher.engine:
            case Local(template=template):
                pass
            case Gguf():
                template = None
            case _:
                return None
        teacher = self.teacher
        return ScoredBy.model_validate(
            {"model": teacher.model, "revision": teacher.revision, "licence": teacher.licence, "template": template}
        )
