"""Checks of the teacher's distribution over the choices. Pure functions; none of them raises."""

from __future__ import annotations

import math

from potstill.recipe import checks as ask
from potstill.records import Finding, Prompt, Sample
from potstill.verify.text import failed, passed, undecided


def confidence(check: ask.Confidence, _: Prompt, sample: Sample) -> Finding:
    """Of the calibrated distribution."""
    if sample.calibrated_logprobs is None:
        return undecided("no distribution")
    p = math.exp(max(sample.calibrated_logprobs))
    if p < check.at_least:
        return failed("not confident enough", f"p = {p:.3f}", score=p)
    return passed(f"p = {p:.3f}", score=p)


def allowed_mass(check: ask.AllowedMass, _: Prompt, sample: Sample) -> Finding:
    """Of the distribution as the teacher said it."""
    if sample.choice_logprobs is None:
        return undecided("no distribution")
    mass = sum(map(math.exp, sample.choice_logprobs))
    if mass < check.at_least:
        return failed("little mass on the allowed answers", f"{mass:.3f}", score=min(mass, 1.0))
    return passed(f"{mass:.3f}", score=min(mass, 1.0))
