"""Draws from a teacher's distribution that depend on nothing but its logits and the example.

Dimension key: N rows, B rows of a block, V vocabulary, S draws, K distinct ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.signals import Sampled

_BLOCK = 64  # rows whose float64 distribution is in memory at once


@torch.no_grad()
def draw(logits_NV: Tensor, *, draws: int, temperature: float, key: bytes) -> Sampled:
    """`draws` draws per row, stratified: the s-th is where the distribution function passes a uniform number of
    [s / S, (s + 1) / S). Unbiased, and no expectation has more variance than with independent draws (Cochran 1977,
    chapter 5). The example's key seeds the numbers: a cache that was resumed is the same bytes."""
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
    stratum_S = torch.arange(draws, dtype=torch.float64)
    u_NS = ((stratum_S + torch.rand((len(logits_NV), draws), dtype=torch.float64, generator=generator)) / draws).to(
        logits_NV.device
    )
    blocks = [_drawn(logits_NV[i : i + _BLOCK], u_NS[i : i + _BLOCK], temperature) for i in range(0, len(u_NS), _BLOCK)]
    drawn_NS = torch.cat(blocks) if blocks else u_NS.long()
    return _counted(drawn_NS, temperature)


def _drawn(logits_BV: Tensor, u_BS: Tensor, temperature: float) -> Tensor:
    cumulated_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).cumsum(-1)
    drawn_BS = torch.searchsorted(cumulated_BV, u_BS * cumulated_BV[:, -1:], right=True)
    return drawn_BS.clamp(max=logits_BV.shape[1] - 1)


def _counted(drawn_NS: Tensor, temperature: float) -> Sampled:
    """Strata are in order, so equal ids lie together."""
    starts_NS = torch.ones_like(drawn_NS)
    starts_NS[:, 1:] = (drawn_NS[:, 1:] != drawn_NS[:, :-1]).long()
    slot_NS = starts_NS.cumsum(-1) - 1
    k = int(slot_NS.max()) + 1 if slot_NS.numel() else 1
    ids_NK = drawn_NS.new_zeros((len(drawn_NS), k)).scatter_(-1, slot_NS, drawn_NS)
    counts_NK = torch.zeros_like(ids_NK).scatter_add_(-1, slot_NS, torch.ones_like(slot_NS))
    return Sampled(ids_NK, counts_NK, temperature)
