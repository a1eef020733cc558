"""The model card: README.md of every arm's model folder, in the Hugging Face convention."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from potstill.recipe import Recipe
from potstill.recipe.prompts import Expand, PromptFile, Source
from potstill.recipe.student import Encoder
from potstill.recipe.task import Choice
from potstill.recipe.values import public_name
from potstill.report import wording
from potstill.report.clean import one_line
from potstill.report.gather import RunReport
from potstill.report.licences import duties_of
from potstill.report.numbers import NBSP
from potstill.report.scores import claims
from potstill.report.templates import environment

_HUB_LICENCES = frozenset(
    """apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 unlicense isc cc-by-4.0 cc-by-sa-4.0
    cc-by-nc-4.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 openrail bigscience-openrail-m
    bigcode-openrail-m gemma""".split()  # noqa: SIM905
)
"""Licence tags that the hub knows; anything else is "other" with its name beside it."""


def render_card(report: RunReport, arm: str) -> str:
    """YAML front matter, then Markdown. Names no path of the machine it was made on."""
    recipe = report.recipes[arm]
    shots = recipe.teacher.examples
    body = (
        environment(html=False)
        .get_template("card.md.jinja")
        .render(
            report=report,
            arm=arm,
            recipe=recipe,
            trained=report.trained.get(arm, {}),
            scores=report.arms.get(arm, {}),
            metrics=_metrics(report),
            claims=claims(report) if arm == "student" else [],
            source=_source(recipe.prompts),
            prompt=repr(one_line(shots[0].prompt) if shots else "Put your prompt here."),
            duties=[one_line(duty) for duty in duties_of(recipe.licensed)],
            wording=wording,
        )
    )
    return f"---\n{_front_matter(report, arm)}\n---\n\n{body.replace(NBSP, ' ').strip()}\n"


def _metrics(report: RunReport) -> list[wording.Metric]:
    return wording.measured(wording.quality(report.recipe.task), report.arms)


def _source(prompts: Source) -> str:
    match prompts:
        case PromptFile():
            return public_name(prompts.source)
        case Expand():
            return public_name(prompts.seeds.source)
        case _:
            return f"reasoning_gym/{prompts.task}"


def _front_matter(report: RunReport, arm: str) -> str:
    recipe = report.recipes[arm]
    student = recipe.student
    assert student is not None
    licence = (student.licence or recipe.teacher.licence).strip().lower()
    known = licence in _HUB_LICENCES
    named: dict[str, Any] = {} if known else {"license_name": re.sub(r"[^a-z0-9.]+", "-", licence)}
    if student.start is not None and student.weights == "start":
        named["base_model"] = public_name(student.start)
    card = ModelCardData(
        eval_results=_results(report, arm, recipe),
        library_name="transformers",
        license=licence if known else "other",
        model_name=recipe.name,
        pipeline_tag="text-classification" if isinstance(student, Encoder) else "text-generation",
        tags=["knowledge-distillation", "potstill", recipe.train.method.kind.replace("_", "-")],
        prompts_license=one_line(recipe.prompts.licence),
        **named,
    )
    return str(card)


def _results(report: RunReport, arm: str, recipe: Recipe) -> list[EvalResult] | None:
    source = _source(recipe.test_prompts or recipe.prompts)
    task = "text-classification" if isinstance(recipe.task, Choice) else "text-generation"
    found = report.arms.get(arm, {})
    results = [
        EvalResult(
            task_type=task,
            dataset_type=source,
            dataset_name=source,
            dataset_split="test",
            metric_type=metric.key,
            metric_name=metric.label,
            metric_value=found[metric.key]["value"],
        )
        for metric in _metrics(report)
        if metric.key in found
    ]
    return results or None
