"""Verdicts counted in one streamed pass, and the few prompts that a page shows. Of a million rows only sums and those
few stay in memory."""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from potstill.records import Opinion, Verdict
from potstill.store.verdicts import read_verdicts

Kind = Literal["mixed", "hopeless", "trivial"]
"""Prompts of which some, none or all answers passed."""

SHOWN = 12
_SHOWN_OF: Mapping[Kind, int] = {"mixed": 8, "hopeless": 2, "trivial": 2}


class Few:
    """Of all that is added, the first few by a hash of their ids: spread over the run, the same every time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[bytes, str]] = []

    def add(self, prompt_id: str) -> None:
        insort(self._kept, (hashlib.sha256(prompt_id.encode()).digest(), prompt_id))
        del self._kept[self._size :]

    @property
    def ids(self) -> list[str]:
        return [prompt_id for _, prompt_id in self._kept]


@dataclass(slots=True)
class Tally:
    """`rescued` are answers beyond the recipe's own to a prompt; `right` counts prompts by (answers that passed,
    answers judged); `reasons` those that were not kept; `opinions` what each check said."""

    answers: int = 0
    passed: int = 0
    kept: int = 0
    rescued: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    right: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    prompts_kept: int = 0
    opinions: dict[str, Counter[Opinion]] = field(default_factory=dict[str, "Counter[Opinion]"])
    few: dict[Kind, Few] = field(default_factory=lambda: {kind: Few(SHOWN) for kind in _SHOWN_OF})

    @property
    def prompts(self) -> int:
        return self.right.total()

    @property
    def shown(self) -> dict[str, Kind]:
        """The ids of the prompts to show: eight mixed, two hopeless, two trivial; where one kind has too few, more of
        the others."""
        chosen = {i: kind for kind, most in _SHOWN_OF.items() for i in self.few[kind].ids[:most]}
        spare = ((i, kind) for kind in _SHOWN_OF for i in self.few[kind].ids if i not in chosen)
        for i, kind in list(spare)[: max(0, SHOWN - len(chosen))]:
            chosen[i] = kind
        return {i: kind for kind in _SHOWN_OF for i, found in chosen.items() if found == kind}


def passes(ruling: Verdict, *, lenient: bool) -> bool:
    """Whether all checks let it pass; `lenient` where the recipe keeps what a check cannot say."""
    allowed = ("passed", "undecided") if lenient else ("passed",)
    return all(finding.opinion in allowed for finding in ruling.findings)


def tally(path: Path, *, lenient: bool, own: int) -> Tally:
    """`own`: how many answers to a prompt the recipe asks for; rescued ones are numbered on from there."""
    found = Tally()
    for prompt_id, group in groupby(read_verdicts(path), key=lambda ruling: ruling.prompt_id):
        judged = passed = kept = 0
        for ruling in group:
            judged += 1
            passed += passes(ruling, lenient=lenient)
            kept += ruling.kept
            found.rescued += ruling.index >= own
            if not ruling.kept:
                found.reasons[ruling.reason] += 1
            for finding in ruling.findings:
                found.opinions.setdefault(finding.check.partition("@")[0], Counter())[finding.opinion] += 1
        found.answers += judged
        found.passed += passed
        found.kept += kept
        found.prompts_kept += kept > 0
        found.right[passed, judged] += 1
        found.few["trivial" if passed == judged else "mixed" if passed else "hopeless"].add(prompt_id)
    return found


def rulings(path: Path, ids: Sequence[str]) -> dict[tuple[str, int], Verdict]:
    """The rows of a few prompts."""
    wanted = frozenset(ids)
    return {(r.prompt_id, r.index): r for r in read_verdicts(path) if r.prompt_id in wanted}


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Prompts by how many of their answers passed: (from, to, prompts), and how many have fewer than n answers."""

    bars: Sequence[tuple[int, int, int]]
    short: int


def histogram(found: Tally, n: int) -> Histogram:
    """None and all stand alone; between them at most ten bars."""
    n = max([n, *(judged for _, judged in found.right)])
    passed: Counter[int] = Counter()
    for (right, _), prompts in found.right.items():
        passed[right] += prompts
    width = -(-max(1, n - 1) // 10)
    between = [(low, min(low + width, n) - 1) for low in range(1, n, width)]
    edges = [(0, 0), *between, (n, n)]
    bars = [(low, high, sum(passed[k] for k in range(low, high + 1))) for low, high in edges]
    return Histogram(bars=bars, short=sum(p for (_, judged), p in found.right.items() if judged < n))


Outcome = tuple[bool, bool]
"""(student right, teacher right)."""

_TESTS_SHOWN: Mapping[Outcome, int] = {(True, False): 8, (False, True): 8, (False, False): 6, (True, True): 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Test prompts by who was right, and the few to show, those where teacher and student differ first."""

    count: Counter[Outcome]
    shown: Mapping[str, Outcome]


def tally_outcomes(ids: Iterable[str], *, student: AbstractSet[str], teacher: AbstractSet[str]) -> Outcomes:
    """Of the test prompts `ids`; `student` and `teacher`: those that each has right. A prompt without an answer is not
    right."""
    count: Counter[Outcome] = Counter()
    few = {outcome: Few(most) for outcome, most in _TESTS_SHOWN.items()}
    for prompt_id in ids:
        outcome = (prompt_id in student, prompt_id in teacher)
        count[outcome] += 1
        few[outcome].add(prompt_id)
    return Outcomes(count=count, shown={i: outcome for outcome in few for i in few[outcome].ids})


def right_ids(path: Path) -> set[str]:
    """The test prompts whose answer passed every check."""
    return {ruling.prompt_id for ruling in read_verdicts(path) if ruling.kept}
