"""What the processes of a training agree on. With one process that is nothing, and nothing distributed is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from potstill.models.load import device
from potstill.store.checkpoints import tensors_in, write_tensors
from potstill.train.batch import Row, passes

T = TypeVar("T")


class Root(Protocol):
    """Runs work that reads a model's weights outside its layers (embeddings, head): they are whole meanwhile."""

    def __call__(self, work: Callable[[], T]) -> T: ...

    def gather(self) -> None:
        """Make the model whole for good, in the first process."""
        ...


class World:
    """The only process. `train/parallel.py` has what each of several does in its place."""

    rank, size = 0, 1
    loads_on: torch.device | None = None
    """Where models are loaded that `rooted` will place; None: where the machine computes."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rooted(self, model: nn.Module) -> Root:
        """Place the model where this process computes."""
        model.to(device())
        return _Plain()

    def share(self, rows: Sequence[Row], pass_tokens: int) -> list[list[Row]]:
        """The passes of a step that this process makes."""
        return passes(rows, pass_tokens)

    def even(self, parts: Sequence[T]) -> Sequence[T]:
        """As many parts in every process, the last one repeated where there are too few."""
        return parts

    def added(self, numbers: Mapping[str, float]) -> Mapping[str, float]:
        """The sums over all processes."""
        return numbers

    def told(self, say: Callable[[], T]) -> T:
        """What the first process says."""
        return say()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Done by the first process, then by the others, however long it takes."""
        return work()

    def save(self, draft: AbstractContextManager[Path], tensors: Mapping[str, Tensor]) -> None:
        """Each process writes its parts into the folder of a checkpoint, which the first one makes."""
        with draft as folder:
            write_tensors(folder, tensors)

    def read(self, place: Path, *, into: Mapping[str, Tensor]) -> None:
        """The tensors of a checkpoint's folder, in place, whatever number of processes wrote it."""
        found = tensors_in(place)
        for name, room in into.items():
            room.copy_(found[name])


class _Plain:
    def __call__(self, work: Callable[[], T]) -> T:
        return work()

    def gather(self) -> None:
        pass


ALONE = World()
