"""The linear divergence: value and gradient against float64 autograd for every divergence, signal, option and engine;
the laws of divergences; hostile numbers; errors that say the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import (
    Account,
    CrossEntropy,
    Divergence,
    ForwardKl,
    Hidden,
    Jsd,
    Logits,
    Sampled,
    Signal,
    SkewForwardKl,
    SkewReverseKl,
    TopK,
    TotalVariation,
    divergence,
    linear_divergence,
)
from potstill.losses.divergences import FORMS

ALL: list[Divergence] = [
    *(form.value() for form in FORMS.values()),
    Jsd(beta=0.1),
    Jsd(beta=0.9),
    SkewForwardKl(alpha=0.7),
    SkewReverseKl(alpha=0.7),
]
ENGINES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"engine": "stored", "memory_bytes": 8 * 4 * 53},  # eight rows at most, of 13
    "recompute": {"engine": "recompute", "memory_bytes": 8 * 16 * 10},  # tiles of 10 columns, of 53
}
N, D, E, V = 13, 8, 12, 53
seeds = st.integers(0, 2**31)


@dataclass(frozen=True)
class Case:
    """A problem in float64, of which the engine gets the fp32 copy and the reference the original."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    bias: Tensor
    teacher_bias: Tensor
    targets: Tensor
    weights: Tensor
    upstream: Tensor

    @staticmethod
    def random(seed: int, *, rows: int = N, spread: float = 1.0, near: float | None = None) -> Case:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:  # exact in fp32, so that both sides see the same numbers
            return torch.randn(*shape, generator=g).double() * spread

        hidden, head = normal(rows, D), normal(V, D)
        teacher_hidden, teacher_head = normal(rows, E), normal(V, E) / 2
        if near is not None:
            teacher_hidden, teacher_head = hidden, (head + near * normal(V, D)).float().double()
        targets = torch.randint(0, V, (rows,), generator=g)
        return Case(
            hidden, head, teacher_hidden, teacher_head, normal(V), normal(V), targets, normal(rows).abs(), normal(rows)
        )


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    t_squared: bool = False
    bias: bool = False
    logit_scale: float = 1.0
    softcap: float | None = None
    weights: bool = False
    cross_entropy: float | None = None
    uniform: bool = True
    vocabulary: int | None = None
    support: tuple[int, ...] | None = None


OPTIONS = {
    "plain": Options(),
    "uneven upstream": Options(uniform=False),
    "hot": Options(temperature=2.5, t_squared=True, uniform=False),
    "cold": Options(temperature=0.7),
    "weights": Options(weights=True),
    "weights and uneven upstream": Options(weights=True, uniform=False),
    "cross-entropy": Options(cross_entropy=0.3),
    "cross-entropy, hot": Options(cross_entropy=0.3, temperature=2.0, t_squared=True, weights=True),
    "bias": Options(bias=True, temperature=2.0),
    "scale and cap": Options(bias=True, logit_scale=0.5, softcap=3.0, temperature=1.5, uniform=False),
    "cap and cross-entropy": Options(softcap=4.0, cross_entropy=0.5, temperature=2.0, weights=True),
    "padding": Options(vocabulary=47, cross_entropy=0.3, bias=True),
    "support": Options(support=(3, 50, 7, 11), temperature=2.0),
}


