"""Rescue: what is asked again where no answer passed, and what that brought.

All tries are kept in one ledger, in `rescue/` of the run folder. Answers are found by what was asked of whom, so those
of a try that the recipe has no more are not used, and those of one that comes back are not paid for again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from potstill.generate.collect import weights_asked
from potstill.generate.waves import seed_key
from potstill.recipe import GenerationRequest, Recipe
from potstill.recipe.prompts import Columns, PromptFile
from potstill.recipe.teacher import Batches, Server
from potstill.records import Prompt, Sample
from potstill.store.asks import question_key
from potstill.store.files import drafted
from potstill.store.requests import Requests

_COLUMNS = Columns(id="id", messages="messages", reference="reference", tools="tools", grade=None)


def try_of(recipe: Recipe, number: int, asks: Path) -> GenerationRequest:
    """The try `number` (from 1) for the prompts in the file `asks`. Its hint stands in the teacher's instructions: the
    prompts, and so what is exported, are the original ones."""
    assert recipe.rescue is not None
    again, teacher = recipe.rescue.tries[number - 1], recipe.asked(number)
    instructions = "\n\n".join(text for text in (teacher.instructions, again.hint) if text) or None
    paid = isinstance(teacher.engine, Server | Batches)
    money = {"budget": recipe.rescue.budget, "prices": recipe.generate.prices} if paid else {}
    how = {"n": again.samples, "budget": None, "prices": None, **money}
    before = recipe.rescue.tries[: number - 1]
    same = sum((earlier.hint, earlier.teacher) == (again.hint, again.teacher) for earlier in before)
    return GenerationRequest(
        seed=recipe.seed + 1 + same,  # else a seeded teacher would write the answers that failed once more
        prompts=prompts_in(asks, recipe.prompts.licence, _COLUMNS),
        teacher=teacher.model_copy(update={"instructions": instructions}),
        generate=recipe.generate.model_copy(update=how),
        task=recipe.task,
    )


def write_asks(path: Path, prompts: Iterable[Prompt]) -> int:
    """The prompts of a try as a file that `try_of` reads; returns how many."""
    count = 0
    with drafted(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for prompt in prompts:
            turns = [message.as_dict() for message in prompt.messages]
            reference = json.loads(prompt.reference or "") if prompt.any_of else prompt.reference
            row = {"id": prompt.id, "messages": turns, "reference": reference, "tools": prompt.tools}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def prompts_in(path: Path, licence: str, columns: Columns) -> PromptFile:
    """A file of prompts that Potstill wrote itself."""
    return PromptFile(
        source=str(path), licence=licence, columns=columns, header=None, reference_by_grade=None, split=None
    )


class Rescued:
    """The answers that rescue has brought so far, by prompt; none where `requests` is None."""

    def __init__(self, recipe: Recipe, requests: Requests | None) -> None:
        self._requests = requests
        tries = range(1, len(recipe.rescue.tries) + 1) if recipe.rescue and requests else ()
        self._asked = [try_of(recipe, number, Path()) for number in tries]
        self._weights = [weights_asked(requests, request.teacher) for request in self._asked if requests]
        self._before = recipe.generate.n

    def of(self, prompt: Prompt) -> Iterator[Sample]:
        """Try after try, numbered on from the recipe's own answers."""
        first = self._before
        for number, (request, weights) in enumerate(zip(self._asked, self._weights, strict=True), 1):
            assert self._requests is not None
            keeps, most = request.generate.truncated == "keep", request.generate.n
            key = question_key(seed_key(request, prompt), weights)
            for sample in self._requests.samples_of(key, prompt.id, most=most):
                if keeps or not sample.cut_off:
                    yield replace(sample, index=first + sample.index, rescue=number)
            first += most
