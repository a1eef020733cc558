"""Runs of tasks with choices, as tests describe them; a teacher's distributions are written into the ledger by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from potstill.generate.collect import load_asks
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.task import Choice
from potstill.records import Prompt
from potstill.store.requests import Requests
from potstill.store.run import RunFolder, open_run
from potstill.store.samples import Written

WORDS = ["film", "plot", "actor", "scene", "light", "music", "quiet", "loud", "slow", "fast"]
GOOD, BAD = "good", "bad"

Says = Callable[[Prompt], float]
"""The teacher's probability of "good"."""


def text_of(number: int) -> str:
    """A made-up review, whose last word tells: even ones are good."""
    a, b = WORDS[number % 10], WORDS[number // 10 % 10]
    return f"{a} {b} {number} {'wonderful' if number % 2 == 0 else 'dull'}"


def recipe_in(folder: Path, *, count: int = 72, **changes: Any) -> Recipe:
    """Reviews with a person's grade. The teacher is never loaded unless `changes` name one that can be."""
    rows = [{"text": text_of(i), "grade": 2.0 - 4 * (i % 2) + i / 1000} for i in range(count)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "name": "reviews",
        "task": {"kind": "choice", "choices": [BAD, GOOD], "prior": [0.5, 0.5]},
        "prompts": {
            "source": str(folder / "reviews.jsonl"),
            "licence": "mit",
            "columns": {"text": "text", "grade": "grade"},
            "reference_by_grade": {BAD: [-4, -1], GOOD: [1, 4]},
            "split": {"train": 40, "validation": 12, "test": 20},
        },
        "teacher": {
            "model": "by-hand",
            "licence": "apache-2.0",
            "engine": {"kind": "server", "url": "http://127.0.0.1:9/v1"},
        },
        "verify": {"checks": [{"kind": "confidence", "at_least": 0.7}], "processes": 1},
        "student": {"start": "./no-model", "licence": "mit", "layers": 2},
        "evaluate": {"resamples": 100, "generate_prompts": 4, "uncached_prompts": 2},
        **changes,
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump({name: value for name, value in values.items() if value is not None}, file)
    return load_recipe(path)


def knows(prompt: Prompt) -> float:
    """Mostly right, and fond of "bad"; wrong of some, unsure of others."""
    last = int(prompt.text.split()[2]) % 10
    if last in (4, 6):
        return 0.3 if last == 4 else 0.45
    return 0.7 if (prompt.text.endswith("wonderful")) != (last in (3, 8)) else 0.05


def answer_by_hand(recipe: Recipe, run: Path, says: Says = knows, *, mass: float = 0.9) -> RunFolder:
    """Every prompt of the recipe, test prompts too, gets one answer, as a teacher in this process would leave it."""
    assert isinstance(recipe.task, Choice)
    with open_run(run, recipe) as folder, Requests(folder.ledger) as requests:
        load_asks(recipe.request.model_copy(update={"splits": None}), requests)
        with requests.transaction():
            for asked in requests.open_asks():
                good = says(asked.prompts[0])
                requests.put_written([written(asked.question, recipe.task.choices, {GOOD: good, BAD: 1 - good}, mass)])
                requests.settle(asked.question, "done")
    return folder


def written(question: int, choices: tuple[str, ...], p: Mapping[str, float], mass: float) -> Written:
    return Written(
        question=question,
        sample=0,
        attempt=0,
        max_tokens=1,
        text=max(choices, key=p.__getitem__),
        choice_logprobs=tuple(math.log(mass * p[choice]) for choice in choices),
        finish="stop",
    )
