"""From what was asked for to what was kept, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.recipe.task import Choice
from potstill.records import Split
from potstill.report.gather import RunReport
from potstill.report.numbers import count, dollars
from potstill.report.tables import Bar, Cell, Table, number, ranked
from potstill.report.tally import histogram

_MOST_REASONS = 20
_USES: Mapping[Split, str] = {
    "train": "to train on",
    "validation": "to validate, and to calibrate the teacher's confidence where there are choices",
    "test": "to test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadPart:
    """`drops`: why answers were not kept; `opinions`: what each check said; `notes` about the prompts."""

    stages: Sequence[Bar]
    drops: Sequence[Bar]
    opinions: Table | None
    notes: Sequence[str]


def road_part(report: RunReport) -> RoadPart | None:
    if report.road is None:
        return None
    return RoadPart(stages=_stages(report), drops=_drops(report), opinions=_opinions(report), notes=_notes(report))


def _stages(report: RunReport) -> list[Bar]:
    """Answers asked for, answered, judged, passed, kept."""
    assert report.road is not None
    steps = [
        ("asked for", report.road.wanted, f"{count(report.road.prompts, 'prompt')} × {report.recipe.generate.n}"),
        ("answered", report.road.answered, ""),
    ]
    if found := report.tally:
        hopeless = sum(prompts for (right, _), prompts in found.right.items() if right == 0)
        voted = "each counted from its votes" if _votes(report) else count(found.prompts, "training prompt")
        steps += [
            ("judged", found.answers, voted),
            ("passed every check", found.passed, f"{found.prompts - hopeless:,} prompts have one"),
            ("kept", found.kept, f"{found.prompts_kept:,} prompts have one"),
        ]
    most = max(1, *(n for _, n, _ in steps))
    return [Bar(what, f"{n:,}", n / most, small, "kept" if what == "kept" else "") for what, n, small in steps]


def _votes(report: RunReport) -> bool:
    """Whether the answers to a prompt were counted as one."""
    return isinstance(report.recipe.task, Choice) and report.recipe.generate.n > 1


def _drops(report: RunReport) -> list[Bar]:
    """Why an answer that was asked for is not kept, the most frequent reason first."""
    road, found = report.road, report.tally
    assert road is not None
    never = road.wanted - road.answered - sum(n for why, n in road.lost.items() if why != "cut off")
    rows = [(why, n, "no usable answer") for why, n in road.lost.items()]
    rows.append(("not asked, or no answer yet", never, "no usable answer"))
    rows.append(("of a validation prompt", road.to_validate, "never learned from"))
    if found is not None:
        if not _votes(report):
            rows.append(("not judged yet", road.to_judge - found.answers, "potstill verify does it"))
        rows += [
            (why, n, "a check objected" if ": " in why else "passed, not chosen") for why, n in found.reasons.items()
        ]
    return ranked(rows, _MOST_REASONS)


def _opinions(report: RunReport) -> Table | None:
    """What each check said, of all answers."""
    if report.tally is None or not report.tally.opinions:
        return None
    rows = [
        [Cell(check), *(number(f"{said[opinion]:,}") for opinion in ("passed", "failed", "undecided"))]
        for check, said in report.tally.opinions.items()
    ]
    return Table(columns=[Cell("Check"), number("Passed"), number("Failed"), number("Undecided")], rows=rows)


def _notes(report: RunReport) -> list[str]:
    assert report.road is not None
    notes: list[str] = []
    if len(splits := report.road.splits) > 1:
        uses = (f"{splits[split]:,} {use}" for split, use in _USES.items() if split in splits)
        notes.append(f"Prompts: {'; '.join(uses)}.")
    if found := report.tally:
        notes.append(
            f"{count(found.prompts, 'prompt')} judged, {found.prompts_kept:,} with a kept answer, "
            f"{found.prompts - found.prompts_kept:,} without: what checks reject is no random sample, hard prompts are "
            "missing more often."
        )
    left_out = sorted(report.road.left_out.items(), key=lambda item: -item[1])
    notes += [f"Left out before anything was asked: {n:,}, {why}." for why, n in left_out if n]
    return notes


@dataclass(frozen=True, slots=True)
class PassRates:
    """Prompts by how many of their answers passed; `short` of them have fewer than were asked for."""

    bars: Sequence[Bar]
    short: int


def pass_rates(report: RunReport) -> PassRates | None:
    """None where a prompt has one answer alone."""
    if report.tally is None or report.recipe.generate.n == 1 or _votes(report):
        return None
    found = histogram(report.tally, report.recipe.generate.n)
    n = found.bars[-1][1]
    most = max(1, *(prompts for *_, prompts in found.bars))
    notes = {0: "hopeless: nothing to learn from", n: "trivial: nothing to choose from"}
    bars = [
        Bar(
            f"{low:,} of {n:,}" if low == high else f"{low:,} to {high:,} of {n:,}",
            f"{prompts:,}",
            prompts / most,
            notes.get(low, "") if low == high else "",
        )
        for low, high, prompts in found.bars
    ]
    return PassRates(bars, found.short)


def requests(report: RunReport) -> Table | None:
    """Tokens and money by what they went into; what brought no answer stands apart."""
    if not report.spent:
        return None
    heads = ("Requests", "Tokens read", "Tokens written", "Paid", "Possibly paid", "Wasted")
    rows: list[list[Cell]] = []
    for what, sums in report.spent.items():
        counts = (sums.get(name, 0) for name in ("attempts", "prompt tokens", "completion tokens"))
        money = (sums.get(name, 0) for name in ("paid", "maybe", "wasted"))
        rows.append([Cell(what), *(number(f"{n:,}") for n in counts), *(number(dollars(n)) for n in money)])
        failures = {name: n for name, n in sums.items() if name.startswith("failure: ")}
        for name, n in sorted(failures.items(), key=lambda item: -item[1]):
            rows.append([Cell("", f"of these failed: {name.removeprefix('failure: ')}"), number("", f"{n:,}")])
            rows[-1] += [Cell("")] * (len(heads) - 1)
    return Table(columns=[Cell("For what"), *map(number, heads)], rows=rows)
