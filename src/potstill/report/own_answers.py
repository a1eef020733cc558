"""The part of the page about a student that learned from its own answers: how far it is from its teacher on text of its
own, where in an answer, at which tokens, and what became of its answers while it learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.charts import Chart, curves, logged
from potstill.report.clean import clipped, one_line, titled
from potstill.report.gather import RunReport
from potstill.report.numbers import count, interval, minus, percent, plain, three_decimals
from potstill.report.tables import Cell, Table, number

HEAT = (0.5, 1.0, 2.0, 4.0)
"""Nats of ln q - ln p from which a token is shown warmer."""

_LONGEST_PROMPT = 2000
_DISPUTED = 3
_LEARNING = {
    "rollout_length": "Mean length of its own answers by step, tokens",
    "eos_rate": "Share of its own answers that end by themselves by step",
    "student_entropy": "Its entropy on its own text by step, nats per token",
}
_SHARES = frozenset({"eos_rate"})
_WATCHED = {
    **_LEARNING,
    "teacher_entropy": "The teacher's entropy on the same text, nats per token",
    "repetition": "Share of its tokens in a loop that an answer ends in",
    "support_overlap": "Share of its tokens among the teacher's 20 most probable",
    "log_probability_gap": "Gap between writer and trainer, nats per token",
}


@dataclass(frozen=True, slots=True)
class Token:
    """`heat` from 0 to 4 by how much likelier the token was to the student; `title` has both probabilities."""

    text: str
    heat: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One answer, token by token, and its most disputed tokens in words."""

    title: str
    note: str
    prompt: str
    tokens: Sequence[Token]
    disputed: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAnswersPart:
    """What is not known (yet) is empty."""

    distance: str
    by_position: Chart | None
    learning: Sequence[Chart]
    watched: Table | None
    samples: Sequence[Shown]


def own_answers_part(report: RunReport) -> OwnAnswersPart | None:
    """None where no arm wrote answers while it learned. Curves are of every arm that did, the rest is the student's."""
    arms = {arm: report.name(arm) for arm in report.recipes}
    drawn = [curves(says, logged(report.metrics, key, arms), share=key in _SHARES) for key, says in _LEARNING.items()]
    learning = [chart for chart in drawn if chart is not None]
    if report.own_text is None and not learning:
        return None
    told = report.own_text or {"by_position": [], "samples": []}
    means = [(at, one["kl"]) for at, one in enumerate(told["by_position"], start=1)]
    student = report.name("student")
    return OwnAnswersPart(
        distance=_distance(report.own_text) if report.own_text else "",
        by_position=curves(
            "KL(student || teacher) at each token of its answers, nats", [(student, means)], unit="tokens"
        ),
        learning=learning,
        watched=_watched([row for row in report.metrics if row["arm"] == "student"]),
        samples=[shown(sample) for sample in told["samples"]],
    )


def _distance(told: Mapping[str, Any]) -> str:
    found = told["reverse_kl"]
    ends = f", 95 % interval {interval(found['ci95'], plain)}" if found["ci95"] else ""
    each = three_decimals(told["reverse_kl_per_token"])
    return (
        f"{plain(found['value'])} nats per answer{ends}, and {each} nats per token: mean reverse KL "
        f"over {count(told['answers'], 'answer')} that the student drew to {count(found['n'], 'prompt')} "
        f"held back from training. {told['ended']:,} of them ended by themselves within "
        f"{count(told['max_tokens'], 'token')}; an answer has {plain(told['mean_length'])} tokens on average."
    )


def _watched(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    rows: list[list[Cell]] = []
    for key, says in _WATCHED.items():
        values = [float(row[key]) for row in metrics if row.get(key) is not None]
        if values:
            ends = (values[0], values[-1], min(values), max(values))
            rows.append([Cell(says.replace(" by step", ""), key), *(number(three_decimals(value)) for value in ends)])
    heads = (Cell("On its own answers"), *map(number, ("First", "Last", "Lowest", "Highest")))
    return Table(columns=list(heads), rows=rows) if rows else None


def shown(sample: Mapping[str, Any]) -> Shown:
    said: list[tuple[str, float, float]] = sample["tokens"]
    ended = "ended by itself" if sample["finish"] == "stop" else "was cut off"
    most = sorted(said, key=lambda one: one[2] - one[1])[:_DISPUTED]
    return Shown(
        title=titled(sample["prompt"]),
        note=f"{count(sample['length'], 'token')}, {ended}",
        prompt=clipped(sample["prompt"], _LONGEST_PROMPT),
        tokens=[_token(*one) for one in said],
        disputed=[f"“{one_line(text)}” ({_odds(q, p)})" for text, q, p in most if q - p >= HEAT[0]],
    )


def _token(text: str, student: float, teacher: float) -> Token:
    heat = sum(student - teacher >= bound for bound in HEAT)
    return Token(
        text.replace("\n", "↵\n"), heat, f"{_odds(student, teacher)}: {minus(f'{student - teacher:.1f}')} nats"
    )


def _odds(student: float, teacher: float) -> str:
    return f"student {_likely(student)}, teacher {_likely(teacher)}"


def _likely(logp: float) -> str:
    share = math.exp(logp)
    return percent(share) if share >= 0.001 else "under 0.1 %"
