"""The processes that a training runs in: those that `torchrun` started, or the only one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from potstill.errors import InputError
from potstill.processes import Process
from potstill.recipe.train import TrainSettings
from potstill.train.world import ALONE, World


@contextmanager
def joined(arms: Sequence[TrainSettings]) -> Generator[World]:
    """Join them. Raises InputError where several processes cannot train by the settings of one of the arms, and
    Stopped where another process went away."""
    this = Process.this()
    if this.count == 1:
        yield ALONE
        return
    if any(settings.on_policy is not None for settings in arms):
        raise InputError(
            f"'train.on_policy' is for one process, but torchrun started {this.count}: the student writes in one",
            way_out="start potstill without torchrun, or leave out 'train.on_policy'",
        )
    if any(settings.predict_with_generate for settings in arms):
        raise InputError(
            f"'train.predict_with_generate' is for one process, but torchrun started {this.count}",
            way_out="start potstill without torchrun, or choose by nats_per_token or kd",
        )
    from potstill.train.parallel import together  # torch.distributed, where there are several processes

    with together(this) as world:
        yield world
