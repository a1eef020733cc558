"""One check of one sample: the only place that knows which value of the recipe is which function."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import assert_never

from potstill.prompts.columns import as_text
from potstill.recipe import checks as ask
from potstill.records import Finding, Prompt, Sample
from potstill.verify import probabilities, programs, text

_VERSION = 2
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


def look(check: ask.Alone, prompt: Prompt, sample: Sample) -> Finding:
    """What `check` says of the sample."""
    return replace(_by_references(check, prompt, sample), check=name_of(check))


def _by_references(check: ask.Alone, prompt: Prompt, sample: Sample) -> Finding:
    """Of several references any may be right; of several tests the code passes all."""
    if not (prompt.any_of and isinstance(check, ask.Exact | ask.Number | ask.Maths | ask.Code)):
        return _finding(check, prompt, sample)
    references = [text for one in json.loads(prompt.reference or "") if (text := as_text(one)) is not None]
    if isinstance(check, ask.Code):
        return _finding(check, replace(prompt, reference="\n".join(references)), sample)
    first: dict[str, Finding] = {}
    for reference in references:
        found = _finding(check, replace(prompt, reference=reference), sample)
        first.setdefault(found.opinion, found)
        if found.opinion == "passed":
            break
    return first.get("passed") or first.get("undecided") or first["failed"]


def _finding(check: ask.Alone, prompt: Prompt, sample: Sample) -> Finding:  # noqa: C901
    match check:
        case ask.Exact():
            return text.exact(check, prompt, sample)
        case ask.OneOf():
            return text.one_of(check, prompt, sample)
        case ask.Regex():
            return text.regex(check, prompt, sample)
        case ask.MultipleChoice():
            return text.multiple_choice(check, prompt, sample)
        case ask.Number():
            return text.number(check, prompt, sample)
        case ask.Json():
            return text.json_value(check, prompt, sample)
        case ask.Grounded():
            return text.grounded(check, prompt, sample)
        case ask.Length():
            return text.length(check, prompt, sample)
        case ask.Language():
            return text.language(check, prompt, sample)
        case ask.Repetition():
            return text.repetition(check, prompt, sample)
        case ask.Reasoning():
            return text.reasoning(check, prompt, sample)
        case ask.Maths():
            return programs.maths(check, prompt, sample)
        case ask.Code():
            return programs.code(check, prompt, sample)
        case ask.Gym():
            return programs.gym(check, prompt, sample)
        case ask.Function():
            return programs.function(check, prompt, sample)
        case ask.Confidence():
            return probabilities.confidence(check, prompt, sample)
        case ask.AllowedMass():
            return probabilities.allowed_mass(check, prompt, sample)
        case _:
            assert_never(check)
