"""An arm's answers to the test prompts: a ledger of its own in `test/ARM/` of the run folder.

Every finished batch is there at once, so that an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from potstill.engines.local import ScoredBatch
from potstill.generate.ask import ask
from potstill.generate.choices import keep_batch
from potstill.generate.collect import Asking, load_asks
from potstill.generate.waves import written
from potstill.prompts.stream import stream_prompts
from potstill.recipe import GenerationRequest, Recipe, arms_of
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.generate import Generate
from potstill.recipe.prompts import Source
from potstill.recipe.student import Encoder, Student
from potstill.recipe.teacher import Teacher
from potstill.records import Progress, Prompt, Watch
from potstill.store.requests import Requests
from potstill.store.run import STUDENT, RunFolder, open_ledger

Measured = dict[str, float]
"""What was measured of an arm while it answered."""


@dataclass(frozen=True, slots=True)
class ArmTest:
    """One arm before the test prompts. `made_of`: under what its weights were trained, so that answers of earlier ones
    do not count."""

    recipe: Recipe
    run: RunFolder
    arm: str
    made_of: str
    watch: Watch

    @property
    def settings(self) -> Evaluate:
        assert self.recipe.evaluate is not None
        return self.recipe.evaluate

    @property
    def source(self) -> Source:
        assert self.recipe.test_prompts is not None
        return self.recipe.test_prompts

    @property
    def student(self) -> Student | Encoder:
        """Of the arm; `base` is the recipe's own before its first step."""
        arm = STUDENT if self.arm == "base" else self.arm
        return next(one.student for one in arms_of(self.recipe) if one.name == arm)

    def prompts(self) -> list[Prompt]:
        task, seed = self.recipe.task, self.recipe.seed
        return list(stream_prompts(self.source, Counter(), task=task, seed=seed, splits=("test",)))

    def answer(self, teacher: Teacher, how: Generate) -> None:
        """Have them answered by `teacher`, a model folder perhaps. Raises a PotstillError; what was heard is kept."""
        request = GenerationRequest(
            prompts=self.source,
            teacher=teacher,
            generate=how,
            seed=self.recipe.seed,
            task=self.recipe.task,
            splits=("test",),
        )
        with open_ledger(self.run.test(self.arm)) as requests:
            _take_over(request, self.run, requests)
            ask(request, requests, Asking(most=how.n), self._asking)

    def tell(self, done: int, total: int, note: str = "") -> None:
        self.watch(Progress(stage="evaluate", what=self.arm, done=done, total=total, note=note))

    def _asking(self, progress: Progress) -> None:
        self.watch(replace(progress, stage="evaluate", what=f"{self.arm}: {progress.what}"))


def _take_over(request: GenerationRequest, run: RunFolder, requests: Requests) -> None:
    """What the run's own ledger holds under the same questions is not asked again."""
    load_asks(request, requests)
    with Requests(run.ledger) as own, requests.transaction():
        for asked in requests.open_asks():
            known = {row.sample for row in asked.written if row.given_up is None}
            found = own.samples_of(asked.key, asked.prompts[0].id, most=request.generate.n)
            requests.put_written(
                written(
                    asked.question,
                    sample.index,
                    sample,
                    attempt=0,
                    max_tokens=request.generate.max_tokens,
                    teacher=request.teacher,
                )
                for sample in found
                if sample.index not in known
            )


@dataclass(frozen=True, slots=True)
class ScoredPrompts:
    """The ledger of an arm whose distributions over the choices this process computes. `questions`: those that are
    open, by the position of their prompt among all."""

    test: ArmTest
    requests: Requests
    choices: Sequence[str]
    prompts: Sequence[Prompt]
    questions: dict[int, int]

    @property
    def answered(self) -> frozenset[int]:
        return frozenset(range(len(self.prompts))) - self.questions.keys()

    def put(self, batch: ScoredBatch, lengths: Sequence[int]) -> None:
        """A finished batch; `lengths` are the tokens of every prompt."""
        asked = [self.questions.pop(position) for position in batch.positions]
        tokens = [lengths[position] for position in batch.positions]
        keep_batch(self.requests, asked, batch, tokens, self.choices)
        self.test.tell(len(self.answered), len(self.prompts))


@contextmanager
def open_scored(test: ArmTest, choices: Sequence[str]) -> Generator[ScoredPrompts]:
    """The arm's ledger, with the answers that it gave as it is now."""
    prompts = test.prompts()
    with open_ledger(test.run.test(test.arm)) as requests:
        keys = [hashlib.sha256(repr((test.made_of, prompt)).encode()).digest()[:16] for prompt in prompts]
        mark = hashlib.sha256(b"".join(keys)).hexdigest()
        if requests.mark("asks") != mark:
            with requests.transaction():
                requests.put_asks(zip(prompts, keys, strict=True))
                requests.put_mark("asks", mark)
        place = {prompt.id: position for position, prompt in enumerate(prompts)}
        asked = requests.first_answers()
        questions = {place[prompt.id]: question for question, prompt, answered in asked if not answered}
        yield ScoredPrompts(test, requests, choices, prompts, questions)
