"""The report of a data recipe: the road of the answers, what was kept and why, and how the student did in its exam.

Without Plotly, whose script alone is 4.8 MB: figures are bars of the style sheet beside their numbers, and one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.dispatch.money import DOLLAR
from potstill.records import Progress, Watch, unwatched
from potstill.report import tables
from potstill.report.card import public_name
from potstill.report.curve import Curve, curve, logged
from potstill.report.harvested import DataRun, gather_data_run
from potstill.report.html import NAVIGATE, Tile, render
from potstill.report.on_policy import on_policy_part, wrote_itself
from potstill.report.tables import Cell, Table, number
from potstill.report.tally import histogram
from potstill.report.wording import (
    DASH,
    PASS_RATE,
    Claim,
    arm_name,
    arms_in_order,
    beside_teacher,
    claim,
    count,
    duration,
    interval,
    percent,
    percent_bare,
    quantity,
    times,
    weights_kept,
)
from potstill.store.files import write_atomic

_MOST_REASONS = 20


def write_data_report(folder: Path, *, watch: Watch = unwatched) -> Path:
    """Write report.html of a data recipe's run folder from what is there, at any moment of the run."""
    page = folder / "report.html"
    write_atomic(page, render_data_page(gather_data_run(folder)))
    watch(Progress(stage="report", what="report.html", done=1, total=1))
    return page


def render_data_page(data: DataRun) -> str:
    facts = {
        "data": data,
        "sections": sections(data),
        "figures": {},
        "headline": headline(data),
        "road_in_words": road_in_words(data),
        "tiles": tiles(data),
        "claims": claims(data),
        "stages": stages(data),
        "drops": drops(data),
        "requests": requests(data),
        "opinions": opinions(data),
        "pass_rates": pass_rates(data),
        "arms": arms(data),
        "outcomes": outcomes(data),
        "mistakes": mistakes(data),
        "curves": curves(data),
        "own_part": on_policy_part(data.own_text, data.metrics),
        "tables": tables,
        "pass_rate": [PASS_RATE],
        "count": count,
        "percent": percent,
        "duration": duration,
        "quantity": quantity,
        "public_name": public_name,
        "times": times,
    }
    return render("free_text.html.jinja", facts, scripts=[NAVIGATE])


def sections(data: DataRun) -> dict[str, str]:
    """What the run has, in the order of the page."""
    there = {
        "summary": ("In short", True),
        "road": ("The road of the answers", data.road),
        "pass-rates": ("Easy and hard prompts", data.tally),
        "candidates": ("Accepted and rejected", data.candidates),
        "exam": ("The exam", data.scores),
        "answers": ("Answers side by side", data.papers),
        "mistakes": ("What was wrong", data.scores),
        "training": ("The student", data.student),
        "own-answers": ("Its own answers", wrote_itself(data.own_text, data.metrics)),
        "spent": ("Tokens and money", data.spent),
        "licences": ("Licences", True),
        "recipe": ("Recipe", True),
        "versions": ("Again, and versions", True),
    }
    return {key: title for key, (title, has) in there.items() if has}


def headline(data: DataRun) -> str:
    """In one sentence, what came out: of the exam only what the paired interval allows."""
    teacher = public_name(data.recipe.teacher.model)
    if data.scores is not None:
        mine, theirs = (data.scores["arms"][arm]["pass_rate"] for arm in ("student", "teacher"))
        found = data.scores["paired"].get("student - teacher", {}).get("pass_rate")
        share = mine["value"] / theirs["value"] if theirs["value"] else None
        said = beside_teacher(found, share=share, noun="pass rate")
        exam = count(mine["n"], "exam prompt")
        return f"{said}: right on {percent(mine['value'])} of {exam}, the teacher on {percent(theirs['value'])}."
    if data.student is not None:
        return f"A student has learnt {count(data.student['answers'], 'answer')} by {teacher}; it sat no exam yet."
    if data.tally is not None:
        return f"{data.tally.kept:,} of {count(data.tally.answers, 'answer')} by {teacher} were kept."
    if data.road is not None and data.road.answered:
        return f"{teacher} has written {count(data.road.answered, 'answer')}."
    return f"{teacher} has written nothing yet."


