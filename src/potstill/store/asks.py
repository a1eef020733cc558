"""The prompts of the recipe as it is now, and the questions that they put to the teacher."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.errors import InputError
from potstill.records import Prompt, Split
from potstill.store.samples import FILTERED, IN_VAIN, PROMPT, Samples, Written, as_json, as_limit, as_prompt

_PAGE = 500

Settled = Literal["done", "gave up", "failed"]
"""done: as many answers as wanted · gave up: no more are to be had · failed: the next run tries again."""


class SameId(InputError):
    """Two different prompts have one id; `where` they stand, if that is known."""

    def __init__(self, prompt_id: str, where: str = "") -> None:
        self.prompt_id = prompt_id
        super().__init__(
            f"prompts.columns.id: the id '{prompt_id}' stands on two different prompts{where and f' ({where})'}",
            way_out="make ids unique, or leave 'id' out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A question that is not settled, with the prompts that ask it and everything already written for it. `key` names
    it, `seed_key` seeds its draws."""

    question: int
    key: bytes
    seed_key: bytes
    prompts: tuple[Prompt, ...]
    written: tuple[Written, ...]


def question_key(seed_key: bytes, weights: str | None) -> bytes:
    """The key of a question to a model in this process: its `weights` too, which no seed depends on. None: of a served
    one, whose name and revision are in `seed_key` already."""
    return seed_key if weights is None else hashlib.sha256(seed_key + weights.encode()).digest()[:16]


