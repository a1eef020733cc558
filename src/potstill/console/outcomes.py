"""What a stage brought, for people and, with --json, for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.console.output import clean, say, say_json
from potstill.dispatch.money import DOLLAR

if TYPE_CHECKING:  # names of types alone: the light verbs do without what only the others use
    from potstill.generate.stage import Generated
    from potstill.verify.stage import Verified


def show_source(how_read: Iterable[str], left_out: Mapping[str, int]) -> None:
    """How the prompts' files are read, and what of them is left out."""
    for said in how_read:
        say(clean(said))
    for reason, count in left_out.items():
        say(f"left out: {count:,}, {clean(reason)}")


def show_generated(found: Generated, *, as_json: bool) -> None:
    """What the teacher's answers came to, and where they are."""
    totals = found.totals
    if as_json:
        say_json(
            {
                "file": str(found.answers),
                "answers": found.exported,
                "prompts": found.prompts,
                "left_out": found.left_out,
                "how_read": found.how_read,
                "lost": found.lost,
                "said": found.said,
                **totals,
            }
        )
        return
    show_source(found.how_read, found.left_out)
    settled = ", ".join(f"{n:,} {how}" for how, n in sorted(found.settled.items())) or "none"
    say(f"{found.exported:,} answers in {clean(str(found.answers))}")
    say(f"prompts: {found.prompts:,} ({settled})")
    read, written = totals.get("prompt tokens", 0), totals.get("completion tokens", 0)
    say(f"tokens: {read:,} read, {written:,} written, in {totals.get('attempts', 0):,} requests")
    paid, wasted, maybe = (totals.get(name, 0) / DOLLAR for name in ("paid", "wasted", "maybe"))
    unknown = f"{totals.get('maybe attempts', 0):,} requests whose outcome is not known"
    say(f"spent: ${paid:.4f}, possibly paid beyond that: ${maybe:.4f} ({unknown}), wasted: ${wasted:.4f}")
    for reason, count in found.lost.items():
        say(f"{reason}: {count:,} answers")
    for name in sorted(name for name in totals if name.startswith("failure: ")):
        kind = name.removeprefix("failure: ")
        first = f"; the first: {clean(found.said[kind])}" if found.said.get(kind) else ""
        say(f"{kind}: {totals[name]:,} requests{first}")


def show_verified(found: Verified, *, rescue: bool, as_json: bool) -> None:
    """What became of the answers, and where the good ones are; `rescue`: whether the recipe has that section."""
    if as_json:
        reasons = dict(found.reasons.most_common())
        kept = {"selected": str(found.selected), "reasons": reasons, "prompts": dict(found.prompts)}
        say_json({**kept, "pairs": found.pairs, "judges": {name: dict(sums) for name, sums in found.judges.items()}})
        return
    total = found.reasons.total()
    say(f"{found.kept:,} of {total:,} answers kept in {clean(str(found.selected))}")
    for reason, count in found.left_out:
        say(f"  {count:>9,} ({count / total:.1%})  {clean(reason)}")
    for name, totals in found.judges.items():
        spent = (totals.get("paid", 0) + totals.get("maybe", 0)) / DOLLAR
        say(f"{clean(name)}: {totals.get('attempts', 0):,} requests in all, ${spent:.4f}")
    lost, silent = found.prompts["lost"] + found.prompts["unanswered"], found.prompts["unanswered"]
    without = f" ({silent:,} of them without an answer to judge)" if silent else ""
    say(f"prompts without a kept answer: {lost:,} of {found.prompts.total():,}{without}")
    if 2 * lost > found.prompts.total():
        say(
            "warning: the student learns from fewer than half of the prompts; see which check objects, or add 'rescue:'"
        )
    if rescue:
        say(f"rescued prompts: {found.prompts['rescued']:,} (potstill rescue asks again)")


def show_trained(models: Mapping[str, Path], *, as_json: bool) -> None:
    if as_json:
        say_json({"models": {arm: str(model) for arm, model in models.items()}})
        return
    for arm, model in models.items():
        say(f"{clean(arm)}: {clean(str(model))}")


def show_exported(files: Mapping[Path, int], *, as_json: bool) -> None:
    if as_json:
        say_json({"files": {str(path): rows for path, rows in files.items()}})
        return
    for path, rows in files.items():
        say(f"{rows:,} rows in {clean(str(path))}")


def show_report(page: Path, *, as_json: bool) -> None:
    if as_json:
        say_json({"report": str(page)})
    else:
        say(f"report: {clean(str(page))}")