def road_in_words(data: DataRun) -> str:
    """What was distilled from what, as far as it went."""
    recipe, said = data.recipe, list[str]()
    if (road := data.road) is not None:
        asked = f"up to {count(recipe.generate.n, 'answer')} to each of {count(road.prompts, 'prompt')}"
        said.append(f"{public_name(recipe.teacher.model)} was asked for {asked}, and wrote {road.answered:,}.")
    if (found := data.tally) is not None:
        said.append(f"{found.passed:,} of {found.answers:,} passed every check and {found.kept:,} were kept.")
    if recipe.student is not None and data.student is not None:
        layers = data.student.get("layers")
        named = public_name(recipe.student.start)
        of = data.start.layers if data.start else None
        made = recipe.student.made_of(layers, of, named) if layers else f"made of {named}"
        said.append(
            f"The student, {made}, learnt "
            f"{count(data.student['answers'], 'answer')} in {count(recipe.train.epochs, 'epoch')}"
            f"{weights_kept(recipe.train.best, data.metrics)}."
        )
    return " ".join(said)


def claims(data: DataRun) -> list[Claim]:
    paired: Mapping[str, Any] = (data.scores or {}).get("paired", {})
    return [claim(arm_name(tables.compared(name)).spoken, found["pass_rate"]) for name, found in paired.items()]


def tiles(data: DataRun) -> list[Tile]:
    made = (_how_good(data), _how_small(data), _what_was_kept(data), _what_it_cost(data))
    return [tile for tile in made if tile is not None]


def _how_good(data: DataRun) -> Tile | None:
    if data.scores is None:
        return None
    mine = data.scores["arms"]["student"]["pass_rate"]
    others = [
        f"{arm_name(arm).spoken} {percent(data.scores['arms'][arm]['pass_rate']['value'])}"
        for arm in arms_in_order(data.scores["arms"])
        if arm != "student"
    ]
    detail = f"{count(mine['n'], 'exam prompt')}, 95 % interval {PASS_RATE.interval(mine)}; {', '.join(others)}"
    return Tile("How good?", percent(mine["value"]), "of its exam right", detail)


def _how_small(data: DataRun) -> Tile | None:
    if data.size is None:
        return None
    mine = f"{count(data.size.layers, 'layer')}, {quantity(data.size.parameters)} parameters"
    if data.start is None:
        return Tile("How small?", quantity(data.size.parameters), "parameters", mine)
    share = data.size.parameters / data.start.parameters
    whole = f"its start has {data.start.layers} layers, {quantity(data.start.parameters)}"
    return Tile("How small?", percent(share), "of its start's parameters", f"{mine}; {whole}")


def _what_was_kept(data: DataRun) -> Tile | None:
    found = data.tally
    if found is None or not found.answers:
        return None
    detail = (
        f"{found.kept:,} of {count(found.answers, 'answer')}; {found.prompts_kept:,} of "
        f"{count(found.prompts, 'prompt')} have one"
    )
    return Tile("What was kept?", percent(found.kept / found.answers), "of the answers judged", detail)


