"""What was asked of a teacher, what it said, and what that cost: the part of the ledger that is paid for.

questions   what is asked of whom, once, under a key of its content
asks        the prompts of the recipe as it is now, in their order, each with its question
attempts    every request: written before it is sent, with its worst price; its raw reply before it is read
answers     what was read, one row per answer, or why it was given up
totals      running sums, so that nobody scans a million replies to know what was spent

Money is counted in picodollars (1e-12 US dollars), so that sums are exact.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.errors import InputError
from potstill.records import Finish, Message, Prompt, Sample
from potstill.store.database import connect, transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, messages TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS asks (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, question INTEGER NOT NULL UNIQUE, settled TEXT,
    reference TEXT);
CREATE INDEX IF NOT EXISTS open_asks ON asks (position) WHERE settled IS NULL;
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, question INTEGER NOT NULL, sample INTEGER NOT NULL, samples INTEGER NOT NULL,
    max_tokens INTEGER NOT NULL, sent REAL NOT NULL, worst INTEGER NOT NULL, state TEXT NOT NULL, failure TEXT,
    status INTEGER, seconds REAL, prompt_tokens INTEGER, completion_tokens INTEGER, cost INTEGER, raw BLOB);
CREATE INDEX IF NOT EXISTS open_attempts ON attempts (id) WHERE state IN ('sent', 'replied');
CREATE TABLE IF NOT EXISTS answers (
    question INTEGER NOT NULL, sample INTEGER NOT NULL, attempt INTEGER NOT NULL, text TEXT, reasoning TEXT,
    finish TEXT, cut_off INTEGER NOT NULL, max_tokens INTEGER NOT NULL, given_up TEXT, PRIMARY KEY (question, sample));
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_PAGE = 500

State = Literal["sent", "replied", "read", "free", "maybe"]
"""sent: no word yet · replied: raw reply kept · read: understood · free: not billed · maybe: lost, possibly paid."""


Settled = Literal["done", "gave up", "failed"]
"""done: as many answers as wanted · gave up: no more are to be had · failed: the next run tries again."""


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
class Written:
    """One answer, or why there is none. A `given_up` that is not final is asked again by the next run."""

    question: int
    sample: int
    attempt: int
    max_tokens: int
    text: str | None = None
    reasoning: str | None = None
    finish: Finish = "unknown"
    cut_off: bool = False
    given_up: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A prompt that is not settled, with everything already written for it."""

    position: int
    prompt_id: str
    question: int
    key: bytes
    messages: tuple[Message, ...]
    written: tuple[Written, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A reply that was kept but not read before the process died."""

    attempt: int
    question: int
    sample: int
    samples: int
    max_tokens: int
    worst: int
    raw: bytes


class Requests:
    """Open with `with Requests(path) as requests`. One process writes; the run folder's lock sees to that."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path, _SCHEMA)
        if "reference" not in {row[1] for row in self._db.execute("PRAGMA table_info(asks)")}:
            self._db.execute("ALTER TABLE asks ADD COLUMN reference TEXT")  # a ledger from before there were checks

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        return transaction(self._db)

    # the prompts of the recipe

    def mark(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def put_mark(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def put_asks(self, asks: Iterable[tuple[Prompt, bytes]]) -> int:
        """Replace what is asked by (prompt, key of its question) rows; returns how many were duplicates of another.

        Questions and their answers stay: those that are asked again keep them. Call inside a transaction.
        """
        self._db.execute("DELETE FROM asks")
        position = duplicates = 0
        for prompt, key in asks:
            body = json.dumps([m.as_dict() for m in prompt.messages], ensure_ascii=False)
            self._db.execute("INSERT OR IGNORE INTO questions (key, messages) VALUES (?, ?)", (key, body))
            try:
                self._db.execute(
                    "INSERT INTO asks SELECT ?, ?, id, NULL, ? FROM questions WHERE key = ?",
                    (position, prompt.id, prompt.reference, key),
                )
            except sqlite3.IntegrityError as error:
                if "prompt_id" in str(error) and not self._same_question(prompt.id, key):
                    raise InputError(
                        f"prompts.columns.id: the id '{prompt.id}' stands on two different prompts",
                        way_out="make ids unique, or leave 'id' out",
                    ) from None
                duplicates += 1
                continue
            position += 1
        return duplicates

    def _same_question(self, prompt_id: str, key: bytes) -> bool:
        found = self._db.execute(
            "SELECT 1 FROM asks JOIN questions q ON q.id = question WHERE prompt_id = ? AND key = ?", (prompt_id, key)
        )
        return found.fetchone() is not None

    def reopen(self, settled: Settled | None = None) -> None:
        """Look again at the prompts that were settled so, or at all of them: what is wanted may have changed."""
        self._db.execute("UPDATE asks SET settled = NULL WHERE settled = coalesce(?, settled)", (settled,))

    def count_asks(self, *, limit: int | None = None, settled: bool = False) -> int:
        where = "WHERE position < ?" + (" AND settled IS NOT NULL" if settled else "")
        row = self._db.execute(f"SELECT count(*) FROM asks {where}", (_all(limit),)).fetchone()
        return int(row[0])

    def prompt_ids(self) -> list[str]:
        """Every prompt as they are now, in order."""
        return [row[0] for row in self._db.execute("SELECT prompt_id FROM asks ORDER BY position")]

    def count_answers(self, *, most: int) -> int:
        """How many of the first `most` answers a prompt are there."""
        row = self._db.execute(
            "SELECT count(*) FROM asks k JOIN answers a ON a.question = k.question "
            "WHERE given_up IS NULL AND sample < ?",
            (most,),
        ).fetchone()
        return int(row[0])

    def lost_answers(self, *, most: int) -> dict[str, int]:
        """How many of the first `most` answers a prompt were given up, by reason."""
        rows = self._db.execute(
            "SELECT given_up, count(*) FROM asks k JOIN answers a ON a.question = k.question "
            "WHERE given_up IS NOT NULL AND sample < ? GROUP BY given_up",
            (most,),
        )
        return dict(rows)

    def count_cut_off(self, *, most: int) -> int:
        """How many of the first `most` answers a prompt did not come to their end."""
        row = self._db.execute(
            "SELECT count(*) FROM asks k JOIN answers a ON a.question = k.question "
            "WHERE given_up IS NULL AND cut_off AND sample < ?",
            (most,),
        ).fetchone()
        return int(row[0])

    def open_asks(self, *, limit: int | None = None) -> Iterator[Open]:
        """Every prompt that is not settled, in order; read a page at a time, so writing in between is fine."""
        after = -1
        while rows := self._db.execute(
            "SELECT position, prompt_id, question, messages, key FROM asks JOIN questions q ON q.id = question "
            "WHERE settled IS NULL AND position > ? AND position < ? ORDER BY position LIMIT ?",
            (after, _all(limit), _PAGE),
        ).fetchall():
            after = rows[-1][0]
            written = self._written([row[2] for row in rows])
            for position, prompt_id, question, messages, key in rows:
                yield Open(
                    position=position,
                    prompt_id=prompt_id,
                    question=question,
                    key=key,
                    messages=messages_of(messages),
                    written=tuple(written.get(question, ())),
                )

    def _written(self, questions: Sequence[int]) -> dict[int, list[Written]]:
        found: dict[int, list[Written]] = {}
        rows = self._db.execute(
            "SELECT question, sample, attempt, max_tokens, text, reasoning, finish, cut_off, given_up FROM answers "
            f"WHERE question IN ({','.join('?' * len(questions))}) ORDER BY question, sample",
            questions,
        )
        for question, sample, attempt, max_tokens, text, reasoning, finish, cut_off, given_up in rows:
            found.setdefault(question, []).append(
                Written(
                    question=question,
                    sample=sample,
                    attempt=attempt,
                    max_tokens=max_tokens,
                    text=text,
                    reasoning=reasoning,
                    finish=finish,
                    cut_off=bool(cut_off),
                    given_up=given_up,
                )
            )
        return found

    def settle_answered(self, n: int, *, at_least: int | None) -> None:
        """Settle every prompt that has its first `n` answers, in one statement: a million take seconds. An answer that
        was cut off counts where it had `at_least` so many tokens (None: never)."""
        self._db.execute(
            "UPDATE asks SET settled = 'done' WHERE settled IS NULL AND ? <= (SELECT count(*) FROM answers a "
            "WHERE a.question = asks.question AND a.sample < ? AND a.given_up IS NULL "
            "AND (NOT a.cut_off OR a.max_tokens >= ?))",
            (n, n, _all(at_least)),
        )

    def settle(self, question: int, why: Settled) -> None:
        """Nothing more is wanted of this prompt. Call inside a transaction."""
        self._db.execute("UPDATE asks SET settled = ? WHERE question = ?", (why, question))

    def settled_by_reason(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT settled, count(*) FROM asks WHERE settled IS NOT NULL GROUP BY settled"))

    # attempts

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
        sums: dict[str, int] = {}
        for o in outcomes:
            for name, value in (
                ("paid" if o.state == "read" else "maybe", o.cost),
                ("wasted", o.wasted),
                ("prompt tokens", o.prompt_tokens),
                ("completion tokens", o.completion_tokens),
                (f"{o.state} attempts", 1),
                (f"failure: {o.failure}" if o.failure else "", 1),
            ):
                if name and value:
                    sums[name] = sums.get(name, 0) + value
        self._add(sums)

    def put_written(self, rows: Iterable[Written]) -> None:
        """Store answers and give-ups, an answer in place of an earlier give-up. Call inside a transaction."""
        self._db.executemany(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (w.question, w.sample, w.attempt, w.text, w.reasoning, w.finish, w.cut_off, w.max_tokens, w.given_up)
                for w in rows
            ),
        )

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

    # what it comes to

    def totals(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, value FROM totals ORDER BY name"))

    def spent_by_prompt(self, *, limit: int) -> list[tuple[int, int]]:
        """(completion tokens, picodollars) of each of the first `limit` prompts that has an answer."""
        return self._db.execute(
            "SELECT sum(t.completion_tokens), sum(t.cost) FROM asks k JOIN attempts t ON t.question = k.question "
            "WHERE position < ? AND t.state IN ('read', 'maybe') GROUP BY k.question HAVING sum(t.state = 'read') > 0",
            (limit,),
        ).fetchall()

    def _add(self, sums: Mapping[str, int]) -> None:
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            sums.items(),
        )

    def first_answer(self, prompt_id: str) -> Sample | None:
        """The first answer to one prompt, if there is one."""
        row = self._db.execute(
            "SELECT sample, text, reasoning, finish, cut_off FROM asks k JOIN answers a ON a.question = k.question "
            "WHERE prompt_id = ? AND sample = 0 AND given_up IS NULL",
            (prompt_id,),
        ).fetchone()
        return None if row is None else _sample(prompt_id, *row)

    def samples(self, *, most: int | None = None, of: Sequence[str] | None = None) -> Iterator[tuple[Prompt, Sample]]:
        """The first `most` answers (default all) to every prompt as they are now (or to those `of` these few ids), by
        prompt and index."""
        some = "" if of is None else f"AND prompt_id IN ({','.join('?' * len(of))}) "
        rows = self._db.execute(
            "SELECT prompt_id, messages, reference, sample, text, reasoning, finish, cut_off FROM asks k "
            "JOIN questions q ON q.id = k.question JOIN answers a ON a.question = q.id "
            f"WHERE given_up IS NULL AND sample < ? {some}ORDER BY position, sample",
            (_all(most), *(of or ())),
        )
        prompt = None
        for prompt_id, messages, reference, *answer in rows:
            if prompt is None or prompt.id != prompt_id:
                prompt = Prompt(id=prompt_id, split="train", messages=messages_of(messages), reference=reference)
            yield prompt, _sample(prompt_id, *answer)

    def samples_of(self, key: bytes, prompt_id: str, *, most: int) -> Iterator[Sample]:
        """The first `most` answers to one question, whether or not it is asked now."""
        rows = self._db.execute(
            "SELECT sample, text, reasoning, finish, cut_off FROM questions q JOIN answers a ON a.question = q.id "
            "WHERE key = ? AND given_up IS NULL AND sample < ? ORDER BY sample",
            (key, most),
        )
        return (_sample(prompt_id, *row) for row in rows)

    def unanswered(self, *, most: int, cut_off: bool) -> Iterator[Prompt]:
        """Every prompt that was asked and has none of its first `most` answers, in order; `cut_off` says whether one
        that was cut off counts."""
        rows = self._db.execute(
            "SELECT prompt_id, messages, reference FROM asks k JOIN questions q ON q.id = k.question "
            "WHERE EXISTS (SELECT 1 FROM answers WHERE question = q.id AND sample < ?) AND NOT EXISTS (SELECT 1 "
            "FROM answers WHERE question = q.id AND sample < ? AND given_up IS NULL AND (? OR NOT cut_off)) "
            "ORDER BY position",
            (most, most, cut_off),
        )
        for prompt_id, messages, reference in rows:
            yield Prompt(id=prompt_id, split="train", messages=messages_of(messages), reference=reference)


def glance(folder: Path) -> Mapping[str, int] | None:
    """Prompts, settled prompts and the sums of a run folder's ledger, without waiting for who writes it; None where it
    holds no such thing."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
            prompts, settled = db.execute("SELECT count(*), count(settled) FROM asks").fetchone()
            return {**dict(db.execute("SELECT name, value FROM totals")), "prompts": prompts, "settled": settled}
    except sqlite3.Error:
        return None


def _sample(prompt_id: str, index: int, text: str, reasoning: str | None, finish: Finish, cut_off: int) -> Sample:
    return Sample(
        prompt_id=prompt_id, text=text, index=index, reasoning=reasoning, finish=finish, cut_off=bool(cut_off)
    )


def messages_of(body: str) -> tuple[Message, ...]:
    return tuple(Message.from_dict(turn) for turn in json.loads(body))


def _all(limit: int | None) -> int:
    return 1 << 62 if limit is None else limit
