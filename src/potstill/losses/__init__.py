"""The losses: pure functions of fp32 log-probabilities, nats out, no reduction, no mask."""

from potstill.losses.choices import choice_kd, choice_logp
from potstill.losses.divergences import forward_kl

__all__ = ["choice_kd", "choice_logp", "forward_kl"]
