"""A divergence straight from hidden states: logits never exist for more than a chunk of rows, and the gradient is
computed, in closed form, while they do.

Dimension key: N rows, D student width, V vocabulary, K candidates or allowed outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from potstill.losses.calls import check_call, name_nan, on_outcomes, shared_vocabulary
from potstill.losses.divergences import Divergence, Name, resolve
from potstill.losses.observed import Observed
from potstill.losses.problem import CrossEntropy, Gradients, Head, Loss, Problem, Scores
from potstill.losses.recompute import recompute
from potstill.losses.stored import stored
from potstill.signals import Hidden, Logits, Signal

Engine = Literal["auto", "stored", "recompute"]
_Weight = TypeVar("_Weight", Tensor, Tensor | None)


@dataclass(frozen=True, slots=True)
class Account:
    """Row by row what a call found, before weights and scales: for logs, without gradient."""

    divergence_N: Tensor
    cross_entropy_N: Tensor
    observed: Observed


def linear_divergence(  # noqa: PLR0913
    student_hidden_ND: Tensor,
    student_head_VD: Tensor,
    *,
    teacher: Signal,
    divergence: Name | Divergence = "forward_kl",
    weights_N: Tensor | None = None,
    temperature: float = 1.0,
    t_squared: bool = False,
    cross_entropy: CrossEntropy | None = None,
    student_bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocabulary: int | None = None,
    support_K: Tensor | None = None,
    observe: Callable[[Account], None] | None = None,
    engine: Engine = "auto",
    memory_bytes: int | None = None,
) -> Tensor:
    """`weights_N * (scale * divergence + weight * cross-entropy)` in nats, shape (N,): sum it and divide by your count.

    Gradients go to `student_hidden_ND`, `student_head_VD` and `student_bias_V`, as far as they require them, and are
    ready when the forward ends: an upstream gradient that is the same for all rows only scales them. Any other is exact
    too, by a second pass in the backward.

    divergence: a name of `FORMS` (its defaults) or a value such as `Jsd(beta=0.3)`.
    temperature: both distributions are softmax(logits / temperature). `t_squared` multiplies the divergence by its
        square, which keeps the gradient's size (Hinton et al. 2015, section 2). Cross-entropy stays at 1.
    student_head_VD: in the hidden states' dtype, or in fp32: it is then multiplied in theirs, and its gradient comes
        in fp32, as it was summed (masters of mixed precision).
    logit_scale, softcap: the student's own, logits are softcap * tanh(logit_scale * (h W' + b) / softcap).
    vocabulary: how many entries are real, where heads are padded; the rest is in neither normaliser.
    support_K: ids of the only allowed outcomes; both distributions are renormalised on them, and targets and the
        signal's ids count within them.
    observe: is given the `Account` of the call; costs a few passes over the logits, no matrix product.
    engine, memory_bytes: "stored" keeps chunks of logits of at most `memory_bytes` (default 96 MiB on a CPU, 256 MiB
        elsewhere), "recompute" needs the least; "auto" stores unless the budget is too small for 32 rows.

    Raises ValueError where shapes, temperatures or the divergence do not fit the signal, and where a row is NaN.
    """
    weights_N = None if weights_N is None else weights_N.detach().float()
    loss = Loss(resolve(divergence), temperature, t_squared, cross_entropy, weights_N)
    student = _Student(student_hidden_ND, _gathered(student_head_VD), _gathered(student_bias_V), logit_scale, softcap)
    check_call(student_hidden_ND, student.weight_VD, teacher, loss)
    if support_K is not None:
        student, teacher = student.restricted(support_K), on_outcomes(teacher, support_K)
    real = shared_vocabulary(student.weight_VD, teacher, vocabulary)
    head, chunk = student.head(temperature), _chunk(student_hidden_ND, real, teacher, engine, memory_bytes)
    problem = Problem(head.columns(0, real), on_outcomes(teacher, slice(real)), loss, chunk, observe is not None)
    return student.divergence(problem, observe)


@dataclass(frozen=True, slots=True)
class _Student:
    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    logit_scale: float
    softcap: float | None

    def restricted(self, support_K: Tensor) -> _Student:
        bias_V = None if self.bias_V is None else self.bias_V[support_K]
        return replace(self, weight_VD=self.weight_VD[support_K], bias_V=bias_V)

    def head(self, temperature: float) -> Head:
        """In the hidden states' dtype, without gradient."""
        weight_VD = self.weight_VD.detach().to(self.hidden_ND.dtype)
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return Head(weight_VD, bias_V, self.logit_scale, self.softcap, temperature)

    def divergence(self, problem: Problem, observe: Callable[[Account], None] | None) -> Tensor:
        asked = (self.hidden_ND, self.weight_VD, self.bias_V)
        if not torch.is_grad_enabled():  # parameters would ask for a gradient that nobody will read
            asked = tuple(None if one is None else one.detach() for one in asked)
        return cast(Tensor, _LinearDivergence.apply(*asked, problem, observe))


