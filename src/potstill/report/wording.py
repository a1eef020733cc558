"""What arms and metrics are called, and what may be said of a difference and of how a student was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from potstill.recipe import Recipe
from potstill.recipe.methods import LogitKd, PolicyGradient, Sft
from potstill.recipe.request import probabilities_of
from potstill.recipe.student import Encoder, Student
from potstill.recipe.task import Choice, Task
from potstill.recipe.values import public_name
from potstill.report.clean import titled
from potstill.report.numbers import count, interval, memory, percent, percent_bare, plain, quantity, three_decimals


@dataclass(frozen=True, slots=True)
class ArmName:
    """`spoken` stands in a sentence."""

    label: str
    note: str
    spoken: str
    colour: str


_OWN_COLOURS = ("#5d7f3c", "#8a6fb8", "#b3656b", "#4f8f96", "#a0793d")


def arm_names(recipe: Recipe) -> dict[str, ArmName]:
    """What every arm that the recipe may have is called, in the order of the page."""
    choice = isinstance(recipe.task, Choice)
    teacher = "calibrated" if choice else public_name(recipe.teacher.model)
    labels = "the teacher's hard labels" if choice else "the teacher's answers"
    alone = f"{labels} alone"
    own = {
        name: (name, overridden(changes), f"the arm “{name}”", _OWN_COLOURS[at % len(_OWN_COLOURS)])
        for at, (name, changes) in enumerate(recipe.arms.items())
    }
    start, scratch = "the same start", "same shape, random weights, trained by the same method"
    tfidf = "TF-IDF + logistic regression"
    known = {
        "teacher": ("Teacher", teacher, "the teacher", "#4a86b8"),
        "teacher_raw": ("Teacher, raw", "before calibration", "the uncalibrated teacher", "#9a8fc4"),
        "student": ("Student", "what this run made", "the student", "#cc6633"),
        **own,
        "base": ("Base", "the student before its first step", "the untrained student", "#8a8f98"),
        "from_scratch": ("From scratch", scratch, "the same shape trained from random weights", "#b0609a"),
        "hard_labels": ("Hard labels", f"{start}, trained on {alone}", f"the student trained on {alone}", "#3f9a80"),
        "sft": ("SFT", f"{start}, fine-tuned on {alone}", f"the student fine-tuned on {alone}", "#3f9a80"),
        "tfidf": ("TF-IDF", f"{tfidf} on {labels}", tfidf, "#b3932b"),
    }
    return {arm: ArmName(*said) for arm, said in known.items()}


def in_order(names: Mapping[str, ArmName], there: Mapping[str, Any]) -> list[str]:
    return [arm for arm in names if arm in there] + [arm for arm in there if arm not in names]


def overridden(changes: Mapping[str, Any]) -> str:
    """An arm's overrides, without servers and folders: "student.layers: 4; train.epochs: 2"."""
    return "; ".join(f"{key}: {titled(value, 60)}" for key, value in _leaves(changes))


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{before}{key}", _public(value) if isinstance(value, str) else json.dumps(value)


def _public(value: str) -> str:
    place = any(mark in value for mark in "/\\") and not any(map(str.isspace, value))
    return public_name(value) if place else value


Write = Callable[[float], str]
_SHARE: tuple[Write, Write] = (percent, percent_bare)
_NATS: tuple[Write, Write] = (three_decimals, three_decimals)
_PLAIN: tuple[Write, Write] = (plain, plain)


@dataclass(frozen=True, slots=True)
class Metric:
    """`write` with its unit, `bare` for the ends of an interval; `unit` is of differences."""

    key: str
    label: str
    write: Write
    bare: Write
    meaning: str
    unit: str = ""

    def interval(self, score: Mapping[str, Any]) -> str:
        return interval(score.get("ci95"), self.bare)


