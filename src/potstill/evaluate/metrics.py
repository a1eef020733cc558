"""Metrics over test prompts, and their bootstrap.

Every metric is a function of `Answers` and of resampled row numbers, so one set of resamples serves all arms and all
differences between them (a paired bootstrap; Efron and Tibshirani 1993).

Dimension key: N prompts, C choices, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One arm on the test prompts: its normalised ln p over the choices, beside people's answers (-1: nobody's), their
    grades, the teacher's distribution, and what checks say of the arm's answers where those decide."""

    logp_NC: Array
    teacher_logp_NC: Array
    reference_N: Ints
    grade_N: Array | None = None
    passed_N: Array | None = None

    @property
    def p_NC(self) -> Array:
        return np.exp(self.logp_NC)

    @property
    def choice_N(self) -> Ints:
        return self.logp_NC.argmax(axis=-1)

    def correct(self) -> Array:
        if self.passed_N is not None:
            return self.passed_N
        return (self.choice_N == self.reference_N).astype(np.float64)

    def agrees(self) -> Array:
        return (self.choice_N == self.teacher_logp_NC.argmax(axis=-1)).astype(np.float64)

    def kl_to_teacher(self) -> Array:
        """KL(teacher || arm) per prompt, in nats."""
        return (np.exp(self.teacher_logp_NC) * (self.teacher_logp_NC - self.logp_NC)).sum(axis=-1)


def resamples(n: int, *, count: int, seed: int) -> Ints:
    """Row numbers drawn with replacement, shape (B, N)."""
    return np.random.default_rng(seed).integers(0, n, size=(count, n))


def interval(draws_B: Array) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.quantile(draws_B, [0.025, 0.975])
    return float(low), float(high)


def calibration_bins(p_NC: Array, correct_N: Array) -> list[dict[str, float]]:
    """Per confidence bin: how many prompts, their mean confidence and accuracy. Empty bins are left out."""
    confidence_N = p_NC.max(axis=-1)
    bin_N = _bin(confidence_N)
    return [
        {
            "n": float((bin_N == b).sum()),
            "confidence": float(confidence_N[bin_N == b].mean()),
            "accuracy": float(correct_N[bin_N == b].mean()),
        }
        for b in range(BINS)
        if (bin_N == b).any()
    ]


def expected_calibration_error(confidence_N: Array, correct_N: Array, rows_BN: Ints) -> Array:
    """Mean |confidence - accuracy| over ten equal bins, weighted by size (Naeini et al. 2015), a resample each."""
    flat = _bin(confidence_N)[rows_BN] + BINS * np.arange(len(rows_BN))[:, None]
    gap = (confidence_N - correct_N)[rows_BN]
    sums = np.bincount(flat.ravel(), weights=gap.ravel(), minlength=BINS * len(rows_BN))
    return np.abs(sums.reshape(len(rows_BN), BINS)).sum(axis=-1) / rows_BN.shape[1]


def rank_correlation(score_N: Array, grade_N: Array, rows_BN: Ints) -> Array:
    """Spearman's rho of the arm's expected answer with people's graded rating, a resample each."""
    score_BN = _standardised(rankdata(score_N[rows_BN], axis=-1))
    grade_BN = _standardised(rankdata(grade_N[rows_BN], axis=-1))
    return (score_BN * grade_BN).mean(axis=-1)


def _standardised(ranks_BN: Array) -> Array:
    centred = ranks_BN - ranks_BN.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1.0)


def _bin(confidence_N: Array) -> Ints:
    return np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
