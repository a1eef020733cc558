"""A whole recipe: prompts in, n answers each out, the good ones kept, a student that learns them, and its evaluation.

Editing it never throws an answer away: answers are kept by what was asked of whom, and every one that still fits is
used again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import model_validator

from potstill.recipe import file as recipe_file
from potstill.recipe.checks import Verify
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.generate import Generate, Rescue
from potstill.recipe.methods import Sft
from potstill.recipe.prompts import Source
from potstill.recipe.scoring import ScoredBy
from potstill.recipe.select import Select
from potstill.recipe.student import Ranked, Student
from potstill.recipe.teacher import Batches, Gguf, Local, Server, Teacher
from potstill.recipe.train import TrainSettings
from potstill.recipe.values import Name, Seed, Values


class Recipe(Values):
    """Prompts, a teacher, how it is asked, and which of its answers are good."""

    name: Name
    seed: Seed = 0
    prompts: Source
    teacher: Teacher
    generate: Generate = Generate()  # pyright: ignore[reportCallIssue]
    verify: Verify | None = None
    select: Select = Select()  # pyright: ignore[reportCallIssue]
    rescue: Rescue | None = None
    student: Student | None = None
    train: TrainSettings = TrainSettings()  # pyright: ignore[reportCallIssue]
    evaluate: Evaluate | None = None

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

    def asked(self, rescue: int) -> Teacher:
        """Who wrote the answers of a rescue try; 0: the teacher."""
        again = self.rescue.tries[rescue - 1] if self.rescue and rescue else None
        return self.teacher if again is None or again.teacher is None else again.teacher

    def licences_of(self, writer: Teacher) -> str:
        """What travels with every row that `writer` wrote."""
        return f"{writer.licence} (teacher), {self.prompts.licence} (prompts)"

    @property
    def licences(self) -> str:
        """Of everything that the kept answers come from."""
        rescuers = [again.teacher for again in (self.rescue.tries if self.rescue else ()) if again.teacher]
        teachers = dict.fromkeys(writer.licence for writer in (self.teacher, *rescuers))
        return f"{', '.join(f'{licence} (teacher)' for licence in teachers)}, {self.prompts.licence} (prompts)"

    @model_validator(mode="after")
    def _selection_follows_checks(self) -> Recipe:
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
    def _somebody_scores(self) -> Recipe:
        if self.student is not None and not isinstance(self.train.method, Sft) and self.scored_by is None:
            raise ValueError(
                f"'train.method' is {self.train.method.kind}, but the teacher does not run in this process: name "
                "a model that scores its answers in 'train.scored_by', or learn by 'sft'"
            )
        return self

    @model_validator(mode="after")
    def _somebody_rewards(self) -> Recipe:
        rewards = self.train.on_policy is not None and self.train.on_policy.reward is not None
        if rewards and not (self.verify and self.verify.alone):
            raise ValueError(
                "'train.on_policy.reward' is what checks say of one answer by itself: add such a check to "
                "'verify.checks' (judges, reward models and majorities are not asked)"
            )
        return self

    @model_validator(mode="after")
    def _validations_can_be_marked(self) -> Recipe:
        if self.train.predict_with_generate and not (self.verify and self.verify.alone):
            raise ValueError(
                "'train.predict_with_generate' has one answer per prompt marked: give 'verify' a check that needs no "
                "other answer, no judge and no reward model"
            )
        return self

    @model_validator(mode="after")
    def _rescue_asks_something_new(self) -> Recipe:
        for number, again in enumerate(self.rescue.tries if self.rescue else ()):
            if self.generate.temperature == 0 and again.hint is None and again.teacher is None:
                raise ValueError(
                    f"'rescue.tries.{number}' asks the same teacher the same at temperature 0: raise "
                    "'generate.temperature' or give the try a 'hint' or a 'teacher'"
                )
        return self

    @model_validator(mode="after")
    def _budget_has_a_price(self) -> Recipe:
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


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a data recipe. Raises InputError (exit 2) with file, line, key and the way out."""
    return recipe_file.read(path, overrides, Recipe)


def is_data_recipe(path: Path) -> bool:
    """Whether the file has a `generate:` section."""
    return recipe_file.has_section(path, "generate")
