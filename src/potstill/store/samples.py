"""The ledger of prompts, requests and answers, as it is read: the tables, and the answers in them.

questions   what is asked of whom, once, under a key of its content; `seed_key` seeds the draws
asks        the prompts of the recipe as it is now, in their order, each with its question; several may share one
attempts    every request: written before it is sent, with its worst price; its raw reply before it is read
answers     what was read, one row per answer, or why it was given up
wires       what every request says beside its prompt, from which attempt on
totals      running sums, so that nobody scans a million replies to know what was spent

Money is counted in picodollars (1e-12 US dollars), so that sums are exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.records import Finish, Message, Prompt, Sample, Split, ToolCalls
from potstill.store.database import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, seed_key BLOB NOT NULL, messages TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS asks (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, question INTEGER NOT NULL, settled TEXT,
    split TEXT NOT NULL DEFAULT 'train', reference TEXT, any_of INTEGER NOT NULL, grade REAL, tools TEXT);
CREATE INDEX IF NOT EXISTS open_asks ON asks (position) WHERE settled IS NULL;
CREATE INDEX IF NOT EXISTS asks_of_a_question ON asks (question);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, question INTEGER NOT NULL, sample INTEGER NOT NULL, samples INTEGER NOT NULL,
    max_tokens INTEGER NOT NULL, sent REAL NOT NULL, worst INTEGER NOT NULL, state TEXT NOT NULL, failure TEXT,
    status INTEGER, seconds REAL, prompt_tokens INTEGER, completion_tokens INTEGER, cost INTEGER, raw BLOB);
CREATE INDEX IF NOT EXISTS open_attempts ON attempts (id) WHERE state IN ('sent', 'replied');
CREATE TABLE IF NOT EXISTS answers (
    question INTEGER NOT NULL, sample INTEGER NOT NULL, attempt INTEGER NOT NULL, text TEXT, reasoning TEXT,
    tool_calls TEXT, choice_logprobs TEXT, finish TEXT, cut_off INTEGER NOT NULL, max_tokens INTEGER NOT NULL,
    given_up TEXT, PRIMARY KEY (question, sample));
CREATE INDEX IF NOT EXISTS given_up_answers ON answers (question) WHERE given_up IS NOT NULL;
CREATE TABLE IF NOT EXISTS wires (attempt INTEGER PRIMARY KEY, wire TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
IN_VAIN = "tried in vain: "
"""How a `given_up` begins that is not final: the next run asks again."""
FILTERED = "filtered by the provider"
PROMPT = "prompt_id, split, messages, tools, reference, any_of, grade"
_ANSWER = "sample, text, reasoning, tool_calls, choice_logprobs, finish, cut_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One answer, or why there is none."""

    question: int
    sample: int
    attempt: int
    max_tokens: int
    text: str | None = None
    reasoning: str | None = None
    tool_calls: ToolCalls = ()
    choice_logprobs: tuple[float, ...] | None = None
    finish: Finish = "unknown"
    cut_off: bool = False
    given_up: str | None = None


