"""The teacher's distribution over given tokens, as typed records: the same type live or out of a cache.

Dimension key: N rows (tokens that bear loss), D teacher width, V vocabulary, K stored candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Hidden:
    """Last hidden states and the head that turns them into logits: the full distribution, for d numbers per token.

    `logit_scale`, `softcap` and `bias_V` are the teacher's own, as for the student in `linear_divergence`.
    """

    hidden_ND: Tensor
    head_VD: Tensor
    bias_V: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits themselves, before any temperature: small vocabularies and classifiers."""

    logits_NV: Tensor


@dataclass(frozen=True, slots=True)
class TopK:
    """The K most probable tokens with their natural-log probabilities at `temperature`.

    What is left, 1 - sum of p, is the tail: one bucket that the student's own tail is held against, so that no loss
    is above the full divergence (data-processing inequality) and K = V is exact. `tail=False` drops it, which is
    defined for the forward KL alone. `lse_N` is the log-sum-exp of the teacher's logits where the source knows it (a
    served top-k does not): logits are `logp_NK + lse_N`. A row's ids must differ from each other.
    """

    ids_NK: Tensor
    logp_NK: Tensor
    lse_N: Tensor | None = None
    temperature: float = 1.0
    tail: bool = True


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens drawn from the teacher at `temperature` and how often each came up (0: padding of a short row).

    Unbiased where a top-k is not (Random Sampling KD, Anshumann et al. 2025, arXiv 2503.16870). A row's ids must
    differ from each other where their counts are above 0.
    """

    ids_NK: Tensor
    counts_NK: Tensor
    temperature: float = 1.0


Signal = Hidden | Logits | TopK | Sampled
