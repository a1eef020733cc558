"""The ledger: every prompt, sample, verdict, prediction and measurement of a run, in one SQLite file.

WAL mode, one writer, one transaction per finished batch: a killed run loses at most the batch in flight. Samples are
keyed by their content (model, prompt tokens, choices), so they survive any change of the stages behind them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.records import Message, Prompt, Sample, Stage, Verdict
from potstill.store.database import connect, transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counts (stage TEXT, reason TEXT, n INTEGER NOT NULL, PRIMARY KEY (stage, reason));
CREATE TABLE IF NOT EXISTS samples (
    key TEXT NOT NULL, sample INTEGER NOT NULL, prompt_id TEXT NOT NULL, text TEXT NOT NULL, choice_logp TEXT,
    PRIMARY KEY (key, sample));
CREATE TABLE IF NOT EXISTS batches (
    arm TEXT NOT NULL, batch INTEGER NOT NULL, prompts INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (arm, batch));
CREATE TABLE IF NOT EXISTS verdicts (
    prompt_id TEXT NOT NULL, sample INTEGER NOT NULL, accepted INTEGER NOT NULL, reason TEXT NOT NULL,
    answer TEXT NOT NULL, choice_p TEXT NOT NULL, PRIMARY KEY (prompt_id, sample));
CREATE TABLE IF NOT EXISTS predictions (
    arm TEXT NOT NULL, prompt_id TEXT NOT NULL, choice_logp TEXT NOT NULL, PRIMARY KEY (arm, prompt_id));
CREATE TABLE IF NOT EXISTS measured (
    arm TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (arm, name));
CREATE TABLE IF NOT EXISTS stages (
    name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Timing:
    """Prompts, tokens and seconds of an arm's forward passes, summed over its batches."""

    prompts: int
    tokens: int
    seconds: float


