"""Votes: a teacher that tells no probabilities is asked several times, and what it says is counted.

Half a vote is added to each choice, so that none is impossible; an answer that is none of them counts as mass outside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from potstill.recipe.task import Choice
from potstill.recipe.whole import Recipe
from potstill.records import Prompt, Sample
from potstill.verify.text import normalised

Answers = Iterable[tuple[Prompt, Sample]]


def choices_of(recipe: Recipe) -> tuple[str, ...]:
    """The allowed answers; none where answers are texts."""
    return recipe.task.choices if isinstance(recipe.task, Choice) else ()


def counted(answers: Answers, choices: Sequence[str]) -> Iterator[tuple[Prompt, Sample]]:
    """The votes of a prompt's answers (those of a rescue try by themselves) as one sample with their distribution.
    Samples that have one already pass as they are."""
    for _, group in groupby(answers, key=lambda row: (row[0].id, row[1].rescue)):
        rows = list(group)
        prompt, first = rows[0]
        if first.choice_logprobs is not None:
            yield from rows
            continue
        votes = Counter(choice_in(sample.text, choices) for _, sample in rows)
        total = len(rows) + len(choices) / 2
        logprobs = tuple(math.log((votes[choice] + 0.5) / total) for choice in choices)
        said = choices[max(range(len(choices)), key=logprobs.__getitem__)]
        plain = {"reasoning": None, "tool_calls": (), "finish": "stop", "cut_off": False}
        yield prompt, replace(first, text=said, choice_logprobs=logprobs, **plain)


def choice_in(text: str, choices: Sequence[str]) -> str | None:
    """The choice that the answer is or begins with, case, blanks and closing punctuation aside; the longest if several.
    None: it is none of them."""
    said = normalised(text)
    found = [choice for choice in choices if _begins(said, normalised(choice))]
    return max(found, key=len, default=None)


def _begins(said: str, choice: str) -> bool:
    return bool(choice) and said.startswith(choice) and not said[len(choice) : len(choice) + 1].isalnum()
