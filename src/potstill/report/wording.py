"""How numbers are written, arms and metrics called, and what may be said of a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from potstill.recipe.choices import ChoiceMethod
from potstill.recipe.methods import LogitKd
from potstill.recipe.train import Best

NBSP = "\u00a0"
DASH = "–"


@dataclass(frozen=True, slots=True)
class ArmName:
    label: str
    note: str
    spoken: str
    colour: str


ARMS: Mapping[str, ArmName] = {
    "teacher": ArmName("Teacher", "calibrated", "the teacher", "#4a86b8"),
    "teacher_raw": ArmName("Teacher, raw", "before calibration", "the uncalibrated teacher", "#9a8fc4"),
    "student": ArmName("Student", "what this run made", "the student", "#cc6633"),
    "base": ArmName("Base", "the student before training", "the untrained student", "#8a8f98"),
    "from_scratch": ArmName(
        "From scratch",
        "same shape, random weights, trained on the teacher's hard labels",
        "the same shape trained from random weights",
        "#b0609a",
    ),
    "hard_labels": ArmName(
        "Hard labels",
        "the teacher's layers, trained on the teacher's hard labels",
        "the student trained on the teacher's hard labels alone",
        "#3f9a80",
    ),
    "encoder": ArmName(
        "Encoder",
        "a classifier over the allowed answers, trained on the student's examples; it writes no text",
        "the encoder classifier",
        "#5d7f3c",
    ),
    "floor": ArmName(
        "Floor",
        "TF-IDF + logistic regression on the teacher's hard labels",
        "TF-IDF + logistic regression",
        "#b3932b",
    ),
}


def arm_name(arm: str) -> ArmName:
    return ARMS.get(arm, ArmName(arm, "", arm, "#8a8f98"))


def arms_in_order(arms: Mapping[str, Any]) -> list[str]:
    return [arm for arm in ARMS if arm in arms] + [arm for arm in arms if arm not in ARMS]


def minus(text: str) -> str:
    """With a true minus sign, and no minus before a zero."""
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def percent_bare(share: float) -> str:
    return minus(f"{100 * share:.1f}")


def percent(share: float) -> str:
    return f"{percent_bare(share)}{NBSP}%"


def three_decimals(value: float) -> str:
    return minus(f"{value:.3f}")


def plain(value: float) -> str:
    """Three digits that matter, thousands separated."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return minus(f"{value:,.{digits}f}")


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def quantity(value: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.1f}{NBSP}{word}"
    return f"{value:,.0f}"


def memory(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.2f}{NBSP}GB"
    return f"{size / 1e6:,.0f}{NBSP}MB" if size >= 1e6 else f"{size / 1e3:,.0f}{NBSP}kB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s" if seconds < 9.95 else f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s" if rest else f"{minutes}{NBSP}min"
    return f"{minutes // 60:,}{NBSP}h {minutes % 60}{NBSP}min"


def count(n: int, one: str, many: str = "") -> str:
    return f"{n:,}{NBSP}{one if n == 1 else many or one + 's'}"


@dataclass(frozen=True, slots=True)
class Metric:
    """`write` with its unit, `bare` for the ends of an interval."""

    key: str
    label: str
    write: Callable[[float], str]
    bare: Callable[[float], str]
    meaning: str

    def interval(self, score: Mapping[str, Any]) -> str:
        return interval(score.get("ci95"), self.bare)


