"""A data recipe from prompts to Parquet: what `potstill generate` and `potstill verify` do with a recipe that has a
`generate:` section."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from potstill.data_recipe import DataRecipe, Expand, Generate
from potstill.dispatch.money import DOLLAR
from potstill.engines.choose import sampler_for
from potstill.errors import BudgetReached, InputError, PotstillError, TeacherError
from potstill.generate.collect import Asking, collect, export, load_asks, price_of, usable_answers
from potstill.generate.expand import Distinct, ask_for_more, listed
from potstill.generate.waves import Wanted
from potstill.licences import Policy, check_licence
from potstill.models.locate import check_layers, facts, locate
from potstill.prompt_file import AskColumns, PromptFile
from potstill.prompts.stream import described, stream_prompts
from potstill.records import Message, Progress, Sample, Watch, unwatched
from potstill.store.files import drafted, write_atomic
from potstill.store.requests import Requests
from potstill.store.run import open_data_run
from potstill.teacher_recipe import Local
from potstill.text.template import Template
from potstill.verify.answers import Verified, require_checks, verify_answers
from potstill.verify.late import Group, in_question, judged, questions, rewarded, with_findings
from potstill.verify_recipe import Judge, RewardModel, Select


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What lies in the run folder: prompts by how they were settled, answers exported, and the ledger's sums."""

    folder: Path
    answers: Path
    exported: int
    prompts: int
    settled: dict[str, int]
    totals: dict[str, int]


def harvest(
    recipe: DataRecipe,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    wanted: Wanted | None = None,
    most: int | None = None,
    watch: Watch = unwatched,
) -> Harvest:
    """Let the teacher answer the first `limit` prompts (default all) and export every usable answer.

    `wanted(prompt, answers)` says how many more a prompt should get (default: the recipe's n); `most` bounds it.
    An answer in the ledger that still fits is never asked for again. Raises a PotstillError; what was heard is kept.
    """
    check_sections(recipe)
    sampler = sampler_for(recipe)
    price_of(recipe)
    asking = Asking(wanted=wanted, most=most or recipe.generate.n, limit=limit)
    place = folder or Path("runs") / recipe.name
    answers = place / "examples" / "answers.parquet"
    with open_data_run(place, recipe) as requests:
        if isinstance(recipe.prompts, Expand):
            recipe = expanded(recipe, recipe.prompts, place, watch)
        load_asks(recipe, requests)
        if wanted is not None:
            requests.reopen()
        try:
            collect(recipe, requests, sampler, asking, watch)
        except (BudgetReached, TeacherError):
            export(recipe, requests, answers, most=asking.most)
            raise
        exported = export(recipe, requests, answers, most=asking.most)
        watch(Progress(stage="generate", what="exported", done=exported, total=exported))
        return _harvest(place, answers, exported, requests)


def check_sections(recipe: DataRecipe) -> dict[str, Policy]:
    """What can be known to be wrong with any section before the first is paid for. Returns what the licences allow, by
    their keys in the recipe; raises a PotstillError."""
    policies = {key: check_licence(licence, key=key) for key, licence in recipe.licensed.items()}
    require_checks(recipe)
    _require_judges(recipe)
    if (learner := recipe.student) is not None:
        check_layers(facts(locate(learner.start)), learner.layers, key="student.layers")
        if learner.template is not None:
            Template(learner.template, name="student")
    if (exam := recipe.evaluate) is not None and next(stream_prompts(exam.prompts, Counter()), None) is None:
        raise InputError(f"evaluate.prompts: {described(exam.prompts)} holds no prompts", way_out="give some")
    return policies


def sift(recipe: DataRecipe, *, folder: Path | None = None, watch: Watch = unwatched) -> Verified:
    """Judge the answers that the ledger holds and write the best. Sends nothing but what a judge of the recipe has not
    been asked yet; free to run again."""
    if recipe.verify is None:
        raise InputError("the recipe has no 'verify' section", way_out="add one with its checks")
    for key, licence in recipe.licensed.items():
        if key.startswith("verify."):
            check_licence(licence, key=key)
    _require_judges(recipe)
    place = folder or Path("runs") / recipe.name
    nothing = InputError(f"'{place}' holds no answers yet", way_out="let the teacher write: potstill generate")
    if not (place / "ledger.sqlite").is_file():
        raise nothing
    with open_data_run(place, recipe) as requests:
        if not isinstance(recipe.prompts, Expand):
            load_asks(recipe, requests)
        most = recipe.generate.n
        total = requests.count_answers(most=most)
        if not total:
            raise nothing
        answers = usable_answers(recipe, requests, most=most)
        grading = _Grading(recipe, place, watch)
        found = verify_answers(recipe, answers, place, grade=grading.grade, total=total, watch=watch)
        return replace(found, judges=grading.totals)


def _harvest(folder: Path, answers: Path, exported: int, requests: Requests) -> Harvest:
    return Harvest(
        folder=folder,
        answers=answers,
        exported=exported,
        prompts=requests.count_asks(),
        settled=requests.settled_by_reason(),
        totals=requests.totals(),
    )


