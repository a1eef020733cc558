"""A data recipe from prompts to Parquet: what `potstill generate` and `potstill verify` do with a recipe that has a
`generate:` section."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.dispatch.money import DOLLAR
from potstill.engines.choose import sampler_for
from potstill.errors import BudgetReached, InputError, TeacherError
from potstill.generate.again import Rescued, asking_again
from potstill.generate.collect import Asking, collect, export, load_asks, price_of, usable_answers
from potstill.generate.expand import Distinct, ask_for_more, listed
from potstill.generate.waves import Wanted
from potstill.grading import Grading, require_judges
from potstill.licences import Policy, check_licence
from potstill.models.locate import check_layers, facts, locate
from potstill.prompts.stream import described, stream_prompts
from potstill.recipe.prompts import Columns, Expand, PromptFile
from potstill.recipe.student import Student
from potstill.recipe.teacher import Batches, Canned, Server
from potstill.recipe.whole import Recipe
from potstill.records import Progress, Prompt, Sample, Watch, unwatched
from potstill.store.files import write_atomic
from potstill.store.requests import Requests
from potstill.store.run import open_data_run
from potstill.store.sinks import require_sinks
from potstill.text.template import Template
from potstill.verify.programs import require_checks, require_package

if TYPE_CHECKING:
    from potstill.verify.answers import Nats, Verified


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
    recipe: Recipe,
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
    check_rescue(recipe)
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


def check_sections(recipe: Recipe) -> dict[str, Policy]:
    """What can be known to be wrong with any section before the first is paid for. Returns what the licences allow, by
    their keys in the recipe; raises a PotstillError."""
    policies = {key: check_licence(licence, key=key) for key, licence in recipe.licensed.items()}
    require_checks(recipe)
    require_judges(recipe)
    if (learner := recipe.student) is not None:
        check_learner(learner)
        require_sinks(recipe.train)
    if (exam := recipe.evaluate) is not None and next(stream_prompts(exam.prompts, Counter()), None) is None:
        raise InputError(f"evaluate.prompts: {described(exam.prompts)} holds no prompts", way_out="give some")
    return policies


def check_learner(learner: Student) -> None:
    """What the headers of its start, its template and the installed packages tell. Raises a PotstillError."""
    start = facts(locate(learner.start))
    listed = learner.layers if isinstance(learner.layers, tuple) else None
    check_layers(start, listed or learner.taken or 1, key="student.layers")
    if start is not None and learner.freeze_layers >= start.layers:
        raise InputError(
            f"student.freeze_layers is {learner.freeze_layers}, but the model it starts from has {start.layers} layers",
            way_out="leave some to learn",
        )
    if learner.template is not None:
        Template(learner.template, name="student")
    if learner.lora is not None:
        require_package("peft", "lora", what="'student.lora'")


def check_rescue(recipe: Recipe) -> None:
    """Prices, keys and files of whoever is asked again, before anybody is paid. Raises a PotstillError."""
    for number in range(1, len(recipe.rescue.tries) + 1 if recipe.rescue else 1):
        asked = asking_again(recipe, number, Path())
        price_of(asked)
        if isinstance(asked.teacher.engine, Server | Batches | Canned):
            sampler_for(asked)
        else:
            facts(locate(asked.teacher.model))


def sift(
    recipe: Recipe, *, folder: Path | None = None, student_nats: Nats | None = None, watch: Watch = unwatched
) -> Verified:
    """Judge the answers that the ledger holds, those that rescue brought among them, and write the best. Sends nothing
    but what a judge of the recipe has not been asked yet; free to run again. `student_nats` (from `lessons`) goes with
    `select.prefer: learnable`."""
    from potstill.verify.answers import Handed, verify_answers  # with pyarrow, which `check` does without

    with answered_run(recipe, folder) as (place, requests), _rescue_ledger(place) as ledger:
        rescued, grading = Rescued(recipe, ledger), grading_of(recipe, place, watch)
        unanswered = sum(not any(rescued.of(prompt)) for prompt in silent_prompts(recipe, requests))
        found = verify_answers(
            recipe,
            _all_answers(recipe, requests, rescued),
            place,
            total=requests.count_answers(most=recipe.generate.n),
            watch=watch,
            handed=Handed(grade=grading.grade, student_nats=student_nats, unanswered=unanswered),
        )
        return replace(found, judges=grading.totals)


def grading_of(recipe: Recipe, place: Path, watch: Watch) -> Grading:
    """The judges and reward models of the recipe whose run folder is `place`."""

    def answered(judging: Recipe, folder: Path, heard: Watch) -> Mapping[str, int]:
        return harvest(judging, folder=folder, watch=heard).totals

    return Grading(recipe, place, answered, watch)


@contextmanager
def answered_run(recipe: Recipe, folder: Path | None) -> Generator[tuple[Path, Requests]]:
    """The run folder and its ledger, brought up to date with the recipe. Raises a PotstillError where there are no
    checks, no answers yet or a judge that could not be asked."""
    if recipe.verify is None:
        raise InputError("the recipe has no 'verify' section", way_out="add one with its checks")
    for key, licence in recipe.verify.licensed.items():
        check_licence(licence, key=f"verify.{key}")
    require_judges(recipe)
    place = folder or Path("runs") / recipe.name
    nothing = InputError(f"'{place}' holds no answers yet", way_out="let the teacher write: potstill generate")
    if not (place / "ledger.sqlite").is_file():
        raise nothing
    with open_data_run(place, recipe) as requests:
        if not isinstance(recipe.prompts, Expand):
            load_asks(recipe, requests)
        if not requests.count_answers(most=recipe.generate.n):
            raise nothing
        yield place, requests


def silent_prompts(recipe: Recipe, requests: Requests) -> Iterator[Prompt]:
    """The prompts that were asked and have no usable answer."""
    return requests.unanswered(most=recipe.generate.n, cut_off=recipe.generate.truncated == "keep")


@contextmanager
def _rescue_ledger(place: Path) -> Generator[Requests | None]:
    path = place / "rescue" / "ledger.sqlite"
    if not path.is_file():
        yield None
        return
    with Requests(path) as requests:
        yield requests


def _all_answers(recipe: Recipe, requests: Requests, rescued: Rescued) -> Iterator[tuple[Prompt, Sample]]:
    """Every prompt's own answers, then those that rescue brought it."""
    own = usable_answers(recipe, requests, most=recipe.generate.n)
    for _, group in groupby(own, key=lambda row: row[0].id):
        prompt = None
        for prompt, sample in group:
            yield prompt, sample
        assert prompt is not None
        yield from ((prompt, sample) for sample in rescued.of(prompt))
    for prompt in silent_prompts(recipe, requests):
        yield from ((prompt, sample) for sample in rescued.of(prompt))


