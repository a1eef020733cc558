"""What report and card are made of, and the cleaning of text that models and strangers wrote."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Prompt, Verdict

PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "numpy", "scikit-learn")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_JOINERS = frozenset("\u200c\u200d")  # Persian, Indic scripts and emoji are wrong without them


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a run knows about itself when it ends."""

    recipe: ChoiceRecipe
    recipe_yaml: str
    scores: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, Prompt]
    left_out: Mapping[str, int]
    verdicts: Mapping[str, Verdict]
    predictions: Mapping[str, Mapping[str, tuple[float, ...]]]
    stage_seconds: Mapping[str, float]
    versions: Mapping[str, str]
    licence_duties: Sequence[str]

    @property
    def arms(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return self.scores["arms"]

    def value(self, arm: str, metric: str) -> float | None:
        """A score, or None where it was not measured."""
        score = self.arms.get(arm, {}).get(metric)
        return None if score is None else float(score["value"])

    def ratio(self, over: str, under: str, metric: str, metric_over: str = "") -> float | None:
        """`over`'s value as a multiple of `under`'s, or None where one is missing or 0."""
        top, bottom = self.value(over, metric_over or metric), self.value(under, metric)
        return top / bottom if top is not None and bottom else None


def clean(text: str) -> str:
    """`text` without terminal escapes, control, bidirectional and other invisible characters."""
    return "".join(_visible(c) for c in _ANSI.sub("", text.replace("\r\n", "\n")))


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def clipped(text: str, longest: int) -> str:
    """`text` cleaned and cut to `longest` characters, with how many are missing."""
    if len(text) <= longest:
        return clean(text)
    return f"{clean(text[:longest])} […] ({len(text) - longest:,} more characters)"


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _visible(character: str) -> str:
    match unicodedata.category(character):
        case "Cc":
            return character if character in "\n\t" else ""
        case "Cf":
            return character if character in _JOINERS else ""
        case "Cs":
            return "\ufffd"
        case _:
            return character
