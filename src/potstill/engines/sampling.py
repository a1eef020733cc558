"""Draw the next token: temperature, top-k and top-p, by the inverse of the cumulative distribution, a uniform per row.

The uniform is a pure function of (seed, prompt, sample, position): neither the batch nor a restart changes a draw. Only
exponentials and block sums walk over the whole vocabulary; the cumulative sums are float64 over a few hundred numbers.

Dimension key: R rows, V vocabulary, G blocks of the vocabulary, W width of a block, K candidates of a truncated draw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from potstill.errors import InputError

_WIDTH = 256
_CANDIDATES = 1024
"""How many of the most probable tokens are sorted for a top-p before all of them are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Temperature 0 is greedy. `top_k` 0 and `top_p` 1 keep everything; top-k goes first, as in transformers."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}", way_out="give 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}", way_out="give a number above 0, at most 1")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}", way_out="give 0 (off) or a positive count")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens, ln q of each at temperature 1 over the whole vocabulary, and ln of the probability it was drawn with."""

    token_R: Tensor
    logp_R: Tensor
    drawn_logp_R: Tensor


def uniforms(seed: int, *, prompt_R: list[int], sample_R: list[int], position_R: list[int]) -> Tensor:
    """float64 in [0, 1), shape (R,): SplitMix64's finaliser over the four numbers in turn."""
    state_R = np.full(len(prompt_R), seed % 2**64, dtype=np.uint64)
    for part in (prompt_R, sample_R, position_R):
        state_R = _mixed(state_R) + np.array(part, dtype=np.int64).astype(np.uint64)
    return torch.from_numpy((_mixed(state_R) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def draw(logits_RV: Tensor, how: Sampling, uniform_R: Tensor) -> Drawn:
    """One token per row from fp32 logits. A token of probability zero is never drawn."""
    if how.temperature == 0:
        token_R = logits_RV.argmax(dim=-1)
        logp_R = _chosen(logits_RV, token_R) - logits_RV.logsumexp(dim=-1)
        return Drawn(token_R, logp_R, torch.zeros_like(logp_R))
    if how.top_k or how.top_p < 1:
        return _draw_truncated(logits_RV, how, uniform_R)
    scaled_RV = logits_RV if how.temperature == 1 else logits_RV / how.temperature
    token_R, drawn_logp_R = _inverse_cdf(scaled_RV, uniform_R)
    if how.temperature == 1:
        return Drawn(token_R, drawn_logp_R, drawn_logp_R)
    return Drawn(token_R, _chosen(logits_RV, token_R) - logits_RV.logsumexp(dim=-1), drawn_logp_R)


def draw_mixed(student_RV: Tensor, teacher_RV: Tensor, share: float, how: Sampling, uniform_R: Tensor) -> Drawn:
    """One token per row from share p + (1 - share) q, p and q from fp32 logits of teacher and student, each at the
    temperature (greedy: the mixture's likeliest at 1). Truncation is of the mixture. `logp_R` is the student's alone.
    """
    heat = how.temperature or 1.0
    p_RV, q_RV = ((logits_RV / heat).softmax(dim=-1) for logits_RV in (teacher_RV, student_RV))
    mixed_RV = q_RV.lerp_(p_RV, share).log_()
    drawn = draw(mixed_RV, replace(how, temperature=1.0 if how.temperature else 0.0), uniform_R)
    return replace(drawn, logp_R=_chosen(student_RV, drawn.token_R) - student_RV.logsumexp(dim=-1))


def _draw_truncated(logits_RV: Tensor, how: Sampling, uniform_R: Tensor) -> Drawn:
    candidate_RK, ids_RK = _candidates(logits_RV, how)
    at_R, drawn_logp_R = _inverse_cdf(candidate_RK, uniform_R)
    token_R = ids_RK.gather(-1, at_R.unsqueeze(-1)).squeeze(-1)
    return Drawn(token_R, _chosen(logits_RV, token_R) - logits_RV.logsumexp(dim=-1), drawn_logp_R)


def _candidates(logits_RV: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """Logits over temperature, -inf where truncated, most probable first, and their token ids, both (R, K)."""
    vocabulary = logits_RV.shape[1]
    kept = min(how.top_k or vocabulary, vocabulary)
    size = kept if how.top_p == 1 else min(kept, _CANDIDATES)
    while True:
        top_RK, ids_RK = logits_RV.topk(size, dim=-1)
        scaled_RK = top_RK / how.temperature
        if how.top_p == 1:
            return scaled_RK, ids_RK
        whole_RX = scaled_RK if size == kept else logits_RV / how.temperature
        if how.top_k and size < kept:
            whole_RX = logits_RV.topk(kept, dim=-1).values / how.temperature
        p_RK = (scaled_RK.double() - whole_RX.double().logsumexp(dim=-1, keepdim=True)).exp()
        up_to_RK = p_RK.cumsum(dim=-1)
        if size == kept or bool((up_to_RK[:, -1] >= how.top_p).all()):
            # As in transformers: dropped is what comes after the mass is reached; the first is always kept.
            dropped_RK = (up_to_RK - p_RK) >= how.top_p
            dropped_RK[:, 0] = False
            return scaled_RK.masked_fill(dropped_RK, -torch.inf), ids_RK
        size = kept


def _inverse_cdf(logits_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Token and its log-probability: the block that the uniform falls into, then the token within it."""
    peak_R1 = logits_RV.amax(dim=-1, keepdim=True)
    rows, vocabulary = logits_RV.shape
    blocks = -(-vocabulary // _WIDTH)
    mass_RV = logits_RV.new_zeros((rows, blocks * _WIDTH))
    torch.sub(logits_RV, peak_R1, out=mass_RV[:, :vocabulary]).exp_()
    mass_RGW = mass_RV.view(rows, blocks, _WIDTH)
    up_to_RG = mass_RGW.sum(dim=-1).double().cumsum(dim=-1)
    block_R, inside_R = _bin(up_to_RG, uniform_R.to(logits_RV.device))
    mass_RW = mass_RGW[torch.arange(rows, device=block_R.device), block_R]
    lane_R, _ = _bin(mass_RW.double().cumsum(dim=-1), inside_R)
    token_R = block_R * _WIDTH + lane_R
    logp_R = _chosen(logits_RV, token_R).double() - peak_R1.squeeze(-1).double() - up_to_RG[:, -1].log()
    return token_R, logp_R.float()


def _bin(up_to_RG: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """The bin that a uniform share of the whole falls into, and how far into the bin, as a share of it. The target
    stays below the total, so the first sum above it belongs to a bin that holds something."""
    total_R = up_to_RG[:, -1]
    target_R = torch.minimum(uniform_R * total_R, torch.nextafter(total_R, torch.zeros_like(total_R)))
    bin_R1 = torch.searchsorted(up_to_RG, target_R.unsqueeze(-1), right=True)
    above_R = up_to_RG.gather(-1, bin_R1).squeeze(-1)
    below_R = torch.where(bin_R1 > 0, up_to_RG.gather(-1, (bin_R1 - 1).clamp_min(0)), 0.0).squeeze(-1)
    return bin_R1.squeeze(-1), (target_R - below_R) / (above_R - below_R)


def _chosen(value_RV: Tensor, token_R: Tensor) -> Tensor:
    return value_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)


def _mixed(state_R: np.ndarray) -> np.ndarray:
    state_R = state_R + np.uint64(0x9E3779B97F4A7C15)
    state_R = (state_R ^ (state_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state_R = (state_R ^ (state_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state_R ^ (state_R >> np.uint64(31))
