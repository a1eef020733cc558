"""The learning curves of every arm."""

from __future__ import annotations

from potstill.report.charts import Chart, curves, logged
from potstill.report.gather import RunReport

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
