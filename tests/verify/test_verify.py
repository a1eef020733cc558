"""Calibration does what it says, and every rejection has a reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.choices import ChoiceVerify
from potstill.records import Sample
from potstill.verify.calibrate import Calibration, fit_bias, fit_temperature, log_softmax
from potstill.verify.choices import judge

seeds = st.integers(0, 2**31)


def logits(seed: int, n: int = 200, c: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, c)) + np.array([3.0, 0.0, -1.0])[:c]


@given(seed=seeds)
def test_the_fitted_bias_makes_the_average_answer_the_prior(seed: int) -> None:
    prior = np.random.default_rng(seed + 1).dirichlet([5, 5, 5])
    logp = log_softmax(logits(seed))
    bias = fit_bias(logp, tuple(prior))
    np.testing.assert_allclose(np.exp(log_softmax(logp + bias)).mean(axis=0), prior, atol=1e-8)


@given(seed=seeds, temperature=st.floats(0.2, 5))
def test_the_fitted_temperature_finds_the_one_that_the_answers_were_drawn_at(seed: int, temperature: float) -> None:
    draw = np.random.default_rng(seed)
    logp = log_softmax(draw.normal(0, 3, (4000, 2)))
    p = np.exp(log_softmax(logp / temperature))
    answers = (draw.random(4000) < p[:, 1]).astype(np.int64)
    assert fit_temperature(logp, answers) == pytest.approx(temperature, rel=0.25)


@given(seed=seeds)
def test_a_temperature_never_changes_the_answer(seed: int) -> None:
    logp = log_softmax(logits(seed))
    bias = (0.1, -0.2, 0.1)
    cold, hot = (Calibration(bias=bias, temperature=t).apply(logp) for t in (0.3, 4.0))
    assert (cold.argmax(-1) == hot.argmax(-1)).all()


def test_no_bias_and_temperature_one_only_normalise() -> None:
    logp = logits(0)
    np.testing.assert_allclose(Calibration(bias=(0, 0, 0), temperature=1.0).apply(logp), log_softmax(logp))


def test_each_limit_has_its_own_reason_and_the_top_answer_is_kept() -> None:
    samples = [
        Sample(prompt_id=str(i), text="a", choice_logp=lp) for i, lp in enumerate([(-0.1, -9), (-5, -6), (-1, -1)])
    ]
    calibrated = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55]]))
    verdicts = judge(samples, calibrated, ("a", "b"), ChoiceVerify(min_allowed_mass=0.5, min_confidence=0.7))
    assert [(v.reason, v.answer, v.accepted) for v in verdicts] == [
        ("accepted", "a", True),
        ("little mass on the allowed answers", "a", False),
        ("not confident enough", "b", False),
    ]
