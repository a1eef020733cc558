"""What training logged of every arm, and what a student that learned from its own answers wrote: how far it is from its
teacher there, where in an answer, and at which tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.charts import Chart, curves, logged
from potstill.report.clean import one_line
from potstill.report.gather import RunReport
from potstill.report.numbers import percent

_SHARES = {
    "validation_accuracy": "Accuracy on the validation prompts by step",
    "validation_agreement": "Agreement with the teacher on the validation prompts by step",
    "validation_pass_rate": "Share of its answers to prompts held back that pass every check, by step",
}
_VALUES = {
    "validation_kl_to_teacher": "KL divergence to the teacher on the validation prompts by step, nats",
    "validation_nats_per_token": "Cross-entropy on kept answers that it did not learn by step, nats per token",
    "validation_kd": "Divergence to the teacher on kept answers that it did not learn by step, nats per token",
}
_SMOOTH = 25

HEAT = (0.5, 1.0, 2.0, 4.0)
"""Nats of ln q - ln p from which a token is shown warmer."""

_DISPUTED = 3
_LEARNING = {
    "rollout_length": "Mean length of its own answers by step, tokens",
    "eos_rate": "Share of its own answers that end by themselves by step",
    "student_entropy": "Its entropy on its own text by step, nats per token",
}
_OWN_SHARES = frozenset({"eos_rate"})
_WATCHED = {
    **_LEARNING,
    "teacher_entropy": "The teacher's entropy on the same text, nats per token",
    "repetition": "Share of its tokens in a loop that an answer ends in",
    "support_overlap": "Share of its tokens among the teacher's 20 most probable",
    "log_probability_gap": "Gap between writer and trainer, nats per token",
}


def training_curves(report: RunReport) -> list[Chart]:
    """Of every arm that logged them."""
    arms = {arm: report.name(arm) for arm in report.recipes}
    loss = logged(report.metrics, "loss", arms)
    smooth = min(_SMOOTH, max((len(rows) for _, rows in loss), default=0) // 12)
    drawn = (
        curves("Training loss by step, running mean", loss, mean_of=max(1, smooth)),
        *(curves(says, logged(report.metrics, key, arms), share=True) for key, says in _SHARES.items()),
        *(curves(says, logged(report.metrics, key, arms)) for key, says in _VALUES.items()),
    )
    return [chart for chart in drawn if chart is not None]


@dataclass(frozen=True, slots=True)
class Token:
    """Of the student's own answer, with ln p of it by student and teacher."""

    text: str
    student: float
    teacher: float

    @property
    def gap(self) -> float:
        return self.student - self.teacher

    @property
    def heat(self) -> int:
        """From 0 to 4 by how much likelier the token was to the student."""
        return sum(self.gap >= bound for bound in HEAT)

    @property
    def odds(self) -> str:
        return f"student {_likely(self.student)}, teacher {_likely(self.teacher)}"


def own_charts(report: RunReport) -> list[Chart]:
    """Empty where no arm wrote answers while it learned. Learning curves are of every arm that did."""
    means = [(at, one["kl"]) for at, one in enumerate((report.own_text or {}).get("by_position", ()), start=1)]
    says = "KL(student || teacher) at each token of its answers, nats"
    arms = {arm: report.name(arm) for arm in report.recipes}
    drawn = (
        curves(says, [(report.name("student"), means)], unit="tokens"),
        *(curves(says, logged(report.metrics, key, arms), share=key in _OWN_SHARES) for key, says in _LEARNING.items()),
    )
    return [chart for chart in drawn if chart is not None]


def watched(report: RunReport) -> list[tuple[str, str, tuple[float, ...]]]:
    """What the student's steps logged: the first value, the last, the lowest and the highest."""
    rows: list[tuple[str, str, tuple[float, ...]]] = []
    for key, says in _WATCHED.items():
        mine = (row.get(key) for row in report.metrics if row["arm"] == "student")
        if values := [float(value) for value in mine if value is not None]:
            rows.append((says.replace(" by step", ""), key, (values[0], values[-1], min(values), max(values))))
    return rows


def tokens_of(sample: Mapping[str, Any]) -> list[Token]:
    return [Token(*one) for one in sample["tokens"]]


def disputed(tokens: Sequence[Token]) -> list[str]:
    """The few that teacher and student differ most about."""
    most = sorted(tokens, key=lambda token: -token.gap)[:_DISPUTED]
    return [f"“{one_line(token.text)}” ({token.odds})" for token in most if token.heat]


def _likely(logp: float) -> str:
    share = math.exp(logp)
    return percent(share) if share >= 0.001 else "under 0.1 %"