class Ledger:
    """Open with `with Ledger(path) as ledger`."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path, _SCHEMA)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing."""
        return transaction(self._db)

    # stages

    def finished(self, stage: str) -> str | None:
        """The fingerprint under which the stage finished, or None."""
        row = self._db.execute("SELECT fingerprint FROM stages WHERE name = ?", (stage,)).fetchone()
        return row[0] if row else None

    def finish(self, stage: str, fingerprint: str, seconds: float) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?)",
            (stage, fingerprint, seconds, time.time()),
        )

    def forget(self, stage: str) -> None:
        self._db.execute("DELETE FROM stages WHERE name = ?", (stage,))

    def stage_seconds(self) -> dict[str, float]:
        return dict(self._db.execute("SELECT name, seconds FROM stages ORDER BY finished"))

    # prompts and counts

    def put_prompts(self, prompts: Sequence[Prompt], left_out: Mapping[str, int]) -> None:
        """Replace the prompts of the run."""
        with self.transaction():
            self._db.execute("DELETE FROM prompts")
            self._db.executemany(
                "INSERT INTO prompts VALUES (?, ?, ?)",
                ((i, p.id, json.dumps(_prompt_body(p), ensure_ascii=False)) for i, p in enumerate(prompts)),
            )
            self._put_counts("prompts", left_out)

    def prompts(self) -> list[Prompt]:
        rows = self._db.execute("SELECT id, body FROM prompts ORDER BY position")
        return [_prompt(prompt_id, json.loads(body)) for prompt_id, body in rows]

    def counts(self, stage: Stage) -> dict[str, int]:
        """How many were left out, by reason."""
        return dict(self._db.execute("SELECT reason, n FROM counts WHERE stage = ? ORDER BY n DESC, reason", (stage,)))

    def _put_counts(self, stage: Stage, counts: Mapping[str, int]) -> None:
        self._db.execute("DELETE FROM counts WHERE stage = ?", (stage,))
        self._db.executemany("INSERT INTO counts VALUES (?, ?, ?)", ((stage, r, n) for r, n in counts.items()))

    # samples

    def put_samples(self, keyed: Iterable[tuple[str, Sample]], *, arm: str, batch: int, timing: Timing) -> None:
        """One finished batch: its samples and what they took, in one transaction."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)",
                ((key, s.index, s.prompt_id, s.text, _floats(s.choice_logp)) for key, s in keyed),
            )
            self.put_timing(arm, batch, timing)

    def sample_keys(self) -> set[str]:
        """Every key that has an answer."""
        return {row[0] for row in self._db.execute("SELECT key FROM samples WHERE sample = 0")}

    def samples(self) -> dict[str, Sample]:
        """The first sample of every prompt that has one, by prompt id."""
        rows = self._db.execute("SELECT prompt_id, text, choice_logp FROM samples WHERE sample = 0")
        return {
            prompt_id: Sample(
                prompt_id=prompt_id,
                text=text,
                choice_logp=tuple(json.loads(logp)) if logp else None,
            )
            for prompt_id, text, logp in rows
        }

    # verdicts

    def put_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Replace all verdicts: checks are free to run again."""
        with self.transaction():
            self._db.execute("DELETE FROM verdicts")
            self._db.executemany(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?)",
                ((v.prompt_id, v.index, v.accepted, v.reason, v.answer, _floats(v.choice_p)) for v in verdicts),
            )

    def verdicts(self) -> dict[str, Verdict]:
        rows = self._db.execute("SELECT prompt_id, sample, accepted, reason, answer, choice_p FROM verdicts")
        return {
            row[0]: Verdict(
                prompt_id=row[0],
                index=row[1],
                accepted=bool(row[2]),
                reason=row[3],
                answer=row[4],
                choice_p=tuple(json.loads(row[5])),
            )
            for row in rows
        }

    # predictions and measurements

    def put_predictions(self, arm: str, logp: Mapping[str, Sequence[float]], measured: Mapping[str, float]) -> None:
        """An arm's answers to the test prompts and what was measured on the way, replacing earlier ones."""
        with self.transaction():
            self.drop_arm(arm)
            self._db.executemany(
                "INSERT INTO predictions VALUES (?, ?, ?)",
                ((arm, i, _floats(v)) for i, v in logp.items()),
            )
            self._db.executemany("INSERT INTO measured VALUES (?, ?, ?)", ((arm, n, v) for n, v in measured.items()))

    def drop_arm(self, arm: str) -> None:
        self._db.execute("DELETE FROM predictions WHERE arm = ?", (arm,))
        self._db.execute("DELETE FROM measured WHERE arm = ?", (arm,))

    def predictions(self, arm: str) -> dict[str, tuple[float, ...]]:
        rows = self._db.execute("SELECT prompt_id, choice_logp FROM predictions WHERE arm = ?", (arm,))
        return {prompt_id: tuple(json.loads(logp)) for prompt_id, logp in rows}

    def measured(self, arm: str) -> dict[str, float]:
        return dict(self._db.execute("SELECT name, value FROM measured WHERE arm = ?", (arm,)))

    def put_timing(self, arm: str, batch: int, timing: Timing) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?)",
            (arm, batch, timing.prompts, timing.tokens, timing.seconds),
        )

    def timing(self, arm: str) -> Timing:
        row = self._db.execute(
            "SELECT coalesce(sum(prompts), 0), coalesce(sum(tokens), 0), coalesce(sum(seconds), 0.0) "
            "FROM batches WHERE arm = ?",
            (arm,),
        ).fetchone()
        return Timing(*row)


def _prompt_body(prompt: Prompt) -> dict[str, Any]:
    body = asdict(prompt)
    del body["id"]
    return body


def _prompt(prompt_id: str, body: dict[str, Any]) -> Prompt:
    messages = tuple(Message.from_dict(turn) for turn in body.pop("messages"))
    return Prompt(id=prompt_id, messages=messages, tools=tuple(body.pop("tools")), **body)


def _floats(values: Sequence[float] | None) -> str | None:
    return None if values is None else json.dumps([float(v) for v in values])
