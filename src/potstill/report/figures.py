"""The figures, each as the JSON that Plotly.newPlot takes. The style sheet colours text and grid.

Dimension key: N prompts, C choices.
"""

# plotly is untyped
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from potstill.evaluate.metrics import calibration_bins
from potstill.report.data import ReportData
from potstill.report.wording import (
    arm_name,
    arms_in_order,
    duration,
    percent,
    percent_bare,
)

POINTS = 600
"""A curve shows at most this many points."""


def figures(data: ReportData) -> dict[str, str]:
    """Name -> JSON, safe inside a script element. A figure without data is left out."""
    drawn = {
        "accuracy": accuracy(data),
        "loss": loss_curves(data.metrics),
        "validation-accuracy": validation_curves(data.metrics, "validation_accuracy", percent),
        "validation-kl": validation_curves(data.metrics, "validation_kl_to_teacher", lambda x: f"{x:.3f} nats"),
        "calibration": reliability(data),
        "confidence": confidence(data),
        "time": stage_times(data.stage_seconds),
    }
    return {name: _as_json(figure) for name, figure in drawn.items() if figure.data}


def accuracy(data: ReportData) -> go.Figure:
    """One row an arm: accuracy and its 95 % interval."""
    figure = _empty(height=80 + 46 * len(data.arms), x_title="accuracy on the test prompts, %")
    ends: list[float] = []
    for arm in reversed(arms_in_order(data.arms)):
        score, name = data.arms[arm].get("accuracy"), arm_name(arm)
        if score is None:
            continue
        low, high = score.get("ci95") or (score["value"], score["value"])
        figure.add_scatter(
            x=[100 * score["value"]],
            y=[name.label],
            error_x={
                "array": [100 * (high - score["value"])],
                "arrayminus": [100 * (score["value"] - low)],
                "thickness": 2,
                "width": 5,
            },
            text=[percent(score["value"])],
            textposition="top center",
            mode="markers+text",
            marker={"color": name.colour, "size": 13 if arm == "student" else 10},
            hovertemplate=f"{name.label}: %{{text}} ({percent_bare(low)} to {percent_bare(high)})<extra></extra>",
            showlegend=False,
            cliponaxis=False,
        )
        ends += [100 * low, 100 * high]
    if ends and (majority := data.scores.get("majority")):
        ends.append(100 * majority["accuracy"])
        figure.add_vline(x=ends[-1], line={"dash": "dot", "width": 1.5, "color": "#8a8f98"})
    if ends:
        figure.update_xaxes(range=[min(ends) - 2, max(ends) + 2])
    figure.update_yaxes(showgrid=False, ticksuffix="  ")
    return figure


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Training loss by step: every step faint, the running mean on top."""
    figure = _empty(height=340, x_title="step", y_title="training loss, nats")
    for arm, rows in _by_arm(metrics, "loss").items():
        steps, values = zip(*rows, strict=True)
        smooth = _running_mean(values, max(1, len(values) // 25))
        name = arm_name(arm)
        keep = slice(None, None, max(1, -(-len(steps) // POINTS)))
        line = {"color": name.colour, "width": 1}
        common = {"x": steps[keep], "legendgroup": arm, "mode": "lines"}
        figure.add_scatter(y=values[keep], line=line, opacity=0.25, showlegend=False, hoverinfo="skip", **common)
        figure.add_scatter(
            y=smooth[keep],
            line={**line, "width": 2.5},
            name=name.label,
            hovertemplate=f"{name.label}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            **common,
        )
    return figure


def validation_curves(metrics: Sequence[Mapping[str, Any]], key: str, write: Callable[[float], str]) -> go.Figure:
    """A validation score by step."""
    is_share = key == "validation_accuracy"
    title = "validation accuracy, %" if is_share else "validation KL to teacher, nats"
    figure = _empty(height=340, x_title="step", y_title=title)
    for arm, rows in _by_arm(metrics, key).items():
        name = arm_name(arm)
        figure.add_scatter(
            x=[step for step, _ in rows],
            y=[100 * value if is_share else value for _, value in rows],
            text=[write(value) for _, value in rows],
            name=name.label,
            mode="lines+markers",
            line={"color": name.colour, "width": 2.5},
            marker={"size": 8},
            hovertemplate=f"{name.label}, step %{{x}}: %{{text}}<extra></extra>",
        )
    return figure


def reliability(data: ReportData) -> go.Figure:
    """How often an arm was right when it said that it was x % sure."""
    figure = _empty(height=440, x_title="confidence, %", y_title="accuracy, %")
    for arm in ("teacher_raw", "teacher", "student"):
        rows = _confidence_bins(data, arm)
        if not rows:
            continue
        name, ece = arm_name(arm), data.value(arm, "ece")
        total = sum(row["n"] for row in rows)
        figure.add_scatter(
            x=[100 * row["confidence"] for row in rows],
            y=[100 * row["accuracy"] for row in rows],
            text=[f"{row['n']:,.0f}" for row in rows],
            name=name.label if ece is None else f"{name.label}, ECE {percent(ece)}",
            mode="lines+markers",
            line={"color": name.colour, "width": 2},
            marker={
                "size": [7 + 26 * float(np.sqrt(row["n"] / total)) for row in rows],
                "opacity": 0.8,
            },
            hovertemplate="confidence %{x:.1f} %: right %{y:.1f} % of %{text} prompts<extra></extra>",
        )
    if figure.data:
        lowest = 100 / len(data.recipe.answers.choices)
        figure.add_scatter(
            x=[lowest, 100],
            y=[lowest, 100],
            mode="lines",
            line={"dash": "dot", "width": 1.5, "color": "#8a8f98"},
            name="honest confidence",
            hoverinfo="skip",
        )
        figure.update_xaxes(range=[lowest - 2, 102])
        figure.update_yaxes(rangemode="tozero")
    return figure


def confidence(data: ReportData) -> go.Figure:
    """The teacher's confidence over the training prompts, by verdict."""
    figure = _empty(height=300, x_title="the teacher's confidence, %", y_title="answers")
    edges = np.linspace(0, 1, 41)
    for kept, label, colour in ((True, "accepted", "#4a86b8"), (False, "rejected", "#cc6633")):
        sure = [verdict.confidence for verdict in data.verdicts.values() if verdict.accepted == kept]
        if not sure:
            continue
        counts, _ = np.histogram(np.minimum(sure, 1.0), bins=edges)
        first = int(40 / len(data.recipe.answers.choices))
        figure.add_bar(
            x=(100 * (edges[:-1] + edges[1:]) / 2)[first:].tolist(),
            y=counts[first:].tolist(),
            name=label,
            marker={"color": colour},
            hovertemplate=f"%{{y:,}} {label} at %{{x:.0f}} %<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.08, legend={"traceorder": "normal"})
    return figure


def stage_times(seconds: Mapping[str, float]) -> go.Figure:
    """Where the time went: one bar a stage or part of a stage."""
    parts = {name: s for name, s in leaves(seconds).items() if s > 0}
    figure = _empty(height=90 + 30 * len(parts), x_title="seconds")
    if parts:
        names = list(parts)[::-1]
        labels = [name.replace("_", " ") for name in names]
        figure.add_bar(
            x=[parts[name] for name in names],
            y=labels,
            orientation="h",
            marker={"color": "#4a86b8"},
            text=[duration(parts[name]) for name in names],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
            showlegend=False,
        )
        figure.update_xaxes(range=[0, 1.5 * max(parts.values())])
    figure.update_yaxes(showgrid=False, ticksuffix="  ")
    return figure


def leaves(seconds: Mapping[str, float]) -> dict[str, float]:
    """Stages without parts, parts of stages, and what a stage took beyond its parts."""
    parts: dict[str, float] = {}
    for name, took in seconds.items():
        inside = sum(s for other, s in seconds.items() if other.startswith(f"{name}:"))
        if inside == 0:
            parts[name.replace(":", ": ")] = took
        elif took - inside > 0.01 * took:
            parts[f"{name}: the rest"] = took - inside
    return parts


def _confidence_bins(data: ReportData, arm: str) -> list[dict[str, float]]:
    choices = data.recipe.answers.choices
    rows = [
        (logp, choices.index(reference))
        for prompt_id, logp in data.predictions.get(arm, {}).items()
        if (reference := data.prompts[prompt_id].reference) in choices
    ]
    if not rows:
        return []
    p_NC = np.exp(np.array([logp for logp, _ in rows], dtype=np.float64))
    right_N = (p_NC.argmax(axis=-1) == np.array([answer for _, answer in rows])).astype(np.float64)
    return calibration_bins(p_NC, right_N)


def _by_arm(metrics: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    rows: dict[str, list[tuple[int, float]]] = {}
    for row in metrics:
        if row.get(key) is not None:
            rows.setdefault(row["arm"], []).append((row["step"], float(row[key])))
    return {arm: rows[arm] for arm in arms_in_order(rows)}


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last `width` values, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - width)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _empty(*, height: int, x_title: str, y_title: str = "") -> go.Figure:
    small = {"font": {"size": 13}, "standoff": 10}
    axis = {"zeroline": False, "gridcolor": "#ddd", "automargin": True}
    return go.Figure(
        layout={
            "template": {},
            "height": height,
            "margin": {"l": 8, "r": 20, "t": 24, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, 'Segoe UI', 'Liberation Sans', sans-serif", "size": 13},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {**axis, "title": {"text": x_title, **small}},
            "yaxis": {**axis, "title": {"text": y_title, **small}},
        }
    )


def _as_json(figure: go.Figure) -> str:
    text = str(figure.to_json())
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
