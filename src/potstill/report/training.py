"""What every arm is made of and learned, its learning curves, and where the time of the run went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.charts import Chart, curves, logged
from potstill.report.gather import RunReport
from potstill.report.numbers import count, duration, percent, quantity
from potstill.report.tables import Bar, Cell, Table, number
from potstill.report.wording import how_trained, made_of, weights_kept

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPart:
    batch_size: int
    arms: Table
    left_out: Sequence[str]
    curves: Sequence[Chart]


def training_part(report: RunReport) -> TrainingPart | None:
    if not report.trained and not report.metrics:
        return None
    return TrainingPart(
        batch_size=report.recipe.train.batch_size,
        arms=_arms(report),
        left_out=[
            f"{report.name(arm).label}: {count(n, 'example')} left out, {why}."
            for arm, trained in report.trained.items()
            for why, n in trained.get("left_out", {}).items()
        ],
        curves=_curves(report),
    )


def _arms(report: RunReport) -> Table:
    heads = ("Epochs", "Examples", "Steps", "Tokens", "Parameters", "Time")
    rows = [_arm(report, arm, trained) for arm, trained in report.trained.items()]
    marked = 0 if "student" in report.trained else None
    return Table(columns=[Cell("Arm"), Cell("Made of, and trained"), *map(number, heads)], rows=rows, marked=marked)


def _arm(report: RunReport, arm: str, trained: Mapping[str, Any]) -> list[Cell]:
    recipe, size = report.recipes[arm], report.sizes.get(arm)
    assert recipe.student is not None
    made = made_of(recipe.student, trained.get("layers"), trained.get("of"))
    parameters = report.value(arm, "parameters") or (size and size.parameters)
    return [
        Cell(report.name(arm).label, report.name(arm).note),
        Cell(made, how_trained(recipe) + weights_kept(trained), "wrap"),
        *(number(f"{n:,}") for n in (recipe.train.epochs, trained["examples"], trained["steps"], trained["tokens"])),
        number(quantity(parameters) if parameters else ""),
        number(duration(trained["seconds"])),
    ]


def _curves(report: RunReport) -> list[Chart]:
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
class TimePart:
    """`each`: what 1,000 answers take."""

    bars: Sequence[Bar]
    each: str


def time_part(report: RunReport) -> TimePart | None:
    if not report.seconds:
        return None
    whole, most = sum(report.seconds.values()) or 1.0, max(report.seconds.values()) or 1.0
    bars = [
        Bar(name.replace(":", ": "), duration(took), took / most, percent(took / whole))
        for name, took in report.seconds.items()
    ]
    each: Mapping[str, float] = ((report.scores or {}).get("cost") or {}).get("per_1000_answers") or {}
    said = ""
    if len(each) == 2:
        said = (
            f"1,000 answers take the teacher {duration(each['teacher_seconds'])} and the student "
            f"{duration(each['student_seconds'])} on this machine."
        )
    return TimePart([*bars, Bar("all", duration(whole), 0.0)], said)