def student_logits(case: Case, options: Options, hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
    z = hidden @ head.T + (bias if options.bias else 0.0)
    z = z * options.logit_scale
    if options.softcap is not None:
        z = options.softcap * torch.tanh(z / options.softcap)
    return pick(z, options)


def pick(z: Tensor, options: Options) -> Tensor:
    if options.support is not None:
        z = z[:, list(options.support)]
    return z[:, : options.vocabulary]


def teacher_logits(case: Case, options: Options) -> Tensor:
    return pick(case.teacher_hidden @ case.teacher_head.T + (case.teacher_bias if options.bias else 0.0), options)


def signal_of(kind: str, case: Case, options: Options) -> Signal:
    """The teacher's side in fp32."""
    if kind == "hidden":
        bias = case.teacher_bias.float() if options.bias else None
        return Hidden(case.teacher_hidden.float(), case.teacher_head.float(), bias_V=bias)
    z = teacher_logits(case, options)
    if kind == "logits":
        whole = case.teacher_hidden @ case.teacher_head.T + (case.teacher_bias if options.bias else 0.0)
        return Logits(whole.float())
    logp = torch.log_softmax(z / options.temperature, -1)
    k = {"top5": 5, "bare": 5, "top1": 1, "everything": z.shape[1], "sampled": 6}[kind]
    k = min(k, z.shape[1])
    top = logp.topk(k)
    if kind == "sampled":
        counts = torch.randint(0, 4, (len(z), k), generator=torch.Generator().manual_seed(1))
        counts[:, 0] += 1
        return Sampled(top.indices, counts, temperature=options.temperature)
    tail = kind != "bare"
    return TopK(top.indices, top.values.float(), temperature=options.temperature, tail=tail)


def reference(value: Divergence, signal: Signal, case: Case, options: Options, z: Tensor) -> Tensor:
    """What the row is worth, by textbook formulas on log-probabilities in the dtype of `z`."""
    logq = torch.log_softmax(z / options.temperature, -1)
    match signal:
        case Hidden() | Logits():
            logp = torch.log_softmax(teacher_logits(case, options) / options.temperature, -1)
            nats = divergence(value, student_logp_NV=logq, teacher_logp_NV=logp)
        case Sampled(ids, counts):
            share = counts.to(z.dtype) / counts.to(z.dtype).sum(-1, keepdim=True)
            nats = -(share * logq.gather(-1, ids)).sum(-1)
        case TopK(ids, logp32, tail=tail):
            logp = logp32.to(z.dtype)
            logq_k = logq.gather(-1, ids)
            if not tail:
                nats = (logp.exp() * (logp - logq_k)).sum(-1)
            else:
                outside = torch.ones_like(logq, dtype=torch.bool).scatter(-1, ids, False)
                tail_q = (logq.exp() * outside).sum(-1, keepdim=True)
                tail_p = (1 - logp.exp().sum(-1, keepdim=True)).clamp(min=1e-7)
                if ids.shape[-1] < logq.shape[-1]:
                    logq_k = torch.cat([logq_k, tail_q.log()], -1)
                    logp = torch.cat([logp, tail_p.log()], -1)
                nats = divergence(value, student_logp_NV=logq_k, teacher_logp_NV=logp)
    nats = nats * (options.temperature**2 if options.t_squared else 1.0)
    if options.cross_entropy is not None:
        nats = nats - options.cross_entropy * torch.log_softmax(z, -1).gather(-1, case.targets[:, None]).squeeze(-1)
    return nats * case.weights if options.weights else nats


def relative(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None and wanted is not None
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def errors(value: Divergence, kind: str, options: Options, engine: str, case: Case) -> dict[str, float]:
    """Relative errors of value and gradients against float64 autograd."""
    limit = options.vocabulary or (len(options.support) if options.support else V)
    case = replace(case, targets=case.targets % limit)
    signal = signal_of(kind, case, options)
    upstream = torch.full_like(case.upstream, 0.25) if options.uniform else case.upstream
    h, w, b = (t.float().requires_grad_() for t in (case.hidden, case.head, case.bias))
    found = linear_divergence(
        h,
        w,
        teacher=signal,
        divergence=value,
        weights_N=case.weights.float() if options.weights else None,
        temperature=options.temperature,
        t_squared=options.t_squared,
        cross_entropy=None if options.cross_entropy is None else CrossEntropy(case.targets, options.cross_entropy),
        student_bias_V=b if options.bias else None,
        logit_scale=options.logit_scale,
        softcap=options.softcap,
        vocabulary=options.vocabulary,
        support_K=None if options.support is None else torch.tensor(options.support),
        **ENGINES[engine],
    )
    found.backward(upstream.float())
    h64, w64, b64 = (t.clone().requires_grad_() for t in (case.hidden, case.head, case.bias))
    wanted = reference(value, signal, case, options, student_logits(case, options, h64, w64, b64))
    wanted.backward(upstream)
    result = {
        "value": relative(found.detach(), wanted.detach()),
        "hidden": relative(h.grad, h64.grad),
        "head": relative(w.grad, w64.grad),
    }
    return result | ({"bias": relative(b.grad, b64.grad)} if options.bias else {})


KINDS = ["hidden", "logits", "top5", "top1", "everything", "bare", "sampled"]


def defined(value: Divergence, kind: str) -> bool:
    return kind not in ("bare", "sampled") or isinstance(value, ForwardKl)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_value_and_gradient_match_float64_autograd(options: str, kind: str, engine: str) -> None:
    asked = OPTIONS[options]
    for value in ALL:
        if defined(value, kind):
            found = errors(value, kind, asked, engine, Case.random(3))
            assert max(found.values()) <= 2e-6, (value, found)


@given(seed=seeds, spread=st.sampled_from([0.3, 1.0, 2.0]), index=st.integers(0, len(ALL) - 1))
def test_no_engine_is_further_off_than_autograd_in_fp32(seed: int, spread: float, index: int) -> None:
    for kind in ("hidden", "top5", "sampled"):
        if not defined(ALL[index], kind) or (kind, spread) == ("hidden", 2.0):
            continue
        eager, ours = fp32_errors(seed, spread, kind, ALL[index])
        limits = [max(1.5 * error, 2e-5) for error in eager]
        for name, found in ours.items():
            assert all(f <= limit for f, limit in zip(found, limits, strict=True)), (kind, name, found, limits)


@pytest.mark.parametrize("index", range(len(ALL)))
def test_nor_on_average_where_both_are_at_the_mercy_of_rounding(index: int) -> None:
    """At a spread of 2 logits reach 40 and students are certain: full-vocabulary gradients are what is left of terms
    that cancel. One case's error is luck on either side (up to five times the other's), its geometric mean is not."""
    drawn = [fp32_errors(seed, 2.0, "hidden", ALL[index]) for seed in range(24)]
    for i, what in enumerate(("value", "hidden", "head")):
        eager = geometric_mean([max(errors[i], 1e-9) for errors, _ in drawn])
        for name in ENGINES:
            ours = geometric_mean([max(found[name][i], 1e-9) for _, found in drawn])
            assert ours <= max(1.5 * eager, 2e-5 if what == "value" else 0.0), (name, what, ours, eager)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def fp32_errors(seed: int, spread: float, kind: str, value: Divergence) -> tuple[list[float], dict[str, list[float]]]:
    """Relative errors of value and gradients against float64: of eager autograd, and of every engine."""
    case = Case.random(seed, rows=5, spread=spread)
    signal = signal_of(kind, case, Options())
    exact = by_autograd(case, signal, value, torch.float64)

    def off(found: Sequence[Tensor | None]) -> list[float]:
        return [relative(f, x) for f, x in zip(found, exact, strict=True)]

    ours = {name: off(backward(case, signal, value, **engine)) for name, engine in ENGINES.items()}
    return off(by_autograd(case, signal, value, torch.float32)), ours


def by_autograd(case: Case, signal: Signal, value: Divergence, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of the textbook formula, everything in `dtype`."""
    tensors = {f: getattr(case, f) for f in Case.__dataclass_fields__}
    case = Case(**{f: t.to(dtype) if t.is_floating_point() else t for f, t in tensors.items()})
    h, w = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
    nats = reference(value, signal, case, Options(), h @ w.T)
    nats.sum().backward()
    assert h.grad is not None and w.grad is not None
    return nats.detach(), h.grad.double(), w.grad.double()


def backward(case: Case, signal: Signal, value: Divergence, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    h, w = case.hidden.float().requires_grad_(), case.head.float().requires_grad_()
    nats = linear_divergence(h, w, teacher=signal, divergence=value, **options)
    nats.sum().backward()
    assert h.grad is not None and w.grad is not None
    return nats.detach(), h.grad, w.grad


@given(seed=seeds, index=st.integers(0, len(ALL) - 1))
def test_a_student_that_equals_its_teacher_loses_nothing_and_stays(seed: int, index: int) -> None:
    case = Case.random(seed)
    signal = Hidden(case.hidden.float(), case.head.float())
    for options in ENGINES.values():
        nats, dh, dw = backward(case, signal, ALL[index], **options)
        assert (nats == 0).all()
        assert dh.abs().max() < 2e-6 and dw.abs().max() < 2e-6


@given(seed=seeds, index=st.integers(0, len(ALL) - 1))
def test_a_divergence_is_not_negative(seed: int, index: int) -> None:
    case = Case.random(seed)
    nats, _, _ = backward(case, signal_of("hidden", case, Options()), ALL[index])
    assert (nats >= -1e-6).all()


@given(seed=seeds)
def test_bounded_divergences_keep_their_bounds(seed: int) -> None:
    case = Case.random(seed, spread=3.0)
    signal = signal_of("hidden", case, Options())
    jsd, _, _ = backward(case, signal, Jsd(beta=0.5))
    variation, _, _ = backward(case, signal, FORMS["total_variation"].value())
    assert (jsd <= math.log(2) + 1e-6).all() and (variation <= 1 + 1e-6).all()
    kl, _, _ = backward(case, signal, ForwardKl())
    assert (variation.square() <= kl / 2 + 1e-6).all()  # Pinsker


@given(seed=seeds, index=st.integers(0, len(ALL) - 1), k=st.integers(1, V - 1))
def test_a_top_k_never_says_more_than_the_whole_distribution(seed: int, index: int, k: int) -> None:
    """The data-processing inequality; and the whole vocabulary as candidates is exact."""
    case = Case.random(seed)
    logp = torch.log_softmax(teacher_logits(case, Options()), -1)
    whole, dh, _ = backward(case, signal_of("hidden", case, Options()), ALL[index])
    top = logp.topk(k)
    some, _, _ = backward(case, TopK(top.indices, top.values.float()), ALL[index])
    assert (some <= whole + 1e-5).all()
    top = logp.topk(V)
    exact, dh_exact, _ = backward(case, TopK(top.indices, top.values.float()), ALL[index])
    torch.testing.assert_close(exact, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dh_exact, dh, rtol=1e-4, atol=1e-5)


def test_sampled_counts_have_the_gradient_of_the_forward_kl_on_average() -> None:
    """Eight draws per row are far off each time and right on average: the error of the mean falls with its root."""
    case = Case.random(5, rows=3)
    _, exact, _ = backward(case, signal_of("hidden", case, Options()), ForwardKl())
    p = torch.softmax(teacher_logits(case, Options()), -1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(V).expand(3, V)
    found: list[Tensor] = []
    for _ in range(2000):
        draws = torch.multinomial(p, 8, replacement=True, generator=generator)
        counts = torch.stack([torch.bincount(row, minlength=V) for row in draws])
        found.append(backward(case, Sampled(ids, counts), ForwardKl())[1])
    alone = sum(relative(one, exact.double()) for one in found) / len(found)
    together = relative(torch.stack(found).mean(0), exact.double())
    assert together < 0.05 and together < alone / 20


def test_near_agreement_the_error_is_not_above_eager_fp32s() -> None:
    """Where student and teacher nearly agree the loss is all rounding: at most 1.5 times what autograd does in fp32."""
    for value in ALL:
        for near in (1e-2, 1e-3):
            case = Case.random(11, rows=64, near=near)
            ours = errors(value, "hidden", Options(), "whole", case)
            h, w = case.hidden.float().requires_grad_(), case.head.float().requires_grad_()
            teacher_logp = torch.log_softmax(case.teacher_hidden.float() @ case.teacher_head.float().T, -1)
            eager = divergence(value, student_logp_NV=torch.log_softmax(h @ w.T, -1), teacher_logp_NV=teacher_logp)
            eager.sum().backward()
            h64, w64 = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
            exact = reference(value, signal_of("hidden", case, Options()), case, Options(), h64 @ w64.T)
            exact.sum().backward()
            limits = {
                "value": relative(eager.detach(), exact.detach()),
                "hidden": relative(h.grad, h64.grad),
                "head": relative(w.grad, w64.grad),
            }
            for name, limit in limits.items():
                assert ours[name] <= max(1.5 * limit, 2e-6), (value, near, name, ours[name], limit)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 31])
def test_any_number_of_rows(rows: int, engine: str) -> None:
    case = Case.random(2, rows=rows)
    nats, dh, dw = backward(case, signal_of("hidden", case, Options()), ForwardKl(), **ENGINES[engine])
    assert nats.shape == (rows,) and dh.shape == (rows, D) and dw.shape == (V, D)
    if rows:
        assert max(errors(ForwardKl(), "hidden", Options(), engine, case).values()) <= 2e-6
    else:
        assert (dw == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_call_gives_the_same_bits(engine: str) -> None:
    case = Case.random(9)
    signal = signal_of("hidden", case, Options())
    one, other = (backward(case, signal, Jsd(), **ENGINES[engine]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_outcomes_that_both_exclude_weigh_nothing(engine: str) -> None:
    """-inf in the teacher's logits and in the student's bias: the same as leaving those outcomes out."""
    case = Case.random(4)
    banned = [0, 17, 52]
    kept = [v for v in range(V) if v not in banned]
    z = teacher_logits(case, Options()).float()
    z[:, banned] = -math.inf
    bias = torch.zeros(V)
    bias[banned] = -math.inf
    for value in ALL:
        h, w = case.hidden.float().requires_grad_(), case.head.float().requires_grad_()
        nats = linear_divergence(h, w, teacher=Logits(z), divergence=value, student_bias_V=bias, **ENGINES[engine])
        nats.sum().backward()
        h2, w2 = case.hidden.float().requires_grad_(), case.head[kept].float().requires_grad_()
        wanted = linear_divergence(h2, w2, teacher=Logits(z[:, kept]), divergence=value)
        wanted.sum().backward()
        assert h.grad is not None and h2.grad is not None and w.grad is not None and w2.grad is not None
        torch.testing.assert_close(nats, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(h.grad, h2.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(w.grad[kept], w2.grad, rtol=1e-4, atol=1e-5)
        assert (w.grad[banned] == 0).all()


def test_a_teacher_that_excludes_what_the_student_does_not() -> None:
    """The forward KL shrugs, the reverse KL is infinite, the mixtures stay finite with a finite gradient."""
    case = Case.random(4)
    z = teacher_logits(case, Options()).float()
    z[:, 3] = -math.inf
    for value in ALL:
        nats, dh, dw = backward(case, Logits(z), value)
        if FORMS["reverse_kl"].value() == value or FORMS["jeffreys"].value() == value:
            assert (nats == math.inf).all()
        else:
            assert torch.isfinite(nats).all() and torch.isfinite(dh).all() and torch.isfinite(dw).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_huge_logits_neither_overflow_nor_turn_nan(engine: str) -> None:
    case = Case.random(6)
    for value in ALL:
        h, w = (3e4 * case.hidden).float().requires_grad_(), case.head.float().requires_grad_()
        signal = Hidden((-2e4 * case.teacher_hidden).float(), case.teacher_head.float())
        nats = linear_divergence(h, w, teacher=signal, divergence=value, **ENGINES[engine])
        nats.sum().backward()
        assert h.grad is not None and torch.isfinite(nats).all() and torch.isfinite(h.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_is_off_by_little_more_than_its_inputs_rounding(dtype: torch.dtype, engine: str) -> None:
    case = Case.random(8, rows=40, spread=0.7)
    h, w = case.hidden.to(dtype).requires_grad_(), case.head.to(dtype).requires_grad_()
    signal = Hidden(case.teacher_hidden.to(dtype), case.teacher_head.to(dtype))
    for value in ALL:
        h.grad = w.grad = None
        nats = linear_divergence(h, w, teacher=signal, divergence=value, **ENGINES[engine])
        nats.sum().backward()
        h64, w64 = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
        logp = torch.log_softmax(signal.hidden_ND.double() @ signal.head_VD.double().T, -1)
        exact = divergence(value, student_logp_NV=torch.log_softmax(h64 @ w64.T, -1), teacher_logp_NV=logp)
        exact.sum().backward()
        assert nats.dtype == torch.float32 and h.grad is not None and h.grad.dtype == dtype
        assert relative(nats.detach(), exact.detach()) < 1e-2
        if value != TotalVariation():  # whose gradient jumps where the rounded logits of the two change places
            assert relative(h.grad, h64.grad) < 2e-2 and relative(w.grad, w64.grad) < 2e-2


def test_a_frozen_head_gets_no_gradient_and_tied_weights_add_theirs_up() -> None:
    case = Case.random(1)
    signal = signal_of("hidden", case, Options())
    h, w = case.hidden.float().requires_grad_(), case.head.float()
    linear_divergence(h, w, teacher=signal).sum().backward()
    assert w.grad is None and h.grad is not None
    table = case.head.float().requires_grad_()
    ids = torch.arange(N)
    linear_divergence(table[ids], table, teacher=signal).sum().backward()
    both = table.grad
    table64 = case.head.clone().requires_grad_()
    reference(ForwardKl(), signal, case, Options(), table64[ids] @ table64.T).sum().backward()
    assert relative(both, table64.grad) < 2e-6


def test_a_second_backward_is_as_right_as_the_first() -> None:
    case = Case.random(1)
    h = case.hidden.float().requires_grad_()
    loss = linear_divergence(h, case.head.float(), teacher=signal_of("hidden", case, Options())).mean()
    (first,) = torch.autograd.grad(loss, h, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 3, h)
    torch.testing.assert_close(second, 3 * first)


def test_what_is_observed_is_what_the_logits_say() -> None:
    case = Case.random(7)
    options = Options(temperature=2.0)
    q = torch.softmax(student_logits(case, options, case.hidden, case.head, case.bias) / 2, -1)
    p = torch.softmax(teacher_logits(case, options) / 2, -1)
    seen: list[Account] = []
    for kind in ("hidden", "everything", "top5", "sampled"):
        linear_divergence(
            case.hidden.float(),
            case.head.float(),
            teacher=signal_of(kind, case, options),
            temperature=2.0,
            cross_entropy=CrossEntropy(case.targets, 0.5),
            weights_N=case.weights.float(),
            observe=seen.append,
        )
    for account in seen[:2]:
        found = account.observed
        wanted = {
            "student_entropy_N": torch.special.entr(q).sum(-1),
            "teacher_entropy_N": torch.special.entr(p).sum(-1),
            "agreement_N": (q.argmax(-1) == p.argmax(-1)).double(),
        }
        if found is seen[0].observed:  # a stored top-k does not rank what it lacks
            p_N1 = p.gather(-1, case.targets[:, None])
            wanted |= {"target_logp_N": p_N1.log().squeeze(-1), "target_rank_N": (p > p_N1).sum(-1).double()}
        for name, expected in wanted.items():
            torch.testing.assert_close(getattr(found, name).double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(account.divergence_N.double(), (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
        ce = -torch.log_softmax(case.hidden @ case.head.T, -1).gather(-1, case.targets[:, None]).squeeze(-1)
        torch.testing.assert_close(account.cross_entropy_N.double(), ce, rtol=1e-5, atol=1e-5)
    top5, whole = seen[2].observed.teacher_entropy_N, seen[0].observed.teacher_entropy_N
    assert top5 is not None and whole is not None and (top5 < whole).all()
    assert seen[3].observed.teacher_entropy_N is None and seen[3].observed.student_entropy_N is not None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"divergence": "kl"}, "there is no divergence 'kl'; there are forward_kl"),
    "temperature": ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
    "weights": ({"weights_N": torch.ones(3)}, r"weights_N or targets_N has shape \(3,\) for 13 rows"),
    "rows": ({"teacher": Logits(torch.zeros(5, V))}, "signal has 5 rows, but student_hidden_ND has 13"),
    "padding": ({"teacher": Logits(torch.zeros(N, V + 3))}, "53 outcomes and the teacher 56: .* vocabulary="),
    "vocabulary": ({"vocabulary": 99}, "vocabulary is 99, but the smaller head has 53"),
    "another temperature": (
        {"teacher": TopK(torch.zeros(N, 1, dtype=torch.long), torch.zeros(N, 1)), "temperature": 2.0},
        "TopK was taken at temperature 1.0, the loss asks for 2.0: use temperature=1.0",
    ),
    "bare reverse": (
        {
            "teacher": TopK(torch.zeros(N, 1, dtype=torch.long), torch.zeros(N, 1), tail=False),
            "divergence": "reverse_kl",
        },
        "a top-k without its tail does not define 'reverse_kl': keep the tail",
    ),
    "sampled reverse": (
        {"teacher": Sampled(torch.zeros(N, 1, dtype=torch.long), torch.ones(N, 1)), "divergence": "jsd"},
        "sampled counts do not define 'jsd'.*use 'forward_kl', or TopK",
    ),
    "observing by recomputing": (
        {"engine": "recompute", "memory_bytes": 1024, "observe": print},
        "the recompute engine observes nothing: raise memory_bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_told_the_way_out(name: str) -> None:
    options, message = WRONG[name]
    case = Case.random(0)
    call = {"teacher": signal_of("hidden", case, Options())} | options
    with pytest.raises(ValueError, match=message):
        linear_divergence(case.hidden.float(), case.head.float(), **call)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_jsd_at_its_ends_names_the_kl_that_is_meant(beta: float) -> None:
    with pytest.raises(ValueError, match="beta 0 is 'forward_kl'"):
        Jsd(beta=beta)


def test_nan_names_the_row_and_whose_it_is() -> None:
    case = Case.random(0)
    hidden, teacher = case.hidden.float(), case.teacher_hidden.float()
    signal = Hidden(teacher, case.teacher_head.float())
    hidden[4, 2] = math.nan
    with pytest.raises(ValueError, match="row 4 of student_hidden_ND is not finite"):
        linear_divergence(hidden, case.head.float(), teacher=signal)
    hidden[4, 2] = 0.0
    teacher[9, 0] = math.nan
    with pytest.raises(ValueError, match="row 9 of the teacher's hidden states is not finite"):
        linear_divergence(hidden, case.head.float(), teacher=signal)


def test_the_gradient_of_an_fp32_head_under_half_precision_hidden_states_comes_in_fp32() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=draw).bfloat16()
    head = torch.randn(50, 16, generator=draw)
    teacher = Logits(torch.randn(9, 50, generator=draw))
    found: list[torch.Tensor] = []
    for weight in (head, head.bfloat16()):
        leaf = weight.clone().requires_grad_()
        linear_divergence(hidden, leaf, teacher=teacher).sum().backward()
        assert leaf.grad is not None and leaf.grad.dtype == weight.dtype
        found.append(leaf.grad)
    assert torch.equal(found[0].bfloat16(), found[1])
    with pytest.raises(ValueError, match="cast one of them"):
        linear_divergence(hidden, head.double(), teacher=teacher)
