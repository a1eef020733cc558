"""The report of a run: one HTML page that loads nothing, for managers on top, engineers below."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs]

from potstill.report import tables
from potstill.report.data import ReportData
from potstill.report.figures import figures
from potstill.report.html import NAVIGATE, Tile, render
from potstill.report.wording import (
    DASH,
    EFFORT,
    QUALITY,
    beside_teacher,
    count,
    duration,
    how_trained,
    interval,
    percent,
    percent_bare,
    quantity,
    three_decimals,
    times,
    weights_kept,
)

__all__ = ["ReportData", "render_page"]

SECTIONS = {
    "summary": "In short",
    "licences": "Licences",
    "accuracy": "Accuracy",
    "arms": "Every arm",
    "differences": "Differences",
    "gap": "Gap recovered",
    "curves": "Learning curves",
    "calibration": "Calibration",
    "disagreements": "Disagreements",
    "both-wrong": "Both wrong",
    "verification": "Verification",
    "prompts": "Prompts",
    "time": "Time",
    "recipe": "Recipe",
    "versions": "Versions",
}

DRAW = """
(() => {
  const boxes = [...document.querySelectorAll(".figure")];
  const config = {displaylogo: false, displayModeBar: false, responsive: true};
  const coarse = matchMedia("(pointer: coarse)").matches;
  for (const box of boxes) {
    const figure = JSON.parse(document.getElementById(box.id + "-json").textContent);
    if (coarse) figure.layout.dragmode = false;
    Plotly.newPlot(box, figure.data, figure.layout, config);
  }
  const fit = width => boxes.forEach(box => Plotly.relayout(box, {width, autosize: !width}));
  addEventListener("beforeprint", () => fit(620));
  addEventListener("afterprint", () => fit(null));
})();
"""


def render_page(data: ReportData) -> str:
    """The whole page."""
    rows = tables.judged(data)
    choices = data.recipe.answers.choices
    facts = {
        "data": data,
        "sections": SECTIONS,
        "figures": {name: Markup(json) for name, json in figures(data).items()},
        "headline": headline(data),
        "tiles": tiles(data),
        "claims": tables.claims(data),
        "earned_back": earned_back(data),
        "metrics": [*QUALITY, *EFFORT],
        "quality": QUALITY,
        "tables": tables,
        "rows": rows,
        "sides": tables.sides(rows, choices),
        "choices": choices,
        "trained": how_trained(data.recipe.train.method) + weights_kept(data.recipe.train.best, data.metrics),
        "percent": percent,
        "duration": duration,
        "decimals": three_decimals,
    }
    return render("page.html.jinja", facts, scripts=[get_plotlyjs(), DRAW + NAVIGATE])


def headline(data: ReportData) -> str:
    """How good, how small, how fast, in one sentence that the intervals allow."""
    share = data.ratio("student", "teacher", "accuracy")
    found = data.scores["paired"].get("student - teacher", {}).get("accuracy")
    good = beside_teacher(found, share=share, noun="accuracy")
    parts = [good]
    smaller = data.ratio("teacher", "student", "parameters")
    if smaller is not None:
        parts.append(f"is {times(smaller)} times smaller" if smaller >= 1 else "is not smaller")
    faster = data.ratio("student", "teacher", "prompts_per_second")
    if faster is not None:
        parts.append(f"answers {times(faster)} times as fast")
    return f"{', '.join(parts[:-1])} and {parts[-1]}." if len(parts) > 1 else f"{good}."


def tiles(data: ReportData) -> list[Tile]:
    return [_how_good(data), _how_small(data), _how_fast(data), _what_it_cost(data)]


def earned_back(data: ReportData) -> str:
    """After how many answers the run's time has been saved, or "" where it never is."""
    cost = data.scores.get("cost", {})
    each: Mapping[str, float] = cost.get("per_1000_answers") or {}
    saved = each.get("teacher_seconds", 0.0) - each.get("student_seconds", 0.0)
    if saved <= 0 or not cost.get("seconds"):
        return ""
    return count(max(100, 100 * round(10 * cost["seconds"] / saved)), "answer")


def _how_good(data: ReportData) -> Tile:
    share, mine = data.ratio("student", "teacher", "accuracy"), data.arms["student"].get("accuracy")
    if share is None or mine is None:
        return Tile("How good?", DASH, "not measured", "")
    theirs = data.arms["teacher"]["accuracy"]
    detail = (
        f"{percent(mine['value'])} right on {count(mine['n'], 'held-out prompt')} "
        f"({interval(mine['ci95'], percent_bare)}); the teacher {percent(theirs['value'])} "
        f"({interval(theirs['ci95'], percent_bare)})"
    )
    return Tile("How good?", percent(share), "of the teacher's accuracy", detail)


def _how_small(data: ReportData) -> Tile:
    smaller = data.ratio("teacher", "student", "parameters")
    mine, theirs = data.value("student", "parameters"), data.value("teacher", "parameters")
    if smaller is None or mine is None or theirs is None:
        return Tile("How small?", DASH, "not measured", "")
    meaning = "smaller" if smaller >= 1 else "of the teacher's size: it is not smaller"
    answer = f"{times(smaller)}×" if smaller >= 1 else f"{times(1 / smaller)}×"
    detail = f"{quantity(mine)} parameters; the teacher {quantity(theirs)}"
    return Tile("How small?", answer, meaning, detail)


def _how_fast(data: ReportData) -> Tile:
    faster = data.ratio("student", "teacher", "prompts_per_second")
    mine = data.value("student", "prompts_per_second")
    if faster is None or mine is None:
        return Tile("How fast?", DASH, "not measured", "")
    uncached, theirs = (
        data.value("teacher", "prompts_per_second_uncached"),
        data.value("teacher", "prompts_per_second"),
    )
    detail = f"{mine:,.0f} prompts per second; the teacher {theirs:,.1f}"
    if uncached:
        more = times(mine / uncached)
        detail += f", or {uncached:,.1f} where its shared prefix is not cached ({more}×)"
    return Tile("How fast?", f"{times(faster)}×", "as fast as the teacher", detail)


def _what_it_cost(data: ReportData) -> Tile:
    cost = data.scores.get("cost", {})
    if "seconds" not in cost:
        return Tile("What did it cost?", DASH, "not measured", "")
    money = cost.get("money", 0.0)
    paid = f"{money:,.2f} paid to model providers" if money else "nothing paid to model providers"
    detail = f"{quantity(cost['tokens'])} tokens; {paid}" if "tokens" in cost else paid
    return Tile("What did it cost?", duration(cost["seconds"]), "on this machine", detail)
