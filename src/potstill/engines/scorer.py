"""The second seam: a `Scorer` says how probable a teacher finds given tokens.

Dimension key: N scored positions, K most probable tokens kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The teacher's distribution at N positions: its K most probable next tokens, and the token that came.

    Natural logarithms at temperature 1 under the full vocabulary. There is no log-sum-exp of the logits in a served
    top-k, so what is not in it is known by its mass alone.
    """

    ids_NK: NDArray[np.int64]
    logp_NK: NDArray[np.float32]
    token_logp_N: NDArray[np.float32]

    @property
    def tail_N(self) -> NDArray[np.float32]:
        """Mass outside the top K, at least 0."""
        return np.maximum(0, 1 - np.exp(self.logp_NK).sum(axis=-1))


class Scorer(Protocol):
    """Scores token sequences; `score` is called many times at once, inside `async with`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def score(self, ids: Sequence[int], *, start: int) -> Scored:
        """The distributions that predict `ids[start:]`, one a position; 1 <= start < len(ids)."""
        ...
