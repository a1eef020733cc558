"""Rescue of hard prompts: what `potstill rescue` does with a recipe that has a `rescue:` section.

Checks throw away answers, and with them, silently, the prompts that the teacher finds hard. Here those are asked again,
by the same checks: more samples, a hint, another teacher.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from potstill.errors import InputError
from potstill.generate.again import asking_again, write_asks
from potstill.generate.collect import usable_answers
from potstill.harvest import answered_run, check_rescue, check_sections, grading_of, harvest, sift, silent_prompts
from potstill.recipe.whole import Recipe
from potstill.records import Progress, Watch, unwatched
from potstill.store.requests import Requests
from potstill.store.run import open_data_run
from potstill.verify.answers import Grade, Nats, Verified, unsolved


def rescue(
    recipe: Recipe, *, folder: Path | None = None, student_nats: Nats | None = None, watch: Watch = unwatched
) -> Verified:
    """Ask again where no answer passed, try after try, and verify everything (`harvest.sift`).

    What was answered is not asked again. Raises a PotstillError; what was heard is kept, and the next verification
    uses it.
    """
    if recipe.rescue is None:
        raise InputError("the recipe has no 'rescue' section", way_out="add one with its tries")
    check_sections(recipe)
    check_rescue(recipe)
    with answered_run(recipe, folder) as (place, requests):
        grade = grading_of(recipe, place, watch).grade  # a judge is asked as `sift` asks it: once for both
        lost = _write_lost(place, 1, recipe, requests, grade, watch)
    for number in range(1, len(recipe.rescue.tries) + 1):
        if not lost:
            break
        asked = asking_again(recipe, number, _asks(place, number))
        harvest(asked, folder=place / "rescue", watch=watch)
        if number < len(recipe.rescue.tries):
            with open_data_run(place / "rescue", asked) as requests:
                lost = _write_lost(place, number + 1, asked, requests, grade, watch)
    return sift(recipe, folder=folder, student_nats=student_nats, watch=watch)


def _write_lost(place: Path, number: int, recipe: Recipe, requests: Requests, grade: Grade, watch: Watch) -> int:
    """The prompts for the try `number`: those that have no answer or of which none passed."""
    answers = usable_answers(recipe, requests, most=recipe.generate.n)
    lost = chain(silent_prompts(recipe, requests), unsolved(recipe, answers, grade))
    count = write_asks(_asks(place, number), lost)
    watch(Progress(stage="verify", what=f"prompts for rescue try {number}", done=count, total=count))
    return count


def _asks(place: Path, number: int) -> Path:
    return place / f"rescue-{number}.jsonl"
