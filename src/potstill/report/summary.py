"""The top of the page: what came out, in one sentence, in a few tiles, and in what the intervals allow to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.dispatch.money import DOLLAR
from potstill.recipe.values import public_name
from potstill.report.gather import RunReport
from potstill.report.numbers import count, dollars, duration, interval, percent, quantity, times
from potstill.report.wording import beside_teacher, made_of, weights_kept


@dataclass(frozen=True, slots=True)
class Tile:
    """A big number for whoever has a minute."""

    question: str
    answer: str
    meaning: str
    detail: str


def tiles(report: RunReport) -> list[Tile]:
    return [tile for make in _TILES if (tile := make(report))]


def headline(report: RunReport) -> str:
    """In one sentence, what came out: of the test set only what the paired interval allows."""
    teacher = public_name(report.recipe.teacher.model)
    if report.scores is not None:
        return _scored(report, report.scores)
    if "student" in report.trained:
        learned = count(report.trained["student"]["examples"], "answer")
        return f"A student has learned from {learned} by {teacher}; it was not evaluated yet."
    if report.tally is not None:
        return f"{report.tally.kept:,} of {count(report.tally.answers, 'answer')} by {teacher} were kept."
    if report.road is not None and report.road.answered:
        return f"{teacher} has written {count(report.road.answered, 'answer')}."
    return f"{teacher} has written nothing yet."


def _scored(report: RunReport, scores: Mapping[str, Any]) -> str:
    found = scores["paired"].get("student - teacher", {}).get("accuracy")
    parts = [beside_teacher(found, share=report.ratio("student", "teacher", "accuracy"))]
    if (smaller := report.ratio("teacher", "student", "parameters")) is not None:
        parts.append(f"is {times(smaller)} times smaller" if smaller >= 1 else "is not smaller")
    if (faster := report.ratio("student", "teacher", "prompts_per_second")) is not None:
        parts.append(f"answers {times(faster)} times as fast")
    said = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    mine, theirs = (report.arms[arm]["accuracy"] for arm in ("student", "teacher"))
    right = f"right on {percent(mine['value'])} of {count(mine['n'], 'test prompt')}"
    return f"{said}: {right}, the teacher on {percent(theirs['value'])}."


def in_words(report: RunReport) -> str:
    """What was distilled from what, as far as it went."""
    recipe, said = report.recipe, list[str]()
    if (road := report.road) is not None:
        most = "one answer" if recipe.generate.n == 1 else f"up to {count(recipe.generate.n, 'answer')}"
        asked = f"{most} to each of {count(road.prompts, 'prompt')}"
        said.append(f"{public_name(recipe.teacher.model)} was asked for {asked}, and wrote {road.answered:,}.")
    if (found := report.tally) is not None:
        said.append(f"{found.passed:,} of {found.answers:,} passed every check and {found.kept:,} were kept.")
    if recipe.student is not None and (trained := report.trained.get("student")):
        made = made_of(recipe.student, trained)
        said.append(
            f"The student, {made}, learned from {count(trained['examples'], 'answer')} in "
            f"{count(recipe.train.epochs, 'epoch')}{weights_kept(trained)}."
        )
    return " ".join(said)


def earned_back(report: RunReport) -> int | None:
    """After how many answers the run's time has been saved; None where it never is or is not known."""
    seconds, each = ((report.scores or {}).get("cost") or {}).get("seconds"), report.seconds_per_1000_answers
    saved = each.get("teacher_seconds", 0.0) - each.get("student_seconds", 0.0)
    return max(100, 100 * round(10 * seconds / saved)) if saved > 0 and seconds else None


def _how_good(report: RunReport) -> Tile | None:
    if not report.arms:
        return None
    mine, theirs = (report.arms[arm]["accuracy"] for arm in ("student", "teacher"))
    detail = (
        f"of {count(mine['n'], 'test prompt')}, 95 % interval {interval(mine['ci95'])}; the teacher "
        f"{percent(theirs['value'])} ({interval(theirs['ci95'])})"
    )
    return Tile("How good?", percent(mine["value"]), "right", detail)


def _how_small(report: RunReport) -> Tile | None:
    """Beside the teacher, or where that one's size is not known beside what the student is made of."""
    size, start = report.sizes.get("student"), report.start
    mine = report.parameters("student")
    theirs, whom = report.value("teacher", "parameters"), "the teacher"
    if theirs is None and start is not None:
        theirs, whom = start.parameters, f"its start has {start.layers} layers,"
    if mine is None:
        return None
    layers = f"{count(size.layers, 'layer')}, " if size else ""
    detail = f"{layers}{quantity(mine)} parameters"
    if theirs is None:
        return Tile("How small?", quantity(mine), "parameters", detail)
    smaller = theirs / mine
    meaning = "smaller" if smaller >= 1 else "of the size: it is not smaller"
    answer = f"{times(smaller)}×" if smaller >= 1 else f"{times(1 / smaller)}×"
    return Tile("How small?", answer, meaning, f"{detail}; {whom} {quantity(theirs)}")


def _how_fast(report: RunReport) -> Tile | None:
    mine, theirs = (report.value(arm, "prompts_per_second") for arm in ("student", "teacher"))
    if not mine or not theirs:
        return None
    detail = f"{mine:,.0f} prompts per second; the teacher {theirs:,.1f}"
    if uncached := report.value("teacher", "prompts_per_second_uncached"):
        detail += f", or {uncached:,.1f} where its shared prefix is not cached ({times(mine / uncached)}×)"
    return Tile("How fast?", f"{times(mine / theirs)}×", "as fast as the teacher", detail)


def _what_was_kept(report: RunReport) -> Tile | None:
    found = report.tally
    if found is None or not found.answers:
        return None
    detail = (
        f"{found.kept:,} of {count(found.answers, 'answer')}; {found.prompts_kept:,} of "
        f"{count(found.prompts, 'prompt')} have one"
    )
    return Tile("What was kept?", percent(found.kept / found.answers), "of the answers judged", detail)


def _what_it_cost(report: RunReport) -> Tile | None:
    """Money where any was paid, else time."""
    sums = Counter[str]()
    for part in report.spent.values():
        sums.update(part)
    tokens = quantity(sums["prompt tokens"] + sums["completion tokens"])
    seconds = sum(report.seconds.values())
    took = f"{duration(seconds)} on this machine; " if seconds else ""
    if money := sums["paid"] + sums["maybe"]:
        wasted = f", {dollars(sums['wasted'])} of it wasted" if sums["wasted"] else ""
        detail = f"{took}{tokens} tokens by the teacher{wasted}"
        return Tile("What did it cost?", f"${money / DOLLAR:,.2f}", "to model providers", detail)
    detail = f"{tokens} tokens by the teacher; nothing paid to model providers"
    if not seconds:
        return Tile("What did it cost?", tokens, "tokens", "nothing paid to model providers") if report.spent else None
    return Tile("What did it cost?", duration(seconds), "on this machine", detail)


_TILES = (_how_good, _how_small, _how_fast, _what_was_kept, _what_it_cost)
