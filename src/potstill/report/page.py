"""The page of a run: the sections that it has something for, in order. One HTML file that loads nothing and runs no
script; for managers on top, engineers below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.report.choice_parts import calibration_part, disagreements_part, labels_part
from potstill.report.clean import clean
from potstill.report.gather import RunReport
from potstill.report.licences import licences_part
from potstill.report.own_answers import own_answers_part
from potstill.report.road import pass_rates, requests, road_part
from potstill.report.scores import differences_part, mistakes, scores_part
from potstill.report.summary import summary
from potstill.report.training import time_part, training_part

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing from the network, no script at all."""


@dataclass(frozen=True, slots=True)
class Section:
    """`part` is what sections/ID.html.jinja shows."""

    id: str
    title: str
    part: object


@dataclass(frozen=True, slots=True)
class Again:
    """The commands that make the same again, and the software that made this."""

    verbs: Sequence[str]
    versions: Mapping[str, str]


def sections(report: RunReport) -> list[Section]:
    """What the run has."""
    there = (
        ("summary", "In short", summary(report)),
        ("road", "The road of the answers", road_part(report)),
        ("pass-rates", "Easy and hard prompts", pass_rates(report)),
        ("candidates", "Accepted and rejected", report.candidates),
        ("labels", "Accepted and rejected", labels_part(report)),
        ("scores", "Scores", scores_part(report)),
        ("differences", "Differences", differences_part(report)),
        ("calibration", "Calibration", calibration_part(report)),
        ("disagreements", "Disagreements", disagreements_part(report)),
        ("answers", "Answers side by side", report.side_by_side),
        ("mistakes", "What was wrong", mistakes(report)),
        ("training", "Training", training_part(report)),
        ("own-answers", "Its own answers", own_answers_part(report)),
        ("time", "Time", time_part(report)),
        ("spent", "Tokens and money", requests(report)),
        ("licences", "Licences", licences_part(report)),
        ("recipe", "Recipe", report.recipe_yaml),
        ("versions", "Again, and versions", _again(report)),
    )
    return [Section(id, title, part) for id, title, part in there if part]


def render_page(report: RunReport) -> str:
    """The whole page. All text goes through `clean` and autoescape; the style sheet does not."""
    environment = Environment(
        loader=PackageLoader("potstill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    style = Markup(files("potstill.report").joinpath("page.css").read_text(encoding="utf-8"))
    page = environment.get_template("page.html.jinja")
    return page.render(name=report.recipe.name, sections=sections(report), policy=POLICY, css=style)


def _again(report: RunReport) -> Again:
    recipe = report.recipe
    there = {"generate": True, "verify": report.tally, "train": recipe.student, "evaluate": recipe.evaluate}
    verbs = [verb for verb, section in there.items() if section]
    return Again([*verbs, "report"], report.versions)


def _cleaned(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
