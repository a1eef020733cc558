"""The stage `generate`: the teacher answers the recipe's prompts, and every usable answer becomes a row of Parquet."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from potstill.dispatch.failures import AGAIN, ASKED_ANEW
from potstill.errors import BudgetReached, InputError, TeacherError
from potstill.generate.ask import ask
from potstill.generate.collect import Asking, export, load_asks, usable_answers
from potstill.generate.expand import written_prompts
from potstill.generate.rescue import Rescued
from potstill.generate.waves import EMPTY, EMPTY_FOR_NOW, Wanted
from potstill.prompts.stream import how_read
from potstill.recipe import Recipe
from potstill.recipe.prompts import Expand
from potstill.recipe.teacher import Http
from potstill.records import Progress, Prompt, Sample, Watch, unwatched
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.store.samples import FILTERED, IN_VAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What lies in the run folder: prompts by how they were settled, answers exported, those that are no use by reason,
    the ledger's sums, and what the server said with each kind of failure; what of the source was left out, and how it
    is read where its files' names do not say it."""

    answers: Path
    exported: int
    prompts: int
    settled: Mapping[str, int]
    lost: Mapping[str, int]
    totals: Mapping[str, int]
    said: Mapping[str, str]
    left_out: Mapping[str, int]
    how_read: tuple[str, ...]

    @staticmethod
    def of(recipe: Recipe, requests: Requests, run: RunFolder, *, exported: int) -> Generated:
        how = recipe.generate
        gone = requests.lost_answers(most=how.n)
        empty = sum(gone.get(reason, 0) for reason in (EMPTY, EMPTY_FOR_NOW))
        cut_off = 0 if how.truncated == "keep" else requests.count_cut_off(most=how.n)
        long = f"cut off at {how.longest or how.max_tokens} tokens"
        lost = {FILTERED: gone.get(FILTERED, 0), EMPTY: empty, long: cut_off}
        return Generated(
            answers=run.answers,
            exported=exported,
            prompts=requests.count_asks(),
            settled=requests.settled_by_reason(),
            lost={reason: count for reason, count in lost.items() if count},
            totals=requests.totals(),
            said=requests.said(),
            left_out=json.loads(requests.mark("left out") or "{}"),
            how_read=how_read(recipe.prompts),
        )


def generate(
    recipe: Recipe,
    run: RunFolder,
    *,
    limit: int | None = None,
    wanted: Wanted | None = None,
    most: int | None = None,
    watch: Watch = unwatched,
) -> Generated:
    """Let the teacher answer the first `limit` prompts (default all) and export every usable answer.

    `wanted(prompt, answers)` says how many more a prompt should get (default: the recipe's n); `most` bounds it.
    Raises a PotstillError; what was heard is kept.
    """
    asking = Asking(wanted=wanted, most=most or recipe.generate.n, limit=limit)
    with Requests(run.ledger) as requests:
        request = recipe.request
        if isinstance(recipe.prompts, Expand):
            request = written_prompts(request, recipe.prompts, run, watch)
        try:
            ask(request, requests, asking, watch)
            _require_answers(recipe, requests, most=asking.most)
        except (BudgetReached, TeacherError):
            export(recipe, requests, run.answers, most=asking.most)
            raise
        exported = export(recipe, requests, run.answers, most=asking.most)
        watch(Progress(stage="generate", what="exported", done=exported, total=exported))
        return Generated.of(recipe, requests, run, exported=exported)


def _require_answers(recipe: Recipe, requests: Requests, *, most: int) -> None:
    """Raises TeacherError where answers were given up and not one is there."""
    why = requests.lost_answers(most=most)
    if why and not requests.count_answers(most=most):
        served = isinstance(recipe.teacher.engine, Http)
        reason = max(why, key=why.__getitem__).removeprefix(IN_VAIN)
        raise TeacherError(
            f"not one of the {requests.count_asks():,} prompts was answered: {reason}",
            way_out=ASKED_ANEW if served and reason.startswith("refused") else AGAIN,
        )


@contextmanager
def open_answers(recipe: Recipe, run: RunFolder) -> Generator[Requests]:
    """The run's ledger, its list of prompts brought up to date with the recipe. Raises InputError where there are no
    answers yet."""
    nothing = InputError(f"'{run.path}' holds no answers yet", way_out="let the teacher write: potstill generate")
    if not run.ledger.is_file():
        raise nothing
    with Requests(run.ledger) as requests:
        if not isinstance(recipe.prompts, Expand):
            load_asks(recipe.request, requests)
        if not requests.count_answers(most=recipe.generate.n):
            raise nothing
        yield requests


def unanswered_prompts(recipe: Recipe, requests: Requests) -> Iterator[Prompt]:
    """The prompts that were asked and have no usable answer."""
    return requests.unanswered(most=recipe.generate.n, cut_off=recipe.generate.truncated == "keep")


@contextmanager
def open_rescued(recipe: Recipe, run: RunFolder) -> Generator[Rescued]:
    """What rescue has brought so far."""
    path = run.path / "rescue" / "ledger.sqlite"
    with Requests(path) if path.is_file() else nullcontext() as requests:
        yield Rescued(recipe, requests)


def all_answers(recipe: Recipe, requests: Requests, rescued: Rescued) -> Iterator[tuple[Prompt, Sample]]:
    """Every prompt's own answers, then those that rescue brought it."""
    own = usable_answers(recipe.generate, requests, most=recipe.generate.n)
    for _, group in groupby(own, key=lambda row: row[0].id):
        prompt = None
        for prompt, sample in group:
            yield prompt, sample
        assert prompt is not None
        yield from ((prompt, sample) for sample in rescued.of(prompt))
    for prompt in unanswered_prompts(recipe, requests):
        yield from ((prompt, sample) for sample in rescued.of(prompt))
