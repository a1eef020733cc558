"""From what was asked for to what was kept."""

from __future__ import annotations

from potstill.recipe.task import Choice
from potstill.report.gather import RunReport
from potstill.report.numbers import count
from potstill.report.tally import Histogram, histogram

_MOST_REASONS = 20

Row = tuple[str, int, str]
"""What, how many, and a remark."""


def stages(report: RunReport) -> list[Row]:
    """Answers asked for, answered, judged, passed, kept."""
    assert report.road is not None
    steps = [
        ("asked for", report.road.wanted, f"{count(report.road.prompts, 'prompt')} × {report.recipe.generate.n}"),
        ("answered", report.road.answered, ""),
    ]
    if found := report.tally:
        hopeless = sum(prompts for (right, _), prompts in found.right.items() if right == 0)
        voted = "each counted from its votes" if _votes(report) else count(found.prompts, "training prompt")
        steps += [("answered in a rescue", found.rescued, "")] if found.rescued else []
        steps += [
            ("judged", found.answers, voted),
            ("passed every check", found.passed, f"{found.prompts - hopeless:,} prompts have one"),
            ("kept", found.kept, f"{found.prompts_kept:,} prompts have one"),
        ]
    return steps


def _votes(report: RunReport) -> bool:
    """Whether the answers to a prompt were counted as one."""
    return isinstance(report.recipe.task, Choice) and report.recipe.generate.n > 1


def drops(report: RunReport) -> list[Row]:
    """Why an answer that was asked for is not kept, the most frequent reason first."""
    road, found = report.road, report.tally
    assert road is not None
    never = road.wanted - road.answered - sum(n for why, n in road.lost.items() if why != "cut off")
    rows = [(why, n, "no usable answer") for why, n in road.lost.items()]
    rows.append(("not asked, or no answer yet", never, "no usable answer"))
    rows.append(("of a validation prompt", road.to_validate, "never learned from"))
    if found is not None:
        if not _votes(report):
            rows.append(("not judged yet", road.to_judge + found.rescued - found.answers, "potstill verify does it"))
        rows += [
            (why, n, "a check objected" if ": " in why else "passed, not chosen") for why, n in found.reasons.items()
        ]
    ordered = sorted((row for row in rows if row[1] > 0), key=lambda row: (-row[1], row[0]))
    if rest := ordered[_MOST_REASONS:]:
        ordered[_MOST_REASONS:] = [(count(len(rest), "other reason"), sum(n for _, n, _ in rest), "together")]
    return ordered


def pass_rates(report: RunReport) -> Histogram | None:
    """None where a prompt has one answer alone."""
    if report.tally is None or report.recipe.generate.n == 1 or _votes(report):
        return None
    return histogram(report.tally, report.recipe.generate.n)
