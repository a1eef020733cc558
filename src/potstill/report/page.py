"""The page of a run: the sections that it has something for, in order. One HTML file that loads nothing and runs no
script; for managers on top, engineers below."""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from potstill.report import choice_parts, clean, licences, numbers, road, scores, training, wording
from potstill.report.gather import RunReport
from potstill.report.templates import environment

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing from the network, no script at all."""

_ASKED = (choice_parts, clean, licences, numbers, road, scores, training, wording)
"""The modules whose functions the sections' templates call."""


def sections(report: RunReport) -> list[tuple[str, str, object]]:
    """What the run has: id, title, and what sections/ID.html.jinja is about."""
    tested = report.tested
    there = (
        ("summary", "In short", report),
        ("road", "The road of the answers", report.road),
        ("pass-rates", "Easy and hard prompts", road.pass_rates(report)),
        ("candidates", "Accepted and rejected", report.candidates),
        ("labels", "Accepted and rejected", report.labels),
        ("scores", "Scores", report.scores),
        ("differences", "Differences", scores.differences(report)),
        ("calibration", "Calibration", choice_parts.reliability_chart(report)),
        ("disagreements", "Disagreements", tested and choice_parts.disagreements(tested.answers(), tested.choices)),
        ("answers", "Answers side by side", report.side_by_side),
        ("mistakes", "What was wrong", scores.mistakes(report)),
        ("training", "Training", report.trained or report.metrics),
        ("own-answers", "Its own answers", report.own_text or training.own_charts(report)),
        ("time", "Time", report.seconds),
        ("spent", "Tokens and money", report.spent),
        ("licences", "Licences", licences.licences(report)),
        ("recipe", "Recipe", report.recipe_yaml),
        ("versions", "Again, and versions", report.versions),
    )
    return [(id, title, part) for id, title, part in there if part]


def render_page(report: RunReport) -> str:
    """The whole page. All text goes through `clean` and autoescape; the style sheet does not."""
    asked = {module.__name__.rpartition(".")[2]: module for module in _ASKED}
    style = Markup(files("potstill.report").joinpath("page.css").read_text(encoding="utf-8"))
    page = environment(html=True).get_template("page.html.jinja")
    return page.render(asked, report=report, sections=sections(report), policy=POLICY, css=style)
