"""How much may be on its way at once: a window that adapts, and allowances per minute. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

_MIN_REPLIES = 8  # in a round: fewer say nothing about a rate
_STRAY = 0.1  # smoothed share of complaints that a server of any size may have by chance, or by a balancer's mistake
_HOLD = 4  # rounds without growth after growth did not pay; doubles up to 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Rates, tries and times in seconds; the recipe's words for them. `answered_before`: whether the server has ever
    answered what is asked in this way."""

    start: int
    most: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    attempts: int = 8
    retry_seconds: float = 1.0
    patience: float = 600.0
    answered_before: bool = False


class Window:
    """Requests in flight, by additive increase and multiplicative decrease.

    Looked at once a round (as many replies as the window is wide, and at least eight). It doubles until more than stray
    complaints come, then grows by one and 1 % a round. Complaints (429, 503, 529) shrink it by twice the square of
    their smoothed share, at most by half: a storm halves it every round, one in ten costs 2 % (the idea is DCTCP's:
    Alizadeh et al. 2010). Requests that passed their deadline complain too where they outnumber the answers.

    A server that never complains but queues shows in the time of its answers: where the window grew by a quarter or
    more and the median answer slowed by most of that, growing gained nothing; it is taken back, and tried again later
    and later.
    """

    def __init__(self, *, start: int, most: int) -> None:
        self._size = float(min(start, most))
        self._most = most
        self._doubling = True
        self._share = 0.0
        self._anchor: tuple[float, float] | None = None
        self._hold, self._next_hold, self._ceiling = 0, _HOLD, 0.0
        self._begin()

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def storm(self) -> bool:
        """More complaints than answers."""
        return self._share > 0.5

    def _begin(self) -> None:
        self._heard, self._complaints, self._late, self._idle = 0, 0, 0, False
        self._took: list[float] = []

    def answered(self, seconds: float, *, full: bool) -> None:
        """An answer came. `full`: the window was in use, so that the round says something about it."""
        self._took.append(seconds)
        self._count(full=full)

    def failed(self, *, complaint: bool, late: bool, full: bool) -> None:
        self._complaints += complaint
        self._late += late
        self._count(full=full)

    def _count(self, *, full: bool) -> None:
        self._heard += 1
        self._idle = self._idle or not full
        if self._heard >= max(_MIN_REPLIES, self.size):
            self._turn()

    def _turn(self) -> None:
        complaints = self._complaints + (self._late if self._late > len(self._took) else 0)
        self._share = (self._share + complaints / self._heard) / 2
        self._doubling = self._doubling and self._share < _STRAY
        if not self._idle and self._took and not self._queueing(median(self._took)):
            self._size = min(self._most, self._size * (2 if self._doubling else 1.01) + 1)
        self._size = max(1.0, self._size * (1 - min(0.5, 2 * self._share**2)))
        self._begin()

    def _queueing(self, seconds: float) -> bool:
        """Whether growing has stopped paying; if so, back to where it did, and no further for a while."""
        if self._hold:
            self._hold -= 1
            return self._size >= self._ceiling
        if self._anchor is None or self._size < self._anchor[0]:
            self._anchor = (self._size, seconds)
        elif self._size >= 1.25 * self._anchor[0]:
            grew, slowed = self._size / self._anchor[0] - 1, seconds / max(1e-9, self._anchor[1]) - 1
            if slowed > 0.8 * grew:
                self._size, self._ceiling, self._doubling = self._anchor[0], self._anchor[0], False
                self._hold, self._next_hold = self._next_hold, min(256, 2 * self._next_hold)
                return True
            self._anchor, self._next_hold = (self._size, seconds), _HOLD
        return False


class Allowance:
    """So many units per minute, refilled continuously, one second's worth at most in store; may fall into debt."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._level = max(1.0, self._per_second or 0.0)
        self._now = now

    def wait(self, now: float) -> float:
        """Seconds until something may be sent."""
        if self._per_second is None:
            return 0.0
        self._level = min(max(1.0, self._per_second), self._level + (now - self._now) * self._per_second)
        self._now = now
        return 0.0 if self._level >= 1 - 1e-9 else (1 - self._level) / self._per_second

    def take(self, units: float) -> None:
        if self._per_second is not None:
            self._level -= units