def _what_it_cost(data: DataRun) -> Tile | None:
    if not data.spent:
        return None
    sums = Counter[str]()
    for part in data.spent.values():
        sums.update(part)
    tokens = sums["prompt tokens"] + sums["completion tokens"]
    money = (sums["paid"] + sums["maybe"]) / DOLLAR
    wasted = f"; {_dollars(sums['wasted'])} of it wasted" if sums["wasted"] else ""
    if not money:
        return Tile("What did it cost?", quantity(tokens), "tokens", "nothing paid to model providers")
    return Tile("What did it cost?", f"${money:,.2f}", "to model providers", f"{quantity(tokens)} tokens{wasted}")


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a table with a bar of `share` of the widest."""

    label: str
    text: str
    share: float
    small: str = ""
    tone: str = ""


def stages(data: DataRun) -> list[Bar]:
    """Answers asked for, answered, judged, passed, kept."""
    if data.road is None:
        return []
    steps: dict[str, tuple[int, str]] = {
        "asked for": (data.road.wanted, f"{count(data.road.prompts, 'prompt')} × {data.recipe.generate.n}"),
        "answered": (data.road.answered, ""),
    }
    if found := data.tally:
        steps |= {
            "judged": (found.answers, f"{count(found.prompts, 'prompt')}"),
            "passed every check": (found.passed, f"{found.prompts - _hopeless(data):,} prompts have one"),
            "kept": (found.kept, f"{found.prompts_kept:,} prompts have one"),
        }
    most = max(1, *(n for n, _ in steps.values()))
    tone = {"kept": "kept"}
    return [Bar(what, f"{n:,}", n / most, small, tone.get(what, "")) for what, (n, small) in steps.items()]


def _hopeless(data: DataRun) -> int:
    assert data.tally is not None
    return sum(prompts for (right, _), prompts in data.tally.right.items() if right == 0)


def drops(data: DataRun) -> list[Bar]:
    """Why an answer that was asked for is not kept, the most frequent reason first."""
    road, found = data.road, data.tally
    if road is None:
        return []
    never = road.wanted - road.answered - sum(n for why, n in road.lost.items() if why != "cut off")
    rows = [(why, n, "no usable answer") for why, n in road.lost.items()]
    rows.append(("not asked, or no answer yet", never, "no usable answer"))
    if found is not None:
        rows.append(("not judged yet", road.usable - found.answers, "potstill verify does it"))
        rows += [
            (why, n, "a check objected" if ": " in why else "passed, not chosen") for why, n in found.reasons.items()
        ]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: (-row[1], row[0]))
    most = max((n for _, n, _ in rows), default=1)
    shown = [Bar(why, f"{n:,}", n / most, where) for why, n, where in rows[:_MOST_REASONS]]
    if rest := rows[_MOST_REASONS:]:
        left = sum(n for _, n, _ in rest)
        shown.append(Bar(f"{count(len(rest), 'other reason')}", f"{left:,}", left / most, "together"))
    return shown


def opinions(data: DataRun) -> Table | None:
    """What each check said, of all answers."""
    if data.tally is None:
        return None
    rows = [
        [Cell(check), *(number(f"{said[opinion]:,}") for opinion in ("passed", "failed", "undecided"))]
        for check, said in data.tally.opinions.items()
    ]
    return Table(columns=[Cell("Check"), number("Passed"), number("Failed"), number("Undecided")], rows=rows)


def pass_rates(data: DataRun) -> tuple[list[Bar], int] | None:
    """Prompts by how many of their answers passed, and how many prompts have fewer answers than asked for."""
    if data.tally is None:
        return None
    found = histogram(data.tally, data.recipe.generate.n)
    n = found.bars[-1][1]
    most = max(1, *(prompts for *_, prompts in found.bars))
    notes = {0: "hopeless: nothing to learn from", n: "trivial: nothing to choose from"}
    bars = [
        Bar(
            f"{low:,} of {n:,}" if low == high else f"{low:,} to {high:,} of {n:,}",
            f"{prompts:,}",
            prompts / most,
            notes.get(low, "") if low == high and n > 1 else "",
        )
        for low, high, prompts in found.bars
    ]
    return bars, found.short


@dataclass(frozen=True, slots=True)
class Dot:
    """A pass rate with its interval, all in per cent of the axis."""

    arm: str
    note: str
    value: str
    interval: str
    at: float
    low: float
    high: float


def arms(data: DataRun) -> list[Dot]:
    if data.scores is None:
        return []
    notes = {"teacher": public_name(data.recipe.teacher.model), "student": "what this run made"}
    dots: list[Dot] = []
    for arm in arms_in_order(data.scores["arms"]):
        score = data.scores["arms"][arm]["pass_rate"]
        low, high = score["ci95"]
        note = notes.get(arm, arm_name(arm).note)
        ends = (100 * end for end in (score["value"], low, high))
        dots.append(Dot(arm_name(arm).label, note, percent(score["value"]), interval((low, high), percent_bare), *ends))
    return dots


def outcomes(data: DataRun) -> Table | None:
    """Exam prompts by who was right: all that the paired difference is made of."""
    if data.exam is None:
        return None
    seen = data.exam.outcomes
    rows = [
        [
            Cell(f"Student {'right' if mine else 'wrong'}"),
            *(number(f"{seen[mine, theirs]:,}") for theirs in (True, False)),
        ]
        for mine in (True, False)
    ]
    return Table(columns=[Cell("Exam prompts"), number("Teacher right"), number("Teacher wrong")], rows=rows)


def mistakes(data: DataRun) -> Table | None:
    """What was wrong with whose answers, what the student does most first."""
    if data.scores is None:
        return None
    names = arms_in_order(data.scores["arms"])
    wrong: dict[str, Mapping[str, int]] = {arm: data.scores["arms"][arm].get("wrong", {}) for arm in names}
    reasons = {reason: None for arm in ("student", *names) for reason in wrong[arm]}
    order = sorted(
        reasons, key=lambda reason: (-wrong["student"].get(reason, 0), -sum(w.get(reason, 0) for w in wrong.values()))
    )
    rows = [
        [Cell(reason), *(number(f"{wrong[arm].get(reason, 0):,}") for arm in names)] for reason in order[:_MOST_REASONS]
    ]
    if rest := order[_MOST_REASONS:]:
        left = [number(f"{sum(wrong[arm].get(reason, 0) for reason in rest):,}") for arm in names]
        rows.append([Cell(count(len(rest), "other reason")), *left])
    rows.append([Cell("right"), *(number(f"{_right(data.scores['arms'][arm]['pass_rate']):,}") for arm in names)])
    return Table(columns=[Cell("What was wrong"), *(number(arm_name(arm).label) for arm in names)], rows=rows)


def _right(rate: Mapping[str, Any]) -> int:
    return round(rate["value"] * rate["n"])


def requests(data: DataRun) -> Table:
    """Tokens and money by what they went into; what brought no answer stands apart."""
    heads = ("Requests", "Tokens read", "Tokens written", "Paid", "Possibly paid", "Wasted")
    rows: list[list[Cell]] = []
    for what, sums in data.spent.items():
        counts = (sums.get(name, 0) for name in ("attempts", "prompt tokens", "completion tokens"))
        money = (sums.get(name, 0) for name in ("paid", "maybe", "wasted"))
        rows.append([Cell(what), *(number(f"{n:,}") for n in counts), *(number(_dollars(n)) for n in money)])
        failures = {name: n for name, n in sums.items() if name.startswith("failure: ")}
        for name, n in sorted(failures.items(), key=lambda item: -item[1]):
            rows.append([Cell("", f"of these failed: {name.removeprefix('failure: ')}"), number("", f"{n:,}")])
            rows[-1] += [Cell("")] * (len(heads) - 1)
    return Table(columns=[Cell("For what"), *map(number, heads)], rows=rows)


def _dollars(picodollars: int) -> str:
    if not picodollars:
        return DASH
    dollars = picodollars / DOLLAR
    return f"${dollars:,.2f}" if dollars >= 0.1 else f"${dollars:.4f}"


def curves(data: DataRun) -> list[Curve]:
    titles = {
        "loss": "Training loss by step, nats per token",
        "validation_nats_per_token": "Cross-entropy on kept answers that it did not learn, nats per token",
    }
    made = (curve(title, logged(data.metrics, key)) for key, title in titles.items())
    return [line for line in made if line is not None]
