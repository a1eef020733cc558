"""One check of one sample: the only place that knows which value of the recipe is which function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from potstill.recipe import checks as ask
from potstill.records import Finding, Prompt, Sample
from potstill.verify import programs, text

_VERSION = 1
"""Goes up with every change of what a check says, so that verdicts of different versions can be told apart."""


def name_of(check: ask.Check) -> str:
    return f"{check.kind}@{_VERSION}"


def slow(check: ask.Check) -> bool:
    """Whether a sample may take seconds."""
    return isinstance(check, ask.Maths | ask.Code | ask.Function | ask.Gym)


def seconds(check: ask.Check) -> float:
    """After how long a check's process is killed. The sandbox keeps its own time, and is given a little more."""
    match check:
        case ask.Code(seconds=limit):
            return limit + 5
        case ask.Maths(seconds=limit) | ask.Function(seconds=limit):
            return limit
        case _:
            return 10.0


def look(check: ask.Check, prompt: Prompt, sample: Sample) -> Finding:
    """What `check` says of the sample."""
    return replace(_FUNCTIONS[check.kind](check, prompt, sample), check=name_of(check))


_FUNCTIONS: dict[str, Callable[[Any, Prompt, Sample], Finding]] = {
    "exact": text.exact,
    "one_of": text.one_of,
    "regex": text.regex,
    "number": text.number,
    "json": text.json_value,
    "grounded": text.grounded,
    "length": text.length,
    "language": text.language,
    "repetition": text.repetition,
    "reasoning": text.reasoning,
    "maths": programs.maths,
    "code": programs.code,
    "reasoning_gym": programs.gym,
    "function": programs.function,
}
"""Every kind of check but `majority`, which needs all of a prompt's samples (`verify/select.py`), and the late ones,
`judge` and `reward_model` (`verify/late.py`)."""
