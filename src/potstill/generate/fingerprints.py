"""What each stage of a run is made from, as a hash: a stage that finished under the same one is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import InputError
from potstill.models.identity import identity, named, weights
from potstill.models.precision import resolved
from potstill.prompts.stream import files_mark, source_mark
from potstill.recipe import Arm, Recipe
from potstill.recipe.student import Encoder, Student
from potstill.recipe.teacher import Canned, Gguf, Local, Teacher
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.store.stages import Stages


def hashed(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of the stages of one run."""

    recipe: Recipe
    run: RunFolder

    @property
    def generate(self) -> str:
        request = self.recipe.request.model_dump(mode="json", exclude={"generate": {"budget", "prices"}})
        return hashed(request, source_mark(self.recipe.prompts), *self._writer(self.recipe.teacher))

    @property
    def verify(self) -> str:
        """The answers that there are, what is asked of them, and who says what is learnable."""
        sections = self.recipe.model_dump(mode="json", include={"task", "verify", "select", "rescue", "generate"})
        learnable = self.recipe.select.prefer == "learnable"
        student = self._student(self.recipe.student) if learnable and self.recipe.student else ""
        forbidden = self.recipe.select.evaluation
        return hashed(sections, self._answers(), files_mark(forbidden.source) if forbidden else "", student)

    def train(self, arm: Arm) -> str:
        """The kept answers, the student, how it is trained and by whom; and the checks where they reward it."""
        recipe, settings = arm.recipe, arm.recipe.train
        values = recipe.model_dump(mode="json", include={"task", "student", "train", "seed"})
        del values["train"]["report_to"]  # curves that are drawn elsewhere too make no other student
        del values["train"]["precision"]  # what it resolves to counts
        if rollouts := values["train"]["on_policy"]:
            rollouts["engine"] = rollouts["engine"] is not None  # nor does another address of the server that writes
        rewarded = settings.predict_with_generate or (settings.on_policy is not None and settings.on_policy.reward)
        checks = recipe.verify.model_dump(mode="json") if rewarded and recipe.verify else None
        scorer = recipe.scored_by and identity(recipe.scored_by)
        return hashed(
            self._examples(), values, checks, scorer, self._student(arm.student), resolved(settings.precision)
        )

    def evaluate(self, trained: Mapping[str, str]) -> dict[str, str]:
        """Of every arm that answers the test prompts; `trained`: under what each trained one was."""
        assert self.recipe.evaluate is not None
        how = self.recipe.evaluate.model_dump(mode="json", exclude={"resamples", "budget"})
        asked = self.recipe.model_dump(mode="json", include={"task", "generate", "seed", "prompts"})
        tested = self.recipe.test_prompts
        test = hashed(how, asked, tested and source_mark(tested), resolved(self.recipe.train.precision))
        teacher = hashed(test, self.recipe.teacher.model_dump(mode="json"), *self._writer(self.recipe.teacher))
        found = {"teacher": teacher, **{arm: hashed(test, fingerprint) for arm, fingerprint in trained.items()}}
        for control in self.recipe.compared:
            if control == "base":
                found["base"] = hashed(test, "base", trained["student"])
            if control == "tfidf":
                found["tfidf"] = hashed(test, self._examples(), self.recipe.seed)
        return found

    def _writer(self, teacher: Teacher) -> Sequence[Any]:
        """Whose answers they are; and the precision, where they are computed in this process, or the file of canned
        ones."""
        here = isinstance(teacher.engine, Local | Gguf)
        canned = files_mark(teacher.engine.answers) if isinstance(teacher.engine, Canned) else ""
        return (identity(teacher), resolved(self.recipe.train.precision) if here else canned)

    def _student(self, student: Student | Encoder) -> str:
        start = student.start if isinstance(student, Student) else student.start or student.tokenizer
        assert start is not None
        return weights(start, student.revision) or named(start, student.revision)

    def _answers(self) -> Sequence[Any]:
        if not self.run.ledger.is_file():
            return ()
        with Requests(self.run.ledger) as requests:
            return (requests.mark("asks"), requests.state())

    def _examples(self) -> str:
        kept = self.run.kept(verified=self.recipe.judged)
        return hashlib.sha256(kept.read_bytes()).hexdigest() if kept.is_file() else ""


@dataclass(frozen=True, slots=True)
class TrainedArms:
    """Which arms were trained, from what."""

    recipe: Recipe
    run: RunFolder
    stages: Stages

    def fingerprint(self, arm: Arm) -> str:
        return Fingerprints(self.recipe, self.run).train(arm)

    def has(self, arm: Arm) -> bool:
        there = (self.run.arm_model(arm.name) / "config.json").is_file()
        return there and self.stages.finished(f"train:{arm.name}") == self.fingerprint(arm)

    def forget(self, arm: Arm) -> None:
        """From here on its model folder may be either student."""
        self.stages.forget(f"train:{arm.name}")

    def finish(self, arm: Arm, fingerprint: str, seconds: float) -> None:
        self.stages.finish(f"train:{arm.name}", fingerprint, seconds)

    def require(self, arm: Arm) -> str:
        """Under what it was trained. Raises InputError where it was not, or not from what there is now."""
        found = self.stages.finished(f"train:{arm.name}")
        if found is None or not (self.run.arm_model(arm.name) / "config.json").is_file():
            raise InputError(f"there is no {arm.name} in '{self.run.path}' yet", way_out="potstill train first")
        return found
