"""The late checks, asked: judges and reward models say what they think of a prompt's answers.

A judge's questions have a ledger of their own, in `judge/NAME/` of the run folder: what was paid for is never asked for
again, whoever verifies, `potstill verify` or `potstill rescue`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from potstill.engines.choose import sampler_for
from potstill.errors import PotstillError
from potstill.generate.ask import answered
from potstill.generate.collect import price_of
from potstill.generate.rescue import prompts_in
from potstill.models.locate import facts, locate
from potstill.recipe import GenerationRequest, Recipe
from potstill.recipe.checks import Judge, RewardModel
from potstill.recipe.generate import Generate
from potstill.recipe.prompts import Columns
from potstill.recipe.teacher import Local
from potstill.records import Progress, Watch
from potstill.store.files import drafted
from potstill.store.requests import Requests
from potstill.verify.late import Group, in_question, judged, questions, rewarded, with_findings

_AT_ONCE = 64  # times batch_size: prompts whose answers are batched by length together


@dataclass(frozen=True, slots=True)
class Judging:
    """Late checks, streamed. `totals`: the sums of the ledgers of the judges asked so far."""

    recipe: Recipe
    place: Path
    watch: Watch
    totals: dict[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    def grade(self, check: Judge | RewardModel, groups: Iterator[Group]) -> Iterator[Group]:
        return self._judge(check, groups) if isinstance(check, Judge) else self._reward(check, groups)

    def _judge(self, check: Judge, groups: Iterator[Group]) -> Iterator[Group]:
        """The judge is asked everything at once, so the answers wait on disk; those of one prompt are in memory."""
        assert self.recipe.verify is not None
        folder, verification = self.place / "judge" / check.name, self.recipe.verify
        file = folder.with_name(f"{check.name}.jsonl")
        count = asked = 0
        with tempfile.TemporaryFile() as waiting:
            with drafted(file) as draft, draft.open("w", encoding="utf-8") as lines:
                for group in groups:
                    pickle.dump(group, waiting)
                    count += 1
                    for question in questions(check, group, verification):
                        lines.write(json.dumps({"id": _question_id(question), "text": question}) + "\n")
                        asked += 1
            self.totals[check.name] = {}
            if asked:
                judging, watch = _judging(self.recipe, check, file), partial(_relabelled, self.watch, check)
                self.totals[check.name] = answered(judging, folder, watch).totals
            waiting.seek(0)
            with Requests(folder / "ledger.sqlite") if asked else nullcontext() as requests:
                for _ in range(count):
                    group: Group = pickle.load(waiting)  # our own, from this process
                    yield judged(
                        check, group, verification, lambda q: requests and requests.first_answer(_question_id(q))
                    )

    def _reward(self, check: RewardModel, groups: Iterator[Group]) -> Iterator[Group]:
        assert self.recipe.verify is not None
        from potstill.engines.reward import RewardScorer  # torch takes seconds

        scorer, verification = RewardScorer(check), self.recipe.verify
        while some := list(islice(groups, _AT_ONCE * check.batch_size)):
            good = [in_question(group, verification) for group in some]
            written = ((one.prompt.messages, one.sample.message) for part in good for one in part)
            values = iter(scorer.score([(*asked, replace(said, reasoning_content=None)) for asked, said in written]))
            for group, part in zip(some, good, strict=True):
                yield with_findings(check, group, part, [rewarded(check, next(values)) for _ in part])


def require_judges(recipe: Recipe) -> None:
    """Raises a PotstillError for a judge that could not be asked: no key, no price, no model."""
    for check in recipe.verify.judges if recipe.verify else ():
        asking = _judging(recipe, check, Path("none"))
        try:
            price_of(asking)
            if isinstance(check.teacher.engine, Local):
                facts(locate(check.teacher.model))  # without its weights
            else:
                sampler_for(asking)
        except PotstillError as error:
            raise type(error)(f"the judge '{check.name}': {error.problem}", way_out=error.way_out) from None


def _relabelled(watch: Watch, check: Judge, progress: Progress) -> None:
    watch(replace(progress, stage="verify", what=f"{check.name}: {progress.what}"))


def _question_id(question: str) -> str:
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:32]


def _judging(recipe: Recipe, check: Judge, file: Path) -> GenerationRequest:
    """A judge's questions: answered once each, at temperature 0, with its own money."""
    return GenerationRequest(
        seed=recipe.seed,
        prompts=prompts_in(file, recipe.prompts.licence, Columns(text="text", id="id", grade=None)),
        teacher=check.teacher,
        generate=Generate(temperature=0.0, max_tokens=check.max_tokens, budget=check.budget, prices=check.prices),
    )
