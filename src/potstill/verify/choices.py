"""What is checked of a teacher's answer. Every rejection has a reason, and no human label is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.recipe.choices import ChoiceVerify
from potstill.records import Sample, Verdict
from potstill.verify.calibrate import Array

ACCEPTED = "accepted"


def judge(
    samples: Sequence[Sample], calibrated_NC: Array, choices: Sequence[str], limits: ChoiceVerify
) -> list[Verdict]:
    """One verdict per sample, in order; `calibrated_NC` are calibrated log-probabilities."""
    return [_verdict(sample, row, choices, limits) for sample, row in zip(samples, np.exp(calibrated_NC), strict=True)]


def _verdict(sample: Sample, p_C: Array, choices: Sequence[str], limits: ChoiceVerify) -> Verdict:
    assert sample.choice_logp is not None
    best = int(p_C.argmax())
    mass = float(np.exp(sample.choice_logp).sum())
    if mass < limits.min_allowed_mass:
        reason = "little mass on the allowed answers"
    elif p_C[best] < limits.min_confidence:
        reason = "not confident enough"
    else:
        reason = ACCEPTED
    return Verdict(
        prompt_id=sample.prompt_id,
        index=sample.index,
        accepted=reason == ACCEPTED,
        reason=reason,
        answer=choices[best],
        choice_p=tuple(p_C.tolist()),
    )
