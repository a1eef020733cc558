"""What the loop asks of whatever is trained: how a step's examples become passes, and what is minimised on a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from potstill.recipe.train import Loop
from potstill.train.batch import Learnable
from potstill.train.methods import Logged
from potstill.train.world import World

R = TypeVar("R", bound=Learnable)
M_contra = TypeVar("M_contra", bound=nn.Module, contravariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """What its passes know of an optimizer step: all its examples (what is divided by is counted over them) and whether
    what costs extra is to be logged too."""

    rows: Sequence[R]
    settings: Loop
    observe: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that is ready. `loss` gives its part of the step's loss in nats, a scalar to call backward on, and what is
    worth logging of it; both just add up over passes. `tokens` are those it reads."""

    loss: Callable[[], tuple[Tensor, Logged]]
    tokens: int


class Objective(Protocol[M_contra, R]):
    """What a model learns from examples of one kind."""

    def passes(self, step: Step[R], world: World) -> Sequence[Sequence[R]]:
        """The passes of a step that this process makes."""
        ...

    def prepare(self, model: M_contra, part: Sequence[R], step: Step[R]) -> Pass:
        """One of them, made of everything that needs no weight of the model's."""
        ...

    def describe(self, row: R) -> dict[str, Any]:
        """What is kept of an example where its step stopped the training."""
        ...
