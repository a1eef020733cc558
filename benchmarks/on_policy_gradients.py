"""Single steps at the start of `on_policy_experiment.py`: how large and how alike their gradients are, on right answers
and on the student's own, and on how few tokens the divergence lies.

    .venv/bin/python benchmarks/on_policy_gradients.py columns --start-epochs 8

Dimension key: K steps, N tokens, W weights that learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from on_policy_experiment import REVERSE, TASKS, greedy, half, start_of
from on_policy_tasks import Task
from torch import Tensor
from transformers import PreTrainedModel

from potstill.models.forward import hidden_rows
from potstill.recipe.on_policy import OnPolicy
from potstill.train.batch import Row, Whole, collate
from potstill.train.methods import compared, terms
from potstill.train.rollout_buffer import RolloutBuffer
from potstill.train.teaching import LiveTeacher


@dataclass(frozen=True, slots=True)
class Steps:
    """The gradient of every step, and KL(student || teacher) of every token that they saw."""

    gradient_KW: Tensor
    nats_N: Tensor

    def told(self) -> str:
        """|mean gradient| squared and the trace of its covariance, both without bias, as of a step (McCandlish et al.
        2018)."""
        K = len(self.gradient_KW)
        size_K = self.gradient_KW.pow(2).sum(1)
        signal = (self.gradient_KW.sum(0).pow(2).sum() - size_K.sum()) / (K * (K - 1))
        noise = size_K.mean() - signal
        worst_N = self.nats_N.sort(descending=True).values
        few = int((worst_N.cumsum(0) < worst_N.sum() / 2).sum()) + 1
        return (
            f"KL {self.nats_N.mean():.4f} nats per token, half of it in {few} of {len(worst_N)} tokens; gradient norm "
            f"{size_K.sqrt().median():.3f} ({size_K.sqrt().min():.3f} to {size_K.sqrt().max():.3f}), of the mean "
            f"{signal.clamp(min=0).sqrt():.3f}, noise over signal {noise / signal:.1f}"
        )


def steps(student: PreTrainedModel, task: Task, batches: Sequence[Sequence[Row]], *, own: bool) -> Steps:
    """No update is taken: all steps are at the same weights."""
    rows = [row for batch in batches for row in batch]
    how = OnPolicy(warm_up=0.0, max_tokens=task.most, slots=len(batches[0]))
    longest = max(len(row.prefix) for row in rows)
    write = RolloutBuffer.here(student, how, end_of_turn=task.end, longest_prefix=longest, seed=1)
    teach = LiveTeacher(task.teacher, [row.teacher_prefix for row in rows])
    learnt = [parameter for parameter in student.parameters() if parameter.requires_grad]
    gradients, nats = list[Tensor](), list[Tensor]()
    for step, batch in enumerate(batches):
        some = write(lambda at: list(batches[at]), step, len(batches)) if own else list(batch)
        made = collate(some, (), whole=Whole.of(some), device=student.device)
        hidden_ND, signal = hidden_rows(student, made.documents, made.at_R), teach(some)
        loss, _ = terms(REVERSE, student, hidden_ND, made, signal=signal, observe=False)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, learnt)]))
        nats.append(compared(student, hidden_ND.detach(), made.target_N, teacher=signal).divergence_N)
    return Steps(torch.stack(gradients), torch.cat(nats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--start-epochs", type=int, help="in place of the plan's")
    parser.add_argument("--teacher", type=Path, help="a file of its weights, read where it is there, else written")
    given = parser.parse_args()
    plan, make = TASKS[given.task]
    plan = replace(plan, start_epochs=given.start_epochs or plan.start_epochs)
    task = make(plan, given.teacher)
    student = start_of(task, plan, given.seed)
    print(f"the start is right on {greedy(half(student), task).mean():.1%}")
    rows = task.questions(given.seed + 50)  # not those that the start learnt
    batches = [rows[i : i + plan.batch] for i in range(0, len(rows), plan.batch)][: given.steps]
    kept, own = (steps(student, task, batches, own=own) for own in (False, True))
    print(f"on right answers: {kept.told()}\non its own: {own.told()}")
    alike = torch.cosine_similarity(kept.gradient_KW.mean(0), own.gradient_KW.mean(0), dim=0)
    print(f"cosine of the two mean gradients: {alike:.3f}")


if __name__ == "__main__":
    main()
