"""The data card: what is in the selected data, where it comes from, and what was thrown out and why."""

from __future__ import annotations

import json
from collections import Counter

from potstill.recipe.checks import Check
from potstill.recipe.whole import Recipe
from potstill.verify.select import KEPT


def _shown(check: Check) -> dict[str, object]:
    """A check's values, less how a judge's server is reached: that is nobody's business who gets the data."""
    return check.model_dump(mode="json", exclude_defaults=True, exclude={"teacher": {"engine"}})


def data_card(recipe: Recipe, reasons: Counter[str], prompts: Counter[str]) -> str:
    """Markdown with the front matter that the Hugging Face hub and `datasets.load_dataset` read."""
    assert recipe.verify is not None
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
        f"{reasons[KEPT]:,} of {total:,} answers by {recipe.teacher.model} to {prompts.total():,} prompts, selected "
        "by checks. No person wrote or labelled the answers.",
        "",
        f"Licences: {recipe.licences}.",
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
        "Checks, all of which must pass:",
        "",
        *(f"- `{json.dumps(_shown(c))}`" for c in recipe.verify.checks),
        "",
        f"Selection: `{json.dumps(recipe.select.model_dump(mode='json', exclude_defaults=True))}`",
    ]
    return "\n".join(lines) + "\n"


def _rescued(recipe: Recipe, prompts: Counter[str]) -> list[str]:
    if recipe.rescue is None:
        return []
    tries = [json.dumps(t.model_dump(mode="json", exclude_defaults=True)) for t in recipe.rescue.tries]
    return [
        "",
        f"Rescued: {prompts['rescued']:,} prompts of which none of the first answers passed were asked again, and the "
        f"answer passed (column `rescue`: which try brought it; no hint is in the data); still lost: "
        f"{prompts['lost'] + prompts['unanswered']:,}. Tries:",
        "",
        *(f"- `{said}`" for said in tries),
    ]
