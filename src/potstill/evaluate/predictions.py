"""What the arms of a task with choices said of the test prompts, read from their ledgers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from potstill.errors import InputError
from potstill.evaluate.metrics import Answers, Array, Ints
from potstill.evaluate.texts import verdict_of
from potstill.generate.collect import usable_answers
from potstill.recipe import Recipe
from potstill.records import Prompt, Sample
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.verify.calibrate import Calibration, calibrated, index_of, log_softmax
from potstill.verify.votes import choices_of
from potstill.verify.workers import checked


@dataclass(frozen=True, slots=True)
class Predictions:
    """The prompts that the teacher answered, with what it said of each; nobody is compared on those that it did not.
    `wrong`: what checks say against an arm's answers, and how many prompts the teacher gave no answer to."""

    recipe: Recipe
    run: RunFolder
    prompts: Sequence[Prompt]
    raw_NC: Array
    teacher_NC: Array
    wrong: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])

    @staticmethod
    def of(recipe: Recipe, run: RunFolder, calibration: Calibration) -> Predictions:
        with Requests(run.test("teacher") / "ledger.sqlite") as requests:
            samples = usable_answers(recipe.generate, requests, most=recipe.generate.n)
            rows = list(calibrated(recipe, calibration, samples))
            missing = requests.count_asks() - len(rows)
        if not rows:
            raise InputError("the teacher answered no test prompt", way_out="see what `potstill generate` says of it")
        raw_NC = np.array([sample.choice_logprobs for _, sample in rows])
        teacher_NC = np.array([sample.calibrated_logprobs for _, sample in rows])
        wrong = {"teacher": Counter({"no answer": missing})} if missing else {}
        return Predictions(recipe, run, [prompt for prompt, _ in rows], raw_NC, teacher_NC, wrong)

    def answers(self, arms: Sequence[str]) -> dict[str, Answers]:
        """Of every arm; the teacher's once more as it said them, before calibration."""
        found: dict[str, Answers] = {}
        for arm in arms:
            if arm == "teacher":
                found |= {
                    "teacher": self._of(arm, self.teacher_NC),
                    "teacher_raw": self._of("teacher_raw", log_softmax(self.raw_NC)),
                }
            else:
                found[arm] = self._of(arm, log_softmax(self._logp(arm)))
        return found

    @property
    def majority(self) -> dict[str, Any] | None:
        """What always giving the commonest answer would score: the bar below every other."""
        answers = Counter(prompt.reference for prompt in self.prompts)
        if None in answers:
            return None
        answer, count = answers.most_common(1)[0]
        return {"answer": answer, "accuracy": count / len(self.prompts)}

    def _logp(self, arm: str) -> Array:
        with Requests(self.run.test(arm) / "ledger.sqlite") as requests:
            rows = {prompt.id: sample.choice_logprobs for prompt, sample in requests.samples(most=1)}
        return np.array([rows[prompt.id] for prompt in self.prompts])

    def _of(self, arm: str, logp_NC: Array) -> Answers:
        grades = [prompt.grade for prompt in self.prompts]
        return Answers(
            logp_NC=logp_NC,
            teacher_logp_NC=self.teacher_NC,
            reference_N=references(self.recipe, self.prompts),
            grade_N=None if None in grades else np.array(grades, dtype=np.float64),
            passed_N=self._passed(arm, logp_NC),
        )

    def _passed(self, arm: str, logp_NC: Array) -> Array | None:
        """By the checks, where the recipe names some in the place of the reference."""
        how = self.recipe.evaluate
        if how is None or not how.checks:
            return None
        choices = choices_of(self.recipe)
        said = [choices[best] for best in logp_NC.argmax(axis=-1)]
        samples = [
            Sample(prompt_id=prompt.id, text=text, choice_logprobs=tuple(row), calibrated_logprobs=tuple(row))
            for prompt, text, row in zip(self.prompts, said, logp_NC.tolist(), strict=True)
        ]
        asked = zip(self.prompts, samples, strict=True)
        verdicts = [
            verdict_of(p.id, findings) for p, _, findings in checked(asked, how.checks, processes=how.processes)
        ]
        reasons = Counter(verdict.reason for verdict in verdicts if not verdict.kept)
        self.wrong[arm] = self.wrong.get(arm, Counter()) + reasons
        return np.array([verdict.kept for verdict in verdicts], dtype=np.float64)


def references(recipe: Recipe, prompts: Sequence[Prompt]) -> Ints:
    """People's answers as numbers of choices, -1 where there is none."""
    choices = choices_of(recipe)
    return np.array([-1 if p.reference is None else index_of(p.reference, choices, p) for p in prompts], dtype=np.int64)


def require_references(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Raises InputError where nobody says which answer to a test prompt is right."""
    known = recipe.evaluate is not None and recipe.evaluate.checks
    if not known and (unknown := next((p.id for p in prompts if p.reference is None), None)) is not None:
        raise InputError(
            f"the test prompt '{unknown}' has no reference: nobody says which answer is right",
            way_out="name its column in 'columns.reference', or grades in 'reference_by_grade'",
        )