class Asks(Samples):
    """Which prompts there are, and which of them are settled."""

    def mark(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def put_mark(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def put_asks(self, asks: Iterable[tuple[Prompt, bytes]], *, weights: str | None = None) -> int:
        """Replace what is asked by (prompt, its seed key) rows; returns how many were duplicates of another: the same
        question and the same reference. Raises SameId. Prompts that differ in their reference alone share the answers.

        Questions and their answers stay: those that are asked again keep them. Call inside a transaction.
        """
        self._db.execute("DELETE FROM asks")
        position = duplicates = 0
        for prompt, seed_key in asks:
            question = self._question(prompt, question_key(seed_key, weights), seed_key)
            same = "SELECT 1 FROM asks WHERE question = ? AND reference IS ?"
            if self._db.execute(same, (question, prompt.reference)).fetchone():
                duplicates += 1
                continue
            row = (position, prompt.id, question, prompt.split, prompt.reference, prompt.any_of, prompt.grade)
            try:
                self._db.execute(
                    "INSERT INTO asks (position, prompt_id, question, split, reference, any_of, grade, tools) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, as_json(prompt.tools or None)),
                )
            except sqlite3.IntegrityError:
                raise SameId(prompt.id) from None
            position += 1
        return duplicates

    def _question(self, prompt: Prompt, key: bytes, seed_key: bytes) -> int:
        body = as_json([message.as_dict() for message in prompt.messages])
        self._db.execute(
            "INSERT OR IGNORE INTO questions (key, seed_key, messages) VALUES (?, ?, ?)", (key, seed_key, body)
        )
        return self._db.execute("SELECT id FROM questions WHERE key = ?", (key,)).fetchone()[0]

    def reopen(self, settled: Settled | None = None) -> None:
        """Look again at the prompts that were settled so, or at all of them: what is wanted may have changed."""
        self._db.execute("UPDATE asks SET settled = NULL WHERE settled = coalesce(?, settled)", (settled,))

    def begin(self, wire: str) -> bool:
        """Requests from here on are sent as `wire` says. What was given up when they were sent otherwise is open again;
        not so what the provider filtered, which is paid for. Returns whether a request sent so was ever answered. Call
        inside a transaction."""
        if self._db.execute("SELECT wire FROM wires ORDER BY attempt DESC LIMIT 1").fetchone() != (wire,):
            first = "SELECT coalesce(max(id), 0) + 1, ? FROM attempts"
            self._db.execute(f"INSERT OR REPLACE INTO wires {first}", (wire,))
        sent_as = "coalesce((SELECT wire FROM wires w WHERE w.attempt <= {} ORDER BY w.attempt DESC LIMIT 1), '')"
        self._db.execute(
            f"UPDATE answers SET given_up = '{IN_VAIN}' || given_up WHERE given_up IS NOT NULL AND given_up != ? AND "
            f"given_up NOT LIKE '{IN_VAIN}%' AND {sent_as.format('answers.attempt')} != ? "
            "AND question IN (SELECT question FROM asks)",
            (FILTERED, wire),
        )
        self._db.execute(
            "UPDATE asks SET settled = NULL WHERE settled = 'gave up' AND question IN "
            f"(SELECT question FROM answers WHERE given_up IS NOT NULL AND given_up LIKE '{IN_VAIN}%')"
        )
        found = self._db.execute(
            f"SELECT EXISTS (SELECT 1 FROM attempts WHERE state = 'read' AND {sent_as.format('attempts.id')} = ?)",
            (wire,),
        )
        return bool(found.fetchone()[0])

    def count_asks(self, *, limit: int | None = None, settled: bool = False) -> int:
        where = "WHERE position < ?" + (" AND settled IS NOT NULL" if settled else "")
        row = self._db.execute(f"SELECT count(*) FROM asks {where}", (as_limit(limit),)).fetchone()
        return int(row[0])

    def count_splits(self) -> dict[Split, int]:
        """How many prompts train, validate and test."""
        return dict(self._db.execute("SELECT split, count(*) FROM asks GROUP BY split"))

    def prompt_ids(self) -> list[str]:
        """Every prompt as they are now, in order."""
        return [row[0] for row in self._db.execute("SELECT prompt_id FROM asks ORDER BY position")]

    def open_asks(self, *, limit: int | None = None) -> Iterator[Open]:
        """Every question that is not settled, once, in the order of the first prompt that asks it; read a page at a
        time, so writing in between is fine."""
        after = -1
        while rows := self._db.execute(
            "SELECT position, question, key, seed_key FROM asks k JOIN questions q ON q.id = question "
            "WHERE settled IS NULL AND position > ? AND position < ? AND NOT EXISTS "
            "(SELECT 1 FROM asks WHERE question = k.question AND position < k.position) ORDER BY position LIMIT ?",
            (after, as_limit(limit), _PAGE),
        ).fetchall():
            after = rows[-1][0]
            questions = [row[1] for row in rows]
            written, prompts = self._written(questions), self._prompts_of(questions, limit)
            for _, question, key, seed_key in rows:
                yield Open(
                    question=question,
                    key=key,
                    seed_key=seed_key,
                    prompts=tuple(prompts[question]),
                    written=tuple(written.get(question, ())),
                )

    def first_answers(self) -> Iterator[tuple[int, Prompt, bool]]:
        """Every question once, in the order of the first prompt that asks it: its number, that prompt, and whether its
        first answer is there."""
        rows = self._db.execute(
            f"SELECT question, EXISTS (SELECT 1 FROM answers a WHERE a.question = k.question AND sample = 0 "
            f"AND given_up IS NULL), {PROMPT} FROM asks k JOIN questions q ON q.id = question WHERE NOT EXISTS "
            "(SELECT 1 FROM asks WHERE question = k.question AND position < k.position) ORDER BY position"
        )
        return ((question, as_prompt(*prompt), bool(there)) for question, there, *prompt in rows)

    def _prompts_of(self, questions: Sequence[int], limit: int | None) -> dict[int, list[Prompt]]:
        """Who asks each of these questions."""
        found: dict[int, list[Prompt]] = {}
        rows = self._db.execute(
            f"SELECT question, {PROMPT} FROM asks "
            f"JOIN questions q ON q.id = question WHERE question IN ({','.join('?' * len(questions))}) "
            "AND position < ? ORDER BY position",
            (*questions, as_limit(limit)),
        )
        for question, *prompt in rows:
            found.setdefault(question, []).append(as_prompt(*prompt))
        return found

    def settle_answered(self, n: int, *, at_least: int | None) -> None:
        """Settle every prompt that has its first `n` answers, in one statement: a million take seconds. An answer that
        was cut off counts where it had `at_least` so many tokens (None: never)."""
        self._db.execute(
            "UPDATE asks SET settled = 'done' WHERE settled IS NULL AND ? <= (SELECT count(*) FROM answers a "
            "WHERE a.question = asks.question AND a.sample < ? AND a.given_up IS NULL "
            "AND (NOT a.cut_off OR a.max_tokens >= ?))",
            (n, n, as_limit(at_least)),
        )

    def settle(self, question: int, why: Settled) -> None:
        """Nothing more is wanted of this question. Call inside a transaction."""
        self._db.execute("UPDATE asks SET settled = ? WHERE question = ?", (why, question))

    def settled_by_reason(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT settled, count(*) FROM asks WHERE settled IS NOT NULL GROUP BY settled"))
