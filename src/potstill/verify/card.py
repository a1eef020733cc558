"""The data card: what is in the selected data, where it comes from, and what was thrown out and why."""

from __future__ import annotations

import json
from collections import Counter

from jinja2 import Environment, PackageLoader, StrictUndefined

from potstill.recipe.checks import Check, Judge, RewardModel
from potstill.recipe.generate import Try
from potstill.recipe.select import EvaluationSet, Select
from potstill.recipe.teacher import Teacher
from potstill.recipe.values import public_name
from potstill.recipe.whole import Recipe
from potstill.verify.calibrate import Calibration


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
    """Markdown with the front matter that the Hugging Face hub and `datasets.load_dataset` read. `calibration`: of the
    teacher's distribution, where answers are choices."""
    written = Environment(
        loader=PackageLoader("potstill", "verify"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return (
        written.get_template("card.md.jinja").render(
            recipe=recipe,
            reasons=reasons,
            prompts=prompts,
            calibration=calibration,
            shown=_shown,
            commas="{:,}".format,
            public_name=public_name,
        )
        + "\n"
    )