def _harvest(folder: Path, answers: Path, exported: int, requests: Requests) -> Harvest:
    return Harvest(
        folder=folder,
        answers=answers,
        exported=exported,
        prompts=requests.count_asks(),
        settled=requests.settled_by_reason(),
        totals=requests.totals(),
    )


def expanded(recipe: Recipe, source: Expand, place: Path, watch: Watch) -> Recipe:
    """The recipe with the prompts that its teacher wrote in place of the seeds, and with what is left of its budget.

    The writing is a run of its own in `expansion/`, with its own ledger: it resumes and is paid once, like any other.
    """
    seeds = [prompt.messages[-1].content for prompt in stream_prompts(source.seeds, Counter())]
    if not seeds:
        raise InputError(f"prompts.seeds: '{source.seeds.source}' holds no prompts", way_out="give a few")
    folder = place / "expansion"
    enough = max(0, math.ceil((source.to - len(seeds)) / source.per_request))
    asked, found, spent = 0, list(dict.fromkeys(seeds)), 0
    while len(found) < source.to and asked < 5 * enough:
        asked += max(1, math.ceil((source.to - len(found)) / source.per_request))
        asks = [
            {"text": ask_for_more(seeds, count=source.per_request, show=source.show, number=i, seed=recipe.seed)}
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
    prompts = PromptFile(source=str(file), licence=licence, columns=Columns(text="text"), header=None)
    budget = recipe.generate.budget
    left = None if budget is None else max(1e-12, budget - spent / DOLLAR)
    how = recipe.generate.model_copy(update={"budget": left})
    return recipe.model_copy(update={"prompts": prompts, "generate": how})


def _writing(recipe: Recipe, source: Expand, asks: Path) -> Recipe:
    """The recipe that asks for prompts: one answer each, and without the teacher's instructions for the real ones."""
    prompts = PromptFile(source=str(asks), licence=source.licence, columns=Columns(text="text"), header=None)
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
