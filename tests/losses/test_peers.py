"""The same numbers as TRL and Liger, where they define the same thing. Needs the bench extra: `make bench-losses`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill.losses import Divergence, ForwardKl, Hidden, Jsd, ReverseKl, linear_divergence

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

BETAS: list[tuple[Divergence, float]] = [(ForwardKl(), 0.0), (ReverseKl(), 1.0), (Jsd(0.5), 0.5), (Jsd(0.2), 0.2)]


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((40, 16), (1000, 16), (40, 24), (1000, 24))
    h, w, ht, wt = (torch.randn(*shape, generator=draw) / 3 for shape in shapes)
    return h.requires_grad_(), w.requires_grad_(), ht, wt


def gradients(loss: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dh, dw = torch.autograd.grad(loss, (h, w))
    return loss.detach(), dh, dw


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("value", "beta"), BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trl(value: Divergence, beta: float, temperature: float) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    h, w, ht, wt = problem()
    nats, _ = ChunkedDivergenceFunction.apply(h, w, None, ht, wt, None, beta, temperature)
    ours = linear_divergence(h, w, teacher=Hidden(ht, wt), divergence=value, temperature=temperature)
    assert_same(gradients(ours.mean(), h, w), gradients(nats.mean(), h, w))


@pytest.mark.parametrize(("value", "beta"), BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_liger(value: Divergence, beta: float, temperature: float) -> None:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    h, w, ht, wt = problem()
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, temperature=temperature
    )
    theirs = loss(h, w, ht, wt, torch.zeros(40, dtype=torch.long))
    ours = linear_divergence(h, w, teacher=Hidden(ht, wt), divergence=value, temperature=temperature)
    assert_same(gradients(ours.mean(), h, w), gradients(theirs, h, w))
