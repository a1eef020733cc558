"""Which answers of a prompt are kept. Every answer that is not has a reason; nothing here knows where answers lie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from potstill.recipe import checks as ask
from potstill.recipe.select import Select
from potstill.records import Finding, Prompt, Sample
from potstill.verify.check import name_of
from potstill.verify.text import extracted, failed, normalised, passed, undecided

KEPT = "kept"

Gate = Callable[[Prompt, Sample], str]
"""Why an answer must not be kept although it passed ("" where it may be). It is asked last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer with what all checks said of it. `reason` is KEPT, or what spoke against keeping it."""

    prompt: Prompt
    sample: Sample
    findings: tuple[Finding, ...]
    reason: str = ""
    evidence: str = ""
    student_nats: float | None = None
    weight: float = 1.0

    @property
    def kept(self) -> bool:
        return self.reason == KEPT

    @property
    def score(self) -> float | None:
        """Mean of the scores that checks gave."""
        scores = [f.score for f in self.findings if f.score is not None]
        return sum(scores) / len(scores) if scores else None


def objections(group: Sequence[Judged], verification: ask.Verify) -> list[Judged]:
    """All answers to one prompt, in order; those that passed have no reason."""
    return [first_objection(one, verification) for one in group]


def settle(judged: Sequence[Judged], select: Select, gate: Gate) -> tuple[list[Judged], tuple[Judged, Judged] | None]:
    """All answers to one prompt with their reasons, in order, and the best kept beside the first that failed; `judged`
    went through `objections`.

    Only the first try with a passed answer counts. The band says how hard a prompt is for the teacher asked as every
    prompt is, so it does not hold back a prompt that rescue was meant for.
    """
    passed = [one for one in judged if not one.reason]
    first = min((one.sample.rescue for one in passed), default=0)
    asked = [one for one in judged if one.sample.rescue == 0]
    right = sum(not one.reason for one in asked)
    weight = weight_of(right, len(asked)) if select.weight == "pass_rate" else 1.0
    good = [replace(one, weight=weight) for one in passed if one.sample.rescue == first]
    share, (least, most) = right / max(1, len(asked)), select.pass_rate
    if good and first == 0 and not least <= share <= most:
        reason = "prompt too easy" if share > most else "prompt too hard"
        chosen = {one.sample.index: replace(one, reason=reason, evidence=f"{share:.0%} passed") for one in good}
    else:
        chosen = _best(good, select, gate)
    late = [replace(one, reason="rescue was not needed") for one in passed if one.sample.rescue != first]
    chosen |= {one.sample.index: one for one in late}
    settled = [chosen.get(one.sample.index, one) for one in judged]
    kept = next((one for one in _ordered(good, select.prefer) if chosen[one.sample.index].kept), None)
    rejected = next((one for one in judged if any(f.opinion == "failed" for f in one.findings)), None)
    return settled, (kept, rejected) if kept and rejected else None


def weight_of(passed: int, answers: int) -> float:
    """2 (1 - p) where p = (passed + 1) / (answers + 2) is the smoothed pass rate (Laplace): linear in how often the
    teacher fails, as DART-Math samples (Tong et al. 2024, "Prop2Diff"), and 1 at a half. It is never 0."""
    return 2 * (1 - (passed + 1) / (answers + 2))


def first_objection(one: Judged, verification: ask.Verify) -> Judged:
    """The answer with what speaks against it. A failure speaks louder than doubt, whichever comes first."""
    if reason := no_answer(one):
        return replace(one, reason=reason, evidence=one.sample.text[:200])
    doubts = verification.undecided == "drop"
    against = next((f for f in one.findings if f.opinion == "failed"), None)
    against = against or next((f for f in one.findings if doubts and f.opinion == "undecided"), None)
    if against is None:
        return one
    said = against.reason if against.opinion == "failed" else f"undecided, {against.reason}"
    return replace(one, reason=f"{against.check.partition('@')[0]}: {said}", evidence=against.evidence)


def no_answer(one: Judged) -> str:
    """Why it is none, whatever checks say: it says nothing, refuses, or calls a tool that nobody offered."""
    if one.sample.empty:
        return "an empty answer"
    if one.sample.finish == "refusal":
        return "the teacher refused"
    offered = {tool.get("function", {}).get("name") for tool in one.prompt.tools}
    offered |= {call["function"]["name"] for turn in one.prompt.messages for call in turn.tool_calls}
    if any(call["function"]["name"] not in offered for call in one.sample.tool_calls):
        return "calls a tool that was not offered"
    return ""


def _best(good: Sequence[Judged], select: Select, gate: Gate) -> dict[int, Judged]:
    """The best `keep` that the gate lets through, and why the others are not among them."""
    chosen: dict[int, Judged] = {}
    kept = 0
    for one in _ordered(good, select.prefer):
        reason = KEPT if kept < select.keep else f"not among the {select.keep} best"
        if reason == KEPT and (refused := gate(one.prompt, one.sample)):
            reason = refused
        what, _, evidence = reason.partition(": ")
        chosen[one.sample.index] = replace(one, reason=what, evidence=evidence)
        kept += reason == KEPT
    return chosen


def _ordered(good: Sequence[Judged], prefer: str) -> list[Judged]:
    match prefer:
        case "shortest":
            return sorted(good, key=lambda one: (len(one.sample.text), one.sample.index))
        case "learnable":
            return sorted(good, key=lambda one: (_surprise(one), one.sample.index))
        case "score":
            return sorted(good, key=lambda one: (-(one.score or 0.0), one.sample.index))
        case _:
            return sorted(good, key=lambda one: one.sample.index)


def _surprise(one: Judged) -> float:
    """What the student cannot read at all comes last."""
    return math.inf if one.student_nats is None else one.student_nats


def with_majority(group: Sequence[Judged], checks: Sequence[ask.Check]) -> list[Judged]:
    """The findings of all checks but the late ones, with those of majority checks put in at their places. Votes are
    those of one try: what a prompt's own answers are worth does not change with those that rescue brings."""
    checks = [check for check in checks if not isinstance(check, ask.Judge | ask.RewardModel)]
    tries = [list(some) for _, some in groupby(group, key=lambda one: one.sample.rescue)]
    found = [list(one.findings) for one in group]
    for place, check in enumerate(checks):
        if isinstance(check, ask.Majority):
            votes = [finding for some in tries for finding in _majority(check, some)]
            for findings, finding in zip(found, votes, strict=True):
                findings.insert(place, replace(finding, check=name_of(check)))
    return [replace(one, findings=tuple(findings)) for one, findings in zip(group, found, strict=True)]


def _majority(check: ask.Majority, group: Sequence[Judged]) -> list[Finding]:
    """A tie has no majority. Of fewer than three answers none is told."""
    answers = [None if no_answer(one) else extracted(check.extract, one.sample.text) for one in group]
    forms = [None if answer is None else normalised(answer) for answer in answers]
    votes = Counter(form for form in forms if form is not None).most_common(2)
    if len(group) < 3:
        return [undecided("fewer than three answers")] * len(group)
    tied = len(votes) == 2 and votes[0][1] == votes[1][1]
    if not votes or tied or votes[0][1] / len(group) < check.share:
        return [undecided("no majority", votes[:1])] * len(group)
    winner, count = votes[0]
    tally = f"{count} of {len(group)} say {winner}"
    return [
        failed("no answer found") if form is None else passed(tally) if form == winner else failed("outvoted", tally)
        for form in forms
    ]
