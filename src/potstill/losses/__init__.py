"""The losses: pure functions of logits and log-probabilities, nats out, no reduction.

`divergences` says what each one is, `linear` computes any of them straight from hidden states, `choices` on a handful
of allowed answers, `estimators` from sampled tokens alone.
"""

from potstill.losses.calls import NotFinite
from potstill.losses.choices import choice_kd, choice_logp
from potstill.losses.divergences import (
    Divergence,
    ForwardKl,
    Jeffreys,
    Jsd,
    Name,
    ReverseKl,
    SkewForwardKl,
    SkewReverseKl,
    TotalVariation,
    divergence,
    forward_kl,
)
from potstill.losses.linear import Account, linear_divergence
from potstill.losses.observed import Observed
from potstill.losses.problem import CrossEntropy
from potstill.signals import Hidden, Logits, Sampled, Signal, TopK

__all__ = [
    "Account",
    "CrossEntropy",
    "Divergence",
    "ForwardKl",
    "Hidden",
    "Jeffreys",
    "Jsd",
    "Logits",
    "Name",
    "NotFinite",
    "Observed",
    "ReverseKl",
    "Sampled",
    "Signal",
    "SkewForwardKl",
    "SkewReverseKl",
    "TopK",
    "TotalVariation",
    "choice_kd",
    "choice_logp",
    "divergence",
    "forward_kl",
    "linear_divergence",
]
