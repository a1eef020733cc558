"""Which of several processes this is, as `torchrun` says it in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """Process `rank` of `count`, the `local_rank`-th of its machine. The first one speaks and writes for all."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @staticmethod
    def this() -> Process:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return Process()
        return Process(*(int(os.environ[name]) for name in names))

    @property
    def first(self) -> bool:
        return self.rank == 0
