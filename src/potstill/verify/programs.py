"""Checks that run a program: somebody's code in the sandbox, a symbolic algebra system, a task's own scorer, a function
of yours. They are called in worker processes that may be killed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from potstill.errors import InputError, MissingEnvironment
from potstill.models.locate import classifier_labels, locate, require_label
from potstill.recipe import checks as ask
from potstill.recipe.whole import Recipe
from potstill.records import Finding, Prompt, Sample
from potstill.verify.expressions import is_number, read
from potstill.verify.fences import code_in
from potstill.verify.final import Result, reference_of, result_of
from potstill.verify.maths import Same, same
from potstill.verify.sandbox import require_sandbox, run_python
from potstill.verify.text import extracted, failed, passed, undecided
from potstill.verify.words import tokenizer_of


def code(check: ask.Code, prompt: Prompt, sample: Sample) -> Finding:
    """Passed where the answer's code and then the reference's tests run to their end."""
    if prompt.reference is None:
        return undecided("no tests")
    program = f"{check.before}\n{code_in(sample.text)}"
    ran = run_python(program, prompt.reference, seconds=check.seconds, memory_mib=check.memory_mib)
    match ran.how:
        case "passed":
            return passed()
        case "too slow":
            return failed("too slow", ran.said)
        case "failed":
            return failed("the tests fail", ran.said)


def maths(check: ask.Maths, prompt: Prompt, sample: Sample) -> Finding:
    """Undecided where the reference or the answer's result is not read whole, failed where there is no result."""
    from math_verify.errors import TimeoutException  # the extra `maths`
    from math_verify.utils import timeout

    text = extracted(check.extract, sample.text)
    found = result_of(text or "") if check.extract is None else Result(text) if text else None
    if found is None:
        return failed("no answer found", sample.text[-200:])
    reference = reference_of(prompt.reference or "")
    try:
        equal = timeout(timeout_seconds=math.ceil(check.seconds))(_compared)(reference, found)
    except (TimeoutException, TimeoutError):
        return undecided("took too long", found.text)
    except Exception as error:
        # Unreadable, and whatever SymPy raises in its depths; the answer is not to blame
        return undecided("cannot be read as mathematics", f"{type(error).__name__}: {error}")
    if equal is None:
        return undecided("cannot be compared", f"{found.text} and {reference}")
    return passed(found.text) if equal else failed("not equal", f"{found.text}, not {reference}")


def _compared(reference: str, result: Result) -> Same:
    """A number in prose is compared with a number alone: of an expression it may be a part."""
    if not result.stated and not is_number(read(reference)):
        return None
    return same(reference, result.text)


def gym(check: ask.Gym, prompt: Prompt, sample: Sample) -> Finding:
    """The task's own record (question, answer, metadata) is the reference."""
    try:
        entry = json.loads(prompt.reference or "")
        score = float(_scorer(entry["metadata"]["source_dataset"])(sample.text.strip(), entry))
    except (ValueError, KeyError, TypeError) as error:
        return undecided("not a task of reasoning-gym", repr(error))
    return passed(score=score) if score >= check.at_least else failed("the task's scorer says no", score=score)


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym  # the extra `reasoning`

    return cast(Any, reasoning_gym.get_score_answer_fn(task))


def function(check: ask.Function, prompt: Prompt, sample: Sample) -> Finding:
    """Your function. What it raises is undecided: a mistake in a check must not throw answers away."""
    try:
        said = named_function(check.name)(prompt, sample.text, prompt.reference)
    except Exception as error:
        return undecided("the function raised an error", f"{type(error).__name__}: {error}")
    if said is None:
        return undecided("the function does not say")
    score = float(said)
    return passed(score=score) if score >= check.at_least else failed("the function says no", score=score)


@cache
def named_function(name: str) -> Callable[..., bool | float | None]:
    """Raises InputError where there is no such function. The folder where the command runs is searched last, so that no
    file of it stands in for a package; workers are given the path as it is now."""
    module, _, wanted = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), wanted)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"verify.checks: there is no function '{name}' ({error})",
            way_out="write module:function, importable from where you run the command",
        ) from None
    if not callable(found):
        raise InputError(f"verify.checks: '{name}' is not a function", way_out="name one")
    return cast(Any, found)


# The package that a kind of check needs, and the extra that brings it.
_EXTRAS = {
    "maths": ("math_verify", "maths"),
    "json": ("jsonschema", "checks"),
    "language": ("py3langid", "checks"),
    "reasoning_gym": ("reasoning_gym", "reasoning"),
}


def require_checks(recipe: Recipe) -> None:
    """Raises a PotstillError for a check that cannot run here, before anything is paid for."""
    for section in (recipe.verify, recipe.evaluate):
        for check in section.checks if section else ():
            require(check)
    if recipe.select.near_duplicates is not None:
        require_package("datasketch", "checks", what="'select.near_duplicates'")


def require(check: ask.Check) -> None:
    """What a check needs, asked before a million answers are read. Raises MissingEnvironment or InputError."""
    if isinstance(check, ask.Code):
        require_sandbox()
    if isinstance(check, ask.Function):
        named_function(check.name)
    if isinstance(check, ask.Length) and check.tokenizer:
        tokenizer_of(check.tokenizer)
    if isinstance(check, ask.RewardModel):
        labels = classifier_labels(locate(check.model))
        if labels is not None:
            require_label(labels, check.label, model=check.model)
    if check.kind in _EXTRAS:
        require_package(*_EXTRAS[check.kind], what=f"the check '{check.kind}'")


def load(check: ask.Check) -> None:
    """Import what a check needs now, and not within the time of its first sample."""
    if check.kind in _EXTRAS:
        importlib.import_module(_EXTRAS[check.kind][0])
    if isinstance(check, ask.Maths):
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it prints every expression that it gives up
    if isinstance(check, ask.Function):
        named_function(check.name)


def require_package(package: str, extra: str, *, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingEnvironment(
            f"{what} needs the package {package.replace('_', '-')}", way_out=f"pip install 'potstill[{extra}]'"
        )
