"""Rescue: what is asked again where no answer passed, and what that brought.

All tries are kept in one ledger, in `rescue/` of the run folder. Answers are found by what was asked of whom, so those
of a try that the recipe has no more are not used, and those of one that comes back are not paid for again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from potstill.generate.waves import question_key
from potstill.recipe.prompts import Columns, PromptFile
from potstill.recipe.select import Select
from potstill.recipe.teacher import Batches, Server
from potstill.recipe.whole import Recipe
from potstill.records import Prompt, Sample
from potstill.store.files import drafted
from potstill.store.requests import Requests

_COLUMNS = Columns(id="id", messages="messages", reference="reference")


def asking_again(recipe: Recipe, number: int, asks: Path) -> Recipe:
    """The recipe of the try `number` (from 1) for the prompts in the file `asks`. Its hint stands in the teacher's
    instructions: the prompts, and so what is exported, are the original ones."""
    assert recipe.rescue is not None
    again, writer = recipe.rescue.tries[number - 1], recipe.asked(number)
    told = "\n\n".join(text for text in (writer.instructions, again.hint) if text) or None
    paid = isinstance(writer.engine, Server | Batches)
    money = {"budget": recipe.rescue.budget, "prices": recipe.generate.prices} if paid else {}
    how = {"n": again.samples, "budget": None, "prices": None, **money}
    before = recipe.rescue.tries[: number - 1]
    same = sum((earlier.hint, earlier.teacher) == (again.hint, again.teacher) for earlier in before)
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-rescue",
            "seed": recipe.seed + 1 + same,  # else a seeded teacher would write the answers that failed once more
            "prompts": PromptFile(source=str(asks), licence=recipe.prompts.licence, columns=_COLUMNS, header=None),
            "teacher": writer.model_copy(update={"instructions": told}),
            "generate": recipe.generate.model_copy(update=how),
            "select": Select(),  # pyright: ignore[reportCallIssue]
            "rescue": None,
            "student": None,
            "evaluate": None,
        }
    )


def write_asks(path: Path, prompts: Iterable[Prompt]) -> int:
    """The prompts of a try as a file that `asking_again` reads; returns how many."""
    count = 0
    with drafted(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for prompt in prompts:
            turns = [message.as_dict() for message in prompt.messages]
            row = {"id": prompt.id, "messages": turns, "reference": prompt.reference}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


class Rescued:
    """The answers that rescue has brought so far, by prompt; none where `requests` is None."""

    def __init__(self, recipe: Recipe, requests: Requests | None) -> None:
        self._requests = requests
        tries = range(1, len(recipe.rescue.tries) + 1) if recipe.rescue and requests else ()
        self._asked = [asking_again(recipe, number, Path()) for number in tries]
        self._before = recipe.generate.n

    def of(self, prompt: Prompt) -> Iterator[Sample]:
        """Try after try, numbered on from the recipe's own answers."""
        first = self._before
        for number, asked in enumerate(self._asked, 1):
            assert self._requests is not None
            keeps, most = asked.generate.truncated == "keep", asked.generate.n
            for sample in self._requests.samples_of(question_key(asked, prompt.messages), prompt.id, most=most):
                if keeps or not sample.cut_off:
                    yield replace(sample, index=first + sample.index, rescue=number)
            first += most