PASS_RATE = Metric(
    "pass_rate", "Pass rate", percent, percent_bare, "share of the exam's prompts whose answer passes every check"
)
QUALITY = (
    Metric("accuracy", "Accuracy", percent, percent_bare, "share of people's answers that it gives"),
    Metric(
        "agreement",
        "Agreement",
        percent,
        percent_bare,
        "share of the teacher's answers that it gives",
    ),
    Metric(
        "kl_to_teacher",
        "KL to teacher",
        three_decimals,
        three_decimals,
        "distance of its probabilities from the teacher's, in nats, 0 is identical",
    ),
    Metric("ece", "ECE", percent, percent_bare, "expected calibration error, 0 is honest confidence"),
    Metric(
        "rank_correlation",
        "Rank correlation",
        three_decimals,
        three_decimals,
        "Spearman's ρ with people's graded rating",
    ),
)
EFFORT = (
    Metric("parameters", "Parameters", quantity, quantity, "numbers that it has learned"),
    Metric("tokens_per_prompt", "Tokens per prompt", plain, plain, "what it reads for one prompt"),
    Metric(
        "tokens_per_prompt_cached",
        "Tokens per prompt, cached",
        plain,
        plain,
        "what the teacher reads beyond its cached prefix",
    ),
    Metric("prompts_per_second", "Prompts/s", plain, plain, "the teacher with its shared prefix cached"),
    Metric(
        "prompts_per_second_uncached",
        "Prompts/s, uncached",
        plain,
        plain,
        "the teacher reading every prompt whole",
    ),
    Metric("peak_memory_bytes", "Peak memory", memory, memory, "while it answers"),
    Metric(
        "exact_answers",
        "Exact answers",
        percent,
        percent_bare,
        "prompts that the saved model folder alone, through generate, answers with exactly an "
        "allowed answer and then stops",
    ),
)


def interval(ci95: Sequence[float] | None, bare: Callable[[float], str]) -> str:
    """ "80.1 to 84.0", or nothing."""
    return f"{bare(ci95[0])} to {bare(ci95[1])}" if ci95 else ""


@dataclass(frozen=True, slots=True)
class Claim:
    verdict: Literal["better", "worse", "unclear"]
    text: str


def verdict(difference: Mapping[str, Any]) -> Literal["better", "worse", "unclear"]:
    """Better or worse only where the 95 % interval excludes 0."""
    low, high = difference["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def claim(other: str, difference: Mapping[str, Any]) -> Claim:
    """What may be said of the student's accuracy, or its pass rate, beside that of `other`."""
    value, (low, high) = difference["value"], difference["ci95"]
    match verdict(difference):
        case "better":
            points = f"{percent_bare(value)} points ({interval((low, high), percent_bare)})"
            return Claim("better", f"The student beats {other} by {points}.")
        case "worse":
            points = f"{percent_bare(-value)} points ({interval((-high, -low), percent_bare)})"
            return Claim("worse", f"The student is behind {other} by {points}.")
        case "unclear":
            points = f"{percent_bare(value)} points ({interval((low, high), percent_bare)})"
            text = f"The student is not distinguishable from {other}: the difference is {points}."
            return Claim("unclear", text)


def beside_teacher(difference: Mapping[str, Any] | None, *, share: float | None, noun: str) -> str:
    """The headline's first words: the student's `noun` as a `share` of its teacher's, and what the paired `difference`
    allows to say of it (None where it was not measured)."""
    if share is None and difference is None:
        return "The student has been trained"
    match difference and verdict(difference):
        case "better":
            return "The student beats its teacher" + (f", with {percent(share)} of its {noun}" if share else "")
        case "unclear":
            return f"The student is not distinguishable from its teacher in {noun}"
        case "worse":
            return f"The student keeps {percent(share or 0.0)} of its teacher's {noun}"
        case _:
            return f"The student has {percent(share or 0.0)} of its teacher's {noun}"


def how_trained(method: ChoiceMethod) -> str:
    """Whose labels the student learned, in one phrase."""
    match method:
        case LogitKd(temperature=temperature, alpha=alpha):
            return (
                "on the teacher's probabilities over the allowed answers (soft labels, "
                f"temperature {temperature:g}) and, with weight {alpha:g}, "
                "on the teacher's hard labels"
            )
        case _:
            return "on the teacher's hard labels"


def weights_kept(best: Best | None, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Which of the student's weights were kept, where they were chosen, and whether training was stopped early: in
    brackets, from the rows of metrics.jsonl."""
    rows = [row for row in metrics if row["arm"] == "student"]
    if best is None or not rows or "best_step" not in rows[-1]:
        return ""
    step, last = rows[-1]["best_step"], rows[-1]["step"]
    score = next(row[f"validation_{best.metric}"] for row in rows if row["step"] == step)
    stopped = f"stopped early after step {last:,}; " if rows[-1]["stopped_early"] else ""
    whose = " on people's labels" if best.metric == "accuracy" else ""
    return (
        f" ({stopped}the weights of step {step:,} were kept, the best by validation {best.metric}{whose}: {score:.4g})"
    )
