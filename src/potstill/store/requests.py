"""What was asked of a teacher and what that cost: the part of the ledger that is paid for."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.store.asks import Asks

State = Literal["sent", "replied", "read", "free", "maybe"]
"""sent: no word yet · replied: raw reply kept · read: understood · free: not billed · maybe: lost, possibly paid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A request that is about to be sent: `samples` answers from index `sample` on, at `worst` picodollars."""

    question: int
    sample: int
    samples: int
    max_tokens: int
    worst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    attempt: int
    raw: bytes
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `cost` is what it was billed, or might have been; `wasted` of that brought no answer."""

    attempt: int
    state: State
    failure: str | None = None
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    wasted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread(Intent):
    """A reply that was kept but not read before the process died."""

    attempt: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Timing:
    """Prompts, the tokens that were read of them, and what that took."""

    prompts: int
    tokens: int
    seconds: float


class Requests(Asks):
    """The whole ledger: open with `with Requests(path) as requests`."""

    def send(self, intents: Sequence[Intent]) -> list[int]:
        """Write intents and return their attempt numbers. Call inside a transaction; send after it."""
        now = time.time()
        numbers: list[int] = []
        for i in intents:
            done = self._db.execute(
                "INSERT INTO attempts (question, sample, samples, max_tokens, sent, worst, state) "
                "VALUES (?, ?, ?, ?, ?, ?, 'sent')",
                (i.question, i.sample, i.samples, i.max_tokens, now, i.worst),
            )
            numbers.append(int(done.lastrowid or 0))
        self._add({"attempts": len(intents)})
        return numbers

    def replied(self, replies: Iterable[Replied]) -> None:
        """Keep raw replies. Call inside a transaction of its own, before reading them."""
        self._db.executemany(
            "UPDATE attempts SET state = 'replied', raw = ?, seconds = ? WHERE id = ?",
            ((r.raw, r.seconds, r.attempt) for r in replies),
        )

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Write how attempts ended, and add them up. Call inside a transaction."""
        self._db.executemany(
            "UPDATE attempts SET state = ?, failure = ?, status = ?, prompt_tokens = ?, completion_tokens = ?, "
            "cost = ? WHERE id = ?",
            ((o.state, o.failure, o.status, o.prompt_tokens, o.completion_tokens, o.cost, o.attempt) for o in outcomes),
        )
        sums = Counter[str]()
        for o in outcomes:
            sums["paid" if o.state == "read" else "maybe"] += o.cost
            sums["wasted"] += o.wasted
            sums["prompt tokens"] += o.prompt_tokens
            sums["completion tokens"] += o.completion_tokens
            sums[f"{o.state} attempts"] += 1
            if o.failure:
                sums[f"failure: {o.failure}"] += 1
        self._add(+sums)  # what is not 0

    def outcome_unknown(self) -> int:
        """Requests on their way when a process died become "maybe": possibly paid, at their worst price."""
        with self.transaction():
            rows = self._db.execute("SELECT id, worst FROM attempts WHERE state = 'sent'").fetchall()
            self.close(
                [
                    Outcome(attempt=attempt, state="maybe", failure="outcome unknown", cost=worst, wasted=worst)
                    for attempt, worst in rows
                ]
            )
        return len(rows)

    def unread(self) -> list[Unread]:
        rows = self._db.execute(
            "SELECT id, question, sample, samples, max_tokens, worst, raw FROM attempts WHERE state = 'replied'"
        )
        return [
            Unread(attempt=a, question=q, sample=s, samples=n, max_tokens=m, worst=w, raw=raw)
            for a, q, s, n, m, w, raw in rows
        ]

    def totals(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, value FROM totals ORDER BY name"))

    def put_said(self, kind: str, message: str) -> None:
        """What the server said with the first failure of a kind."""
        self.put_mark(f"said: {kind}", message)

    def said(self) -> dict[str, str]:
        """Of each kind of failure, what was said with the first one of the newest run that met it."""
        return dict(self._db.execute("SELECT substr(name, 7), value FROM marks WHERE name LIKE 'said: %'"))

    def timing(self) -> Timing:
        """Of the replies to what is asked now."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(seconds), 0.0) FROM attempts "
            "WHERE state = 'read' AND question IN (SELECT question FROM asks)"
        ).fetchone()
        return Timing(*row)

    def spent_by_prompt(self, *, limit: int) -> list[tuple[int, int]]:
        """(completion tokens, picodollars) of each question of the first `limit` prompts that has an answer."""
        return self._db.execute(
            "SELECT sum(completion_tokens), sum(cost) FROM attempts WHERE state IN ('read', 'maybe') AND question IN "
            "(SELECT question FROM asks WHERE position < ?) GROUP BY question HAVING sum(state = 'read') > 0",
            (limit,),
        ).fetchall()

    def _add(self, sums: Mapping[str, int]) -> None:
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            sums.items(),
        )


def glance(folder: Path) -> Mapping[str, int] | None:
    """Prompts, settled prompts and the sums of a run folder's ledger, without waiting for who writes it; None where it
    holds no such thing."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
            prompts, settled = db.execute("SELECT count(*), count(settled) FROM asks").fetchone()
            return {**dict(db.execute("SELECT name, value FROM totals")), "prompts": prompts, "settled": settled}
    except sqlite3.Error:
        return None