def expanded(recipe: DataRecipe, source: Expand, place: Path, watch: Watch) -> DataRecipe:
    """The recipe with the prompts that its teacher wrote in place of the seeds, and with what is left of its budget.

    The writing is a run of its own in `expansion/`, with its own ledger: it resumes and is paid once, like any other.
    """
    seeds = [prompt.messages[-1].content for prompt in stream_prompts(source.seeds, Counter())]
    if not seeds:
        raise InputError(f"prompts.seeds: '{source.seeds.source}' holds no prompts", way_out="give a few")
    folder = place / "expansion"
    enough = max(0, math.ceil((source.to - len(seeds)) / source.a_request))
    asked, found, spent = 0, list(dict.fromkeys(seeds)), 0
    while len(found) < source.to and asked < 5 * enough:
        asked += max(1, math.ceil((source.to - len(found)) / source.a_request))
        asks = [
            {"text": ask_for_more(seeds, count=source.a_request, show=source.show, number=i, seed=recipe.seed)}
            for i in range(asked)
        ]
        write_atomic(folder.with_name("expansion.jsonl"), "".join(json.dumps(ask) + "\n" for ask in asks))
        done = harvest(_writing(recipe, source, folder.with_name("expansion.jsonl")), folder=folder, watch=watch)
        spent = done.totals.get("paid", 0) + done.totals.get("maybe", 0)
        distinct = Distinct(seeds, overlap=source.overlap)
        answers = (sample.text for sample in _samples(folder))
        found = [*seeds, *(text for answer in answers for text in listed(answer) if distinct.add(text))][: source.to]
    file = place / "prompts.jsonl"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found)
    if not file.is_file() or file.read_text(encoding="utf-8") != lines:
        write_atomic(file, lines)
    watch(Progress(stage="generate", what="prompts written", done=len(found), total=source.to))
    licence = source.licence
    prompts = PromptFile(source=str(file), licence=licence, columns=AskColumns(text="text"), header=None)
    budget = recipe.generate.budget
    left = None if budget is None else max(1e-12, budget - spent / DOLLAR)
    how = recipe.generate.model_copy(update={"budget": left})
    return recipe.model_copy(update={"prompts": prompts, "generate": how})


def _writing(recipe: DataRecipe, source: Expand, asks: Path) -> DataRecipe:
    """The recipe that asks for prompts: one answer each, and without the teacher's instructions for the real ones."""
    prompts = PromptFile(source=str(asks), licence=source.licence, columns=AskColumns(text="text"), header=None)
    plain = {"n": 1, "max_tokens": source.max_tokens, "truncated": "keep", "longest": None}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-expansion",
            "prompts": prompts,
            "teacher": recipe.teacher.model_copy(update={"instructions": None, "examples": ()}),
            "generate": recipe.generate.model_copy(update=plain),
        }
    )


def _samples(folder: Path) -> list[Sample]:
    with Requests(folder / "ledger.sqlite") as requests:
        return [sample for _, sample in requests.samples()]


_AT_ONCE = 64  # times batch_size: prompts whose answers are batched by length together


@dataclass(frozen=True, slots=True)
class _Grading:
    """Late checks, streamed. `totals`: the sums of the ledgers of the judges asked so far."""

    recipe: DataRecipe
    place: Path
    watch: Watch
    totals: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

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
            if not asked:
                self.totals[check.name] = {}
            else:
                done = harvest(
                    _judging(self.recipe, check, file), folder=folder, watch=partial(_relabelled, self, check)
                )
                self.totals[check.name] = done.totals
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
            values = iter(
                scorer.score(
                    [
                        (*one.prompt.messages, Message(role="assistant", content=one.sample.text))
                        for part in good
                        for one in part
                    ]
                )
            )
            for group, part in zip(some, good, strict=True):
                yield with_findings(check, group, part, [rewarded(check, next(values)) for _ in part])


def _relabelled(grading: _Grading, check: Judge, progress: Progress) -> None:
    grading.watch(replace(progress, stage="verify", what=f"{check.name}: {progress.what}"))


def _question_id(question: str) -> str:
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:32]


def _judging(recipe: DataRecipe, check: Judge, file: Path) -> DataRecipe:
    """The recipe that has a judge's questions answered: once each, at temperature 0, with its own money."""
    prompts = PromptFile(
        source=str(file), licence=recipe.prompts.licence, columns=AskColumns(text="text", id="id"), header=None
    )
    how = Generate(temperature=0.0, max_tokens=check.max_tokens, budget=check.budget, prices=check.prices)
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-{check.name}"[:100],
            "prompts": prompts,
            "teacher": check.teacher,
            "generate": how,
            "verify": None,
            "select": Select(),  # pyright: ignore[reportCallIssue]
            "student": None,
            "evaluate": None,
        }
    )


def _require_judges(recipe: DataRecipe) -> None:
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
