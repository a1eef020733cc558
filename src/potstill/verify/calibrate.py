"""Two corrections to the teacher's distribution over the allowed answers.

*Prior*: a language model prefers some label words whatever the question. One bias a choice makes its average answer
over unlabelled training prompts equal the prior of the recipe (Zhao et al. 2021, "Calibrate Before Use", with the
average prompt in place of a content-free one). *Temperature*: one number, fitted to a person's answers on the
validation prompts, makes its confidence honest (Guo et al. 2017). Neither sees the test prompts.

Dimension key: N prompts, C choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """ln p_calibrated = log_softmax((ln p + bias) / temperature)."""

    bias: tuple[float, ...]
    temperature: float

    def apply(self, logp_NC: Array) -> Array:
        return log_softmax((logp_NC + np.array(self.bias)) / self.temperature)


def log_softmax(logits_NC: Array) -> Array:
    shifted = logits_NC - logits_NC.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def fit_bias(logp_NC: Array, prior: Sequence[float]) -> tuple[float, ...]:
    """The bias under which the average probability of every choice equals `prior`, by fixed-point iteration."""
    wanted = np.log(np.array(prior))
    bias = np.zeros(len(prior))
    for _ in range(500):
        gap = wanted - np.log(np.exp(log_softmax(logp_NC + bias)).mean(axis=0))
        bias += gap
        if np.abs(gap).max() < 1e-10:
            break
    return tuple((bias - bias.mean()).tolist())


def fit_temperature(logp_NC: Array, answers_N: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] of least cross-entropy against people's answers, by golden-section search on its
    logarithm (the loss is convex in 1 / temperature, so it has one minimum)."""
    rows = np.arange(len(answers_N))

    def nats(log_t: float) -> float:
        return float(-log_softmax(logp_NC / np.exp(log_t))[rows, answers_N].mean())

    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if nats(left) < nats(right) else (left, high)
    return float(np.exp((low + high) / 2))
