"""How much may be on its way at once: a window that adapts, and allowances a minute. No clock of their own: `now` is
given, in seconds."""

from __future__ import annotations

_A_ROUND = 8  # replies: fewer say nothing about a rate
_HOLD = 4  # rounds without growth after growth did not pay; doubles up to 256


class Window:
    """Requests in flight, by additive increase and multiplicative decrease.

    Looked at once a round (as many replies as the window is wide, and at least eight). It doubles until something complains, then grows by
    one and 1 % a round. Complaints (429, 503, 529, too slow) shrink it by twice the square of their smoothed share, at
    most by half: a storm halves it every round, one in ten costs 2 % (the idea is DCTCP's: Alizadeh et al. 2010). A
    server that never complains but queues shows in the rate: where the window grew by a quarter and the replies a
    second by less than a fifth of that, the growth is taken back, and tried again later and later.
    """

    def __init__(self, *, start: int, most: int, now: float) -> None:
        self._size = float(min(start, most))
        self._most = most
        self._doubling = True
        self._share = 0.0
        self._anchor: tuple[float, float] | None = None
        self._hold, self._next_hold = 0, _HOLD
        self._begin(now)

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def storm(self) -> bool:
        """More complaints than answers."""
        return self._share > 0.5

    def _begin(self, now: float) -> None:
        self._since, self._good, self._bad, self._idle = now, 0, 0, False

    def heard(self, now: float, *, complaint: bool, full: bool) -> None:
        """A reply came. `full`: the window was in use, so that the round says something about it."""
        self._good += not complaint
        self._bad += complaint
        self._idle = self._idle or not full
        if self._good + self._bad >= max(_A_ROUND, self.size):
            self._turn(now)

    def _turn(self, now: float) -> None:
        self._share = (self._share + self._bad / (self._good + self._bad)) / 2
        self._doubling = self._doubling and not self._bad
        if not self._idle and not self._queueing(self._good / max(1e-9, now - self._since)):
            self._size = min(self._most, self._size * (2 if self._doubling else 1.01) + 1)
        self._size = max(1.0, self._size * (1 - min(0.5, 2 * self._share**2)))
        self._begin(now)

    def _queueing(self, rate: float) -> bool:
        """Whether growing has stopped paying; if so, back to where it did."""
        if self._hold:
            self._hold -= 1
            return True
        if self._anchor is None or self._size < self._anchor[0]:
            self._anchor = (self._size, rate)
        elif self._size >= 1.25 * self._anchor[0]:
            grew, gained = self._size / self._anchor[0] - 1, rate / max(1e-9, self._anchor[1]) - 1
            if gained < grew / 5:
                self._size, self._doubling = self._anchor[0], False
                self._hold, self._next_hold = self._next_hold, min(256, 2 * self._next_hold)
                return True
            self._anchor, self._next_hold = (self._size, rate), _HOLD
        return False


class Allowance:
    """So many units a minute, refilled continuously, one second's worth at most in store; may fall into debt."""

    def __init__(self, a_minute: float | None, now: float) -> None:
        self._a_second = None if a_minute is None else a_minute / 60
        self._level = max(1.0, self._a_second or 0.0)
        self._now = now

    def wait(self, now: float) -> float:
        """Seconds until something may be sent."""
        if self._a_second is None:
            return 0.0
        self._level = min(max(1.0, self._a_second), self._level + (now - self._now) * self._a_second)
        self._now = now
        return 0.0 if self._level >= 1 - 1e-9 else (1 - self._level) / self._a_second

    def take(self, units: float) -> None:
        if self._a_second is not None:
            self._level -= units
