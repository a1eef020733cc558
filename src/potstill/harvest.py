"""A data recipe from prompts to Parquet: what `potstill generate` does with a recipe that has a `generate:` section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.data_recipe import DataRecipe
from potstill.engines.choose import sampler_for
from potstill.errors import BudgetReached, TeacherError
from potstill.generate.collect import Asking, collect, export, load_asks, price_of
from potstill.generate.waves import Wanted, fixed
from potstill.licences import check_licence
from potstill.records import Progress, Watch, unwatched
from potstill.store.requests import Requests
from potstill.store.run import open_data_run


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
    check_licence(recipe.teacher.licence, key="teacher.licence")
    check_licence(recipe.prompts.licence, key="prompts.licence")
    sampler = sampler_for(recipe)
    price_of(recipe)
    n = recipe.generate.n
    asking = Asking(wanted=wanted or fixed(n), most=most or n, limit=limit)
    place = folder or Path("runs") / recipe.name
    answers = place / "examples" / "answers.parquet"
    with open_data_run(place, recipe) as requests:
        load_asks(recipe, requests)
        if wanted is not None:
            requests.reopen()
        try:
            collect(recipe, requests, sampler, asking, watch)
        except (BudgetReached, TeacherError):
            export(recipe, requests, answers)
            raise
        exported = export(recipe, requests, answers)
        watch(Progress(stage="generate", what="exported", done=exported, total=exported))
        return _harvest(place, answers, exported, requests)


def _harvest(folder: Path, answers: Path, exported: int, requests: Requests) -> Harvest:
    return Harvest(
        folder=folder,
        answers=answers,
        exported=exported,
        prompts=requests.count_asks(),
        settled=requests.settled_by_reason(),
        totals=requests.totals(),
    )