class Samples(Database):
    """The answers of a ledger. One process writes; the run folder's lock sees to that."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    def put_written(self, rows: Iterable[Written]) -> None:
        """Store answers and give-ups, an answer in place of an earlier give-up. Call inside a transaction."""
        self._db.executemany(
            "INSERT OR REPLACE INTO answers (question, sample, attempt, text, reasoning, tool_calls, choice_logprobs, "
            "finish, cut_off, max_tokens, given_up) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            map(_row, rows),
        )

    def samples(
        self,
        *,
        most: int | None = None,
        of: Sequence[str] | None = None,
        split: Split | None = None,
        once: bool = False,
    ) -> Iterator[tuple[Prompt, Sample]]:
        """The first `most` answers (default all) to every prompt as they are now (or to those `of` these few ids, or of
        one split), by prompt and index. `once`: of the prompts that share a question to the first alone."""
        some = "" if of is None else f"AND prompt_id IN ({','.join('?' * len(of))}) "
        if once:
            some += "AND NOT EXISTS (SELECT 1 FROM asks WHERE question = k.question AND position < k.position) "
        rows = self._db.execute(
            f"SELECT {_ANSWER}, {PROMPT} FROM asks k JOIN questions q ON q.id = k.question "
            "JOIN answers a ON a.question = q.id "
            f"WHERE given_up IS NULL AND sample < ? AND split = coalesce(?, split) {some}ORDER BY position, sample",
            (as_limit(most), split, *(of or ())),
        )
        prompt = None
        columns = len(_ANSWER.split(","))
        for row in rows:
            if prompt is None or prompt.id != row[columns]:
                prompt = as_prompt(*row[columns:])
            yield prompt, _sample(prompt.id, *row[:columns])

    def samples_of(self, key: bytes, prompt_id: str, *, most: int) -> Iterator[Sample]:
        """The first `most` answers to one question, whether or not it is asked now."""
        rows = self._db.execute(
            f"SELECT {_ANSWER} FROM questions q JOIN answers a ON a.question = q.id "
            "WHERE key = ? AND given_up IS NULL AND sample < ? ORDER BY sample",
            (key, most),
        )
        return (_sample(prompt_id, *row) for row in rows)

    def first_answer(self, prompt_id: str) -> Sample | None:
        """The first answer to one prompt, if there is one."""
        return next((sample for _, sample in self.samples(most=1, of=[prompt_id])), None)

    def prompts(self) -> Iterator[Prompt]:
        """Every prompt as they are now, in order."""
        rows = self._db.execute(f"SELECT {PROMPT} FROM asks k JOIN questions q ON q.id = k.question ORDER BY position")
        return (as_prompt(*row) for row in rows)

    def unanswered(self, *, most: int, cut_off: bool, split: Split | None = None) -> Iterator[Prompt]:
        """Every prompt (of one split) that was asked and has none of its first `most` answers, in order; `cut_off` says
        whether one that was cut off counts."""
        rows = self._db.execute(
            f"SELECT {PROMPT} FROM asks k JOIN questions q ON q.id = k.question WHERE split = coalesce(?, split) "
            "AND EXISTS (SELECT 1 FROM answers WHERE question = q.id AND sample < ?) AND NOT EXISTS (SELECT 1 "
            "FROM answers WHERE question = q.id AND sample < ? AND given_up IS NULL AND (? OR NOT cut_off)) "
            "ORDER BY position",
            (split, most, most, cut_off),
        )
        return (as_prompt(*row) for row in rows)

    def count_answers(self, *, most: int, split: Split | None = None) -> int:
        """How many of the first `most` answers per prompt (of one split) are there."""
        return self._count("given_up IS NULL", most, split)

    def count_cut_off(self, *, most: int, split: Split | None = None) -> int:
        """How many of the first `most` answers per prompt (of one split) did not come to their end."""
        return self._count("given_up IS NULL AND cut_off", most, split)

    def _count(self, which: str, most: int, split: Split | None) -> int:
        row = self._db.execute(
            f"SELECT count(*) FROM asks k JOIN answers a ON a.question = k.question WHERE {which} AND sample < ? "
            "AND split = coalesce(?, split)",
            (most, split),
        ).fetchone()
        return int(row[0])

    def state(self) -> str:
        """Changes with every answer that is added or replaced."""
        row = self._db.execute("SELECT count(*), coalesce(max(attempt), 0), count(given_up) FROM answers").fetchone()
        return repr(tuple(row))

    def lost_answers(self, *, most: int) -> dict[str, int]:
        """How many of the first `most` answers per prompt were given up, by reason."""
        rows = self._db.execute(
            "SELECT given_up, count(*) FROM asks k JOIN answers a ON a.question = k.question "
            "WHERE given_up IS NOT NULL AND sample < ? GROUP BY given_up",
            (most,),
        )
        return dict(rows)

    def written_with(self, mark: str) -> list[Written]:
        """The answers without reasoning in whose text the mark stands."""
        rows = self._db.execute(
            "SELECT DISTINCT question FROM answers WHERE reasoning IS NULL AND instr(text, ?)", (mark,)
        ).fetchall()
        found = (self._written([question])[question] for (question,) in rows)
        return [row for group in found for row in group if row.reasoning is None and mark in (row.text or "")]

    def _written(self, questions: Sequence[int]) -> dict[int, list[Written]]:
        """Everything written for each of these questions, answers and give-ups."""
        found: dict[int, list[Written]] = {}
        rows = self._db.execute(
            f"SELECT question, attempt, max_tokens, given_up, {_ANSWER} FROM answers "
            f"WHERE question IN ({','.join('?' * len(questions))}) ORDER BY question, sample",
            questions,
        )
        for question, attempt, max_tokens, given_up, sample, *answer in rows:
            one = {"question": question, "sample": sample, "attempt": attempt, "max_tokens": max_tokens}
            found.setdefault(question, []).append(Written(**one, **_said(*answer), given_up=given_up))
        return found


def as_prompt(*row: Any) -> Prompt:
    """Of the columns `PROMPT`."""
    prompt_id, split, messages, tools, reference, any_of, grade = row
    return Prompt(
        id=prompt_id,
        split=split,
        messages=tuple(Message.from_dict(turn) for turn in json.loads(messages)),
        tools=_tuple(tools) or (),
        reference=reference,
        any_of=bool(any_of),
        grade=grade,
    )


def _row(w: Written) -> tuple[object, ...]:
    said = (w.text, w.reasoning, as_json(w.tool_calls or None), as_json(w.choice_logprobs), w.finish, w.cut_off)
    return (w.question, w.sample, w.attempt, *said, w.max_tokens, w.given_up)


def _sample(prompt_id: str, index: int, *answer: Any) -> Sample:
    return Sample(prompt_id=prompt_id, index=index, **_said(*answer))


def _said(text: str, reasoning: str | None, calls: str | None, logprobs: str | None, *end: Any) -> dict[str, Any]:
    """What an answer and a row of the ledger have in common."""
    finish, cut_off = end
    return {
        "text": text,
        "reasoning": reasoning,
        "tool_calls": _tuple(calls) or (),
        "choice_logprobs": _tuple(logprobs),
        "finish": finish,
        "cut_off": bool(cut_off),
    }


def as_json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _tuple(body: str | None) -> tuple[Any, ...] | None:
    return None if body is None else tuple(json.loads(body))


def as_limit(limit: int | None) -> int:
    return 1 << 62 if limit is None else limit
