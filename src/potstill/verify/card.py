"""The data card: what is in the selected data, where it comes from, and what was thrown out and why."""

from __future__ import annotations

import json
from collections import Counter

from potstill.recipe.checks import Check, Judge, RewardModel
from potstill.recipe.generate import Try
from potstill.recipe.select import EvaluationSet, Select
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Teacher
from potstill.recipe.values import public_name
from potstill.recipe.whole import Recipe
from potstill.verify.calibrate import Calibration
from potstill.verify.select import KEPT


def _shown(part: Check | Try | Select) -> str:
    """Its values as JSON, for whoever gets the data: models and files by their public names, nothing of how a server is
    reached or what may be paid."""
    private = {"teacher", "model", "evaluation", "prices", "budget"}
    shown = part.model_dump(mode="json", exclude_defaults=True, exclude=private)
    match part:
        case Judge(teacher=teacher) | Try(teacher=Teacher() as teacher):
            shown["teacher"] = {"model": public_name(teacher.model), "licence": teacher.licence}
            shown["teacher"] |= {"revision": teacher.revision} if teacher.revision else {}
        case RewardModel(model=model):
            shown["model"] = public_name(model)
        case Select(evaluation=EvaluationSet() as held):
            shown["evaluation"] = held.model_dump(mode="json", exclude_defaults=True) | {
                "source": public_name(held.source)
            }
        case _:
            pass
    return json.dumps(shown)


def data_card(
    recipe: Recipe, reasons: Counter[str], prompts: Counter[str], calibration: Calibration | None = None
) -> str:
    """Markdown with the front matter that the Hugging Face hub and `datasets.load_dataset` read."""
    total = reasons.total()
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: selected.parquet",
        "- config_name: verdicts",
        "  data_files: verdicts.parquet",
        "tags: [distillation, synthetic]",
        "---",
        "",
        f"# {recipe.name}",
        "",
        f"{reasons[KEPT]:,} of {total:,} answers by {public_name(recipe.teacher.model)} to {prompts.total():,} prompts"
        ", selected by checks. No person wrote or labelled the answers.",
        "",
        f"Licences: {recipe.licences}.",
        *_calibrated(recipe, calibration),
        "",
        "| what became of an answer | answers | share |",
        "|---|---|---|",
        *(f"| {reason} | {n:,} | {n / total:.1%} |" for reason, n in reasons.most_common()),
        "",
        f"Prompts without a kept answer: {prompts['lost'] + prompts['unanswered']:,} of {prompts.total():,}, of them "
        f"{prompts['unanswered']:,} without an answer to judge. What checks reject is not a random sample: hard "
        "prompts are missing more often than easy ones.",
        *_rescued(recipe, prompts),
        "",
        *_checks(recipe),
        "",
        f"Selection: `{_shown(recipe.select)}`",
    ]
    return "\n".join(lines) + "\n"


def _checks(recipe: Recipe) -> list[str]:
    if recipe.verify is None:
        return ["No checks."]
    return ["Checks, all of which must pass:", "", *(f"- `{_shown(c)}`" for c in recipe.verify.checks)]


def _calibrated(recipe: Recipe, calibration: Calibration | None) -> list[str]:
    """Whose distribution a row of choices has, and what was done to it."""
    if calibration is None or not isinstance(recipe.task, Choice):
        return []
    task, n = recipe.task, recipe.generate.n
    source = f", estimated from {n} votes per prompt" if n > 1 else ""
    bias = "there is no prior, so no choice has a bias"
    if task.prior is not None:
        added = ", ".join(f"{c} {b:+.3f}" for c, b in zip(task.choices, calibration.bias, strict=True))
        bias = f"a bias per choice ({added}) makes the average answer the prior {list(task.prior)}"
    temperature = "no validation prompt has a person's answer, so the temperature is 1"
    if calibration.temperature != 1:
        temperature = f"the temperature {calibration.temperature:.3f} fits people's answers to validation prompts"
    return [
        "",
        f"Column `choice_logprobs`: the teacher's distribution over {', '.join(task.choices)}{source}, calibrated: "
        f"{bias}; {temperature}. The answer of a row is its most probable choice.",
    ]


def _rescued(recipe: Recipe, prompts: Counter[str]) -> list[str]:
    if recipe.rescue is None:
        return []
    return [
        "",
        f"Rescued: {prompts['rescued']:,} prompts of which none of the first answers passed were asked again, and the "
        f"answer passed (column `rescue`: which try brought it; no hint is in the data); still lost: "
        f"{prompts['lost'] + prompts['unanswered']:,}. Tries:",
        "",
        *(f"- `{_shown(again)}`" for again in recipe.rescue.tries),
    ]
