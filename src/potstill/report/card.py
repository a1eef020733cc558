"""The model card: README.md of the model folder, in the Hugging Face convention."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import PurePath
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from potstill.report.data import ReportData, clean, one_line
from potstill.report.tables import claims
from potstill.report.wording import (
    QUALITY,
    arm_name,
    arms_in_order,
    count,
    duration,
    how_trained,
    percent,
    quantity,
    times,
    weights_kept,
)

_HUB_LICENCES = frozenset(
    """apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 unlicense isc cc-by-4.0 cc-by-sa-4.0
    cc-by-nc-4.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 openrail bigscience-openrail-m
    bigcode-openrail-m gemma""".split()  # noqa: SIM905
)
"""Licence tags that the hub knows; anything else is "other" with its name beside it."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def render_card(data: ReportData) -> str:
    """YAML front matter, then Markdown. Names no path of the machine it was made on."""
    template = files("potstill.report").joinpath("card.md.jinja").read_text(encoding="utf-8")
    body = _environment().from_string(template).render(_facts(data)).replace("\u00a0", " ")
    return f"---\n{_front_matter(data)}\n---\n\n{body.strip()}\n"


def public_name(source: str) -> str:
    """A hub id as it is; of a file, a folder or a package's file, the last part of the name."""
    if _HUB_ID.fullmatch(source) and not source.endswith(".gguf"):
        return source
    name = PurePath(source.replace("\\", "/")).name
    return re.sub(r"[^\w.-]+", "-", name)


def _environment() -> Environment:
    # Markdown, so no HTML escapes: text from outside comes in as inline code or a Python literal.
    environment = Environment(
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    written: tuple[Callable[..., str], ...] = (percent, quantity, times, duration, count, _code)
    filters = cast("dict[str, Any]", environment.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update({write.__name__.strip("_"): write for write in written})
    return environment


def _facts(data: ReportData) -> dict[str, Any]:
    recipe, shots = data.recipe, data.recipe.teacher.examples
    accuracy = data.value("student", "accuracy")
    return {
        "recipe": recipe,
        "choices": ", ".join(_code(choice) for choice in recipe.answers.choices),
        "teacher": public_name(recipe.teacher.model),
        "source": public_name(recipe.prompts.source),
        "size": data.value("student", "parameters"),
        "teacher_size": data.value("teacher", "parameters"),
        "prompt": repr(one_line(shots[0].prompt) if shots else "Put your prompt here."),
        "longest_answer": 4 + max(len(choice) for choice in recipe.answers.choices),
        "sha256": data.scores.get("teacher", {}).get("sha256"),
        "train_prompts": sum(prompt.split == "train" for prompt in data.prompts.values()),
        "duties": [one_line(duty) for duty in data.licence_duties],
        "kept": sum(found.accepted for found in data.verdicts.values()),
        "judged": len(data.verdicts),
        "trained": how_trained(recipe.train.method) + weights_kept(recipe.train.best, data.metrics),
        "seconds": data.scores.get("cost", {}).get("seconds"),
        "test_prompts": data.arms["student"].get("accuracy", {}).get("n", 0),
        "metrics": [m for m in QUALITY if any(m.key in found for found in data.arms.values())],
        "arms": [(arm, arm_name(arm), data.arms[arm]) for arm in arms_in_order(data.arms)],
        "claims": claims(data),
        "exact": data.value("student", "exact_answers"),
        "wrong": None if accuracy is None else 1 - accuracy,
    }


def _front_matter(data: ReportData) -> str:
    licence = data.recipe.teacher.licence.strip().lower()
    known = licence in _HUB_LICENCES
    named: dict[str, Any] = {} if known else {"license_name": re.sub(r"[^a-z0-9.]+", "-", licence)}
    card = ModelCardData(
        base_model=public_name(data.recipe.teacher.model),
        eval_results=_results(data),
        library_name="transformers",
        license=licence if known else "other",
        model_name=data.recipe.name,
        pipeline_tag="text-generation",
        tags=[
            "knowledge-distillation",
            "potstill",
            data.recipe.train.method.kind.replace("_", "-"),
        ],
        prompts_license=one_line(data.recipe.prompts.licence),
        **named,
    )
    return str(card)


def _results(data: ReportData) -> list[EvalResult]:
    source = public_name(data.recipe.prompts.source)
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=source,
            dataset_name=source,
            dataset_split="test",
            metric_type=metric.key,
            metric_name=metric.label,
            metric_value=data.arms["student"][metric.key]["value"],
        )
        for metric in QUALITY
        if metric.key in data.arms["student"]
    ]


def _cleaned(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


def _code(text: str) -> str:
    """Text from outside as inline code: it can open no link, tag or table cell."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', '/')}`"