class _LinearDivergence(torch.autograd.Function):
    """Gradients for an upstream of 1 are computed in the forward. They are handed out once and scaled in place."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        problem: Problem,
        observe: Callable[[Account], None] | None,
    ) -> Tensor:
        gradients = _no_gradients(ctx, hidden_ND, weight_VD, bias_V, problem.vocabulary)
        loss = problem.loss
        scores = _run(problem, hidden_ND, gradients, loss.weights_N)
        nats_N = scores.divergence_N * loss.scale + scores.cross_entropy_N * loss.cross_entropy_weight
        name_nan(nats_N, hidden_ND, problem.teacher)
        if observe is not None and scores.observed is not None:
            observe(Account(scores.divergence_N, scores.cross_entropy_N, scores.observed))
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V)
        ctx.problem, ctx.gradients = problem, gradients
        return nats_N if loss.weights_N is None else nats_N * loss.weights_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = upstream
        hidden_ND, weight_VD, bias_V = ctx.saved_tensors  # refused where they were changed since the forward
        gradients: Gradients | None = ctx.gradients
        ctx.gradients = None
        if gradients is not None and _is_uniform(grad_N):
            gradients.scale(grad_N[0] if len(grad_N) else grad_N.sum())
        else:
            del gradients
            problem: Problem = ctx.problem
            weights_N = problem.loss.weights_N
            factor_N = grad_N.float() if weights_N is None else grad_N.float() * weights_N
            gradients = _no_gradients(ctx, hidden_ND, weight_VD, bias_V, problem.vocabulary)
            _run(replace(problem, observe=False), hidden_ND, gradients, factor_N)
        weight_grad = None if gradients.weight_VD is None else gradients.weight_VD.to(weight_VD.dtype)
        bias_grad = None if gradients.bias_V is None or bias_V is None else gradients.bias_V.to(bias_V.dtype)
        return gradients.hidden_ND, weight_grad, bias_grad, None, None


def _run(problem: Problem, hidden_ND: Tensor, gradients: Gradients, factor_N: Tensor | None) -> Scores:
    engine = stored if problem.chunk[1] == problem.vocabulary else recompute
    return engine(problem, hidden_ND, gradients, factor_N)


def _no_gradients(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, vocabulary: int) -> Gradients:
    """Room for what is asked for; a frozen head's gradient is never computed. What no row will write is zero."""
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    weight_grad = torch.empty_like(weight_VD, dtype=torch.float32) if wants_weight else None
    if weight_grad is not None:
        weight_grad[vocabulary if len(hidden_ND) else 0 :].zero_()
    return Gradients(
        torch.zeros_like(hidden_ND) if wants_hidden else None,
        weight_grad,
        torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias and bias_V is not None else None,
    )


def _is_uniform(grad_N: Tensor) -> bool:
    if grad_N.stride() == (0,) or len(grad_N) < 2:  # what `sum` and `mean` hand down
        return True
    return bool((grad_N == grad_N[0]).all())


def _chunk(
    hidden_ND: Tensor, vocabulary: int, teacher: Signal, engine: Engine, memory_bytes: int | None
) -> tuple[int, int]:
    """Rows by columns of the vocabulary that are in memory at once."""
    on_cpu = hidden_ND.device.type == "cpu"
    numbers = 8 if isinstance(teacher, Hidden | Logits) else 4
    each = numbers + (0 if hidden_ND.dtype == torch.float32 else hidden_ND.element_size())
    rows = (memory_bytes or (96 if on_cpu else 256) * 2**20) // (each * vocabulary)
    if engine == "stored" or (engine == "auto" and rows >= min(32, len(hidden_ND))):
        return max(rows // 8 * 8, rows if rows < 8 else 8, 1), vocabulary
    budget = (memory_bytes or 16 * 2**20) // each
    columns = max(1, min(vocabulary - 1, 4096, budget // 16))  # at least 16 rows, while a column is left
    return max(1, min(1024, budget // columns)), columns


def _gathered(head: _Weight) -> _Weight:
    """An FSDP2 parameter whole, once a call. Its gradient goes back sharded and averaged over ranks, as FSDP2's own."""
    if not isinstance(head, DTensor):
        return head
    return cast(_Weight, head.full_tensor(grad_placements=[Partial("avg")] * head.device_mesh.ndim))
