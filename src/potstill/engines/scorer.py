"""The second seam: a `Scorer` says how probable a teacher finds given tokens.

Dimension key: N scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor

from potstill.signals import Hidden, TopK


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The teacher's distribution at N positions as a typed signal, and ln p of the tokens that came (temperature 1)."""

    signal: Hidden | TopK
    token_logp_N: Tensor


class Scorer(Protocol):
    """Scores token sequences; `score` is called many times at once, inside `async with`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def score(self, ids: Sequence[int], *, start: int) -> Scored:
        """The distributions that predict `ids[start:]`, one a position; 1 <= start < len(ids)."""
        ...