def quality(task: Task) -> tuple[Metric, ...]:
    """How good. Accuracy comes first: every arm of every task has it."""
    right = "people's answers that it gives"
    if not isinstance(task, Choice):
        right = "test prompts whose answer passes every check"
    same = "share of prompts on which it says what the teacher says"
    far = "distance of its probabilities from the teacher's, in nats, 0 is identical"
    return (
        Metric("accuracy", "Accuracy", *_SHARE, f"share of {right}", "points"),
        Metric("agreement", "Agreement", *_SHARE, same, "points"),
        Metric("kl_to_teacher", "KL to teacher", *_NATS, far, "nats"),
        Metric("ece", "ECE", *_SHARE, "expected calibration error, 0 is honest confidence"),
        Metric("rank_correlation", "Rank correlation", *_NATS, "Spearman's ρ with people's graded rating"),
    )


def measured(metrics: Sequence[Metric], arms: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Those that any of the arms has."""
    return [metric for metric in metrics if any(metric.key in found for found in arms.values())]


_CACHED, _WHOLE = "what the teacher reads beyond its cached prefix", "the teacher reading its shared prefix every time"
_EXACT = "prompts that the saved model folder alone, through generate, answers with exactly an allowed answer and stops"
EFFORT = (
    Metric("parameters", "Parameters", quantity, quantity, "numbers that it has learned"),
    Metric("tokens_per_prompt", "Tokens per prompt", *_PLAIN, "what it reads for one prompt"),
    Metric("tokens_per_prompt_cached", "Tokens per prompt, cached", *_PLAIN, _CACHED),
    Metric("prompts_per_second", "Prompts/s", *_PLAIN, "test prompts that it answers in a second"),
    Metric("prompts_per_second_uncached", "Prompts/s, uncached", *_PLAIN, _WHOLE),
    Metric("peak_memory_bytes", "Peak memory", memory, memory, "while it answers"),
    Metric("exact_answers", "Exact answers", *_SHARE, _EXACT),
)


MARGIN = 0.03
"""As good as: a difference in accuracy whose whole interval lies within three points."""

ANSWERS_ALONE = 0.95
"""A saved model that writes an allowed answer and stops for a smaller share of prompts does not answer on its own."""

Verdict = Literal["better", "worse", "equal", "unclear"]


_WITHIN = f"{100 * MARGIN:g} points"


@dataclass(frozen=True, slots=True)
class Claim:
    verdict: Verdict
    text: str


def verdict(difference: Mapping[str, Any]) -> Verdict:
    """Better or worse only where the 95 % interval excludes 0, equal only where it lies within the margin."""
    low, high = difference["ci95"]
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equal" if low >= -MARGIN and high <= MARGIN else "unclear"


def claim(other: str, difference: Mapping[str, Any]) -> Claim:
    """What may be said of the student's accuracy beside that of `other`."""
    value, (low, high) = difference["value"], difference["ci95"]
    found = verdict(difference)
    if found == "worse":
        value, low, high = -value, -high, -low
    points = f"{percent_bare(value)} points ({interval((low, high))})"
    match found:
        case "better":
            return Claim(found, f"The student beats {other} by {points}.")
        case "worse":
            return Claim(found, f"The student is behind {other} by {points}.")
        case "equal":
            return Claim(found, f"The student is as good as {other}, within {_WITHIN}: the difference is {points}.")
        case "unclear":
            few = f"The test prompts are too few to tell the student from {other}"
            return Claim(found, f"{few}: the difference is {points}.")


def beside_teacher(difference: Mapping[str, Any] | None, *, share: float | None) -> str:
    """The headline's first words: the student's accuracy as a `share` of its teacher's, and what the paired
    `difference` allows to say of it (None where it was not measured)."""
    if share is None and difference is None:
        return "The student has been trained"
    match difference and verdict(difference):
        case "better":
            return "The student beats its teacher" + (f", with {percent(share)} of its accuracy" if share else "")
        case "equal":
            return f"The student is as good as its teacher within {_WITHIN} of accuracy"
        case "unclear":
            return "The student cannot be told from its teacher by so few test prompts"
        case "worse":
            return f"The student keeps {percent(share or 0.0)} of its teacher's accuracy"
        case _:
            return f"The student has {percent(share or 0.0)} of its teacher's accuracy"


def how_trained(recipe: Recipe) -> str:
    """What an arm of this recipe learned from, and in which weights, in one phrase."""
    lora = recipe.student.lora if isinstance(recipe.student, Student) else None
    return _objective(recipe) + (f", by LoRA of rank {lora.rank}" if lora else "")


def _objective(recipe: Recipe) -> str:
    method, choice = recipe.train.method, isinstance(recipe.task, Choice)
    own = recipe.train.on_policy is not None
    match method:
        case LogitKd(divergence=divergence, temperature=temperature, alpha=alpha):
            over = (
                "the allowed answers" if choice else "every token of " + ("its own" if own else "the kept") + " answers"
            )
            named = divergence.replace("_", " ").replace("kl", "KL")
            soft = f"on the teacher's probabilities over {over} (soft labels, {named}"
            hard = "the teacher's hard labels" if choice else "the kept answers"
            return f"{soft}, temperature {temperature:g})" + (
                f" and, with weight {alpha:g}, on {hard} by cross-entropy" if alpha else ""
            )
        case PolicyGradient():
            rewarded = recipe.train.on_policy is not None and recipe.train.on_policy.reward is not None
            return "by a policy gradient on its own answers, which the teacher scores token by token" + (
                " and the checks reward" if rewarded else ""
            )
        case Sft():
            return f"on {'the hard labels' if choice else 'the kept answers'} of the teacher, by cross-entropy"


def made_of(student: Student | Encoder, trained: Mapping[str, Any]) -> str:
    """ "the first 4 of 30 layers of Qwen/Qwen3-0.6B"; an encoder and what it starts from."""
    match student:
        case Student():
            layers = trained.get("layers")
            return student.made_of(layers, trained.get("of")) if layers else public_name(student.start)
        case Encoder(shape=shape) if shape is not None:
            return f"an encoder of {shape.layers} layers of width {shape.hidden}, its weights random"
        case Encoder(start=start, weights=weights):
            made = public_name(start or "")
            return (
                f"an encoder in the shape of {made}, its weights random"
                if weights == "random"
                else f"the encoder {made}"
            )


def weights_kept(trained: Mapping[str, Any]) -> str:
    """Which of an arm's weights were kept, where they were chosen, and whether training was stopped early: in brackets,
    from what its trained.json says."""
    if not (chose := trained.get("chose")):
        return ""
    stopped = f"stopped early after step {trained['steps']:,}; " if chose["stopped_early"] else ""
    whose = " on people's labels" if chose["metric"] == "accuracy" else ""
    best = f"the best by validation {chose['metric']}{whose}: {chose['score']:.4g}"
    return f" ({stopped}the weights of step {chose['step']:,} were kept, {best})"


def probabilities_had(recipe: Recipe) -> str:
    """How the teacher's probabilities of the choices came about; nothing where answers are texts."""
    match probabilities_of(recipe.request):
        case None:
            return ""
        case "computed here":
            return "The teacher's probabilities were computed in this process: of every allowed answer, whole."
        case "votes":
            answers = count(recipe.generate.n, "answer")
            return (
                f"The teacher's probabilities are the votes of its {answers} to a prompt at temperature 1, half a vote "
                "added to each allowed answer (votes)."
            )
        case "prompt_logprobs":
            return "The server scored every allowed answer as a continuation of the prompt (prompt_logprobs)."
        case "completions":
            return "The teacher continued the prompt in its own template, with each token's probability (completions)."
        case "top_logprobs":
            return "The teacher named the most probable first tokens of its reply (top_logprobs)."
