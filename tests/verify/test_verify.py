"""Calibration does what it says, and every rejection has a reason."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.checks import AllowedMass, Confidence
from potstill.records import Prompt, Sample
from potstill.verify.calibrate import Calibration, fit_bias, fit_temperature, log_softmax
from potstill.verify.check import look

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


def test_each_limit_has_its_own_reason() -> None:
    prompt = Prompt(id="p", split="train", messages=())
    checks = (Confidence(kind="confidence", at_least=0.7), AllowedMass(kind="allowed_mass", at_least=0.5))
    said = []
    for raw, calibrated in (((-0.1, -9), (0.9, 0.1)), ((-5, -6), (0.8, 0.2)), ((-1, -1), (0.45, 0.55))):
        logprobs = tuple(math.log(p) for p in calibrated)
        sample = Sample(prompt_id="p", text="a", choice_logprobs=raw, calibrated_logprobs=logprobs)
        findings = [look(check, prompt, sample) for check in checks]
        said.append([f.reason or f.opinion for f in findings])
        assert findings[0].score == pytest.approx(max(calibrated))
        assert findings[1].score == pytest.approx(sum(map(math.exp, raw)))
        assert [f.check for f in findings] == ["confidence@2", "allowed_mass@2"]
    assert said == [
        ["passed", "passed"],
        ["passed", "little mass on the allowed answers"],
        ["not confident enough", "passed"],
    ]
    text = Sample(prompt_id="p", text="a")
    assert [look(check, prompt, text).opinion for check in checks] == ["undecided", "undecided"]
