"""Data recipes against the loopback teacher, as tests write and read them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def write_prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"what of film {i}?"}) + "\n" for i in range(count)))
    return path


def write_recipe(
    folder: Path, url: str, *, prompts: int, engine: Mapping[str, Any] | None = None, **generate: Any
) -> Path:
    """A recipe for `prompts` prompts and the teacher at `url`; returns its path."""
    recipe = {
        "name": "data",
        "prompts": {"source": str(write_prompts(folder, prompts)), "licence": "mit", "columns": {"text": "text"}},
        "teacher": {
            "model": "loopback",
            "licence": "apache-2.0",
            "engine": {"kind": "server", "url": url, "retry_seconds": 0.02, "deadline": 5.0, **(engine or {})},
        },
        "generate": generate or {"n": 1},
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


def command(recipe: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "potstill", "generate", str(recipe), "--run", str(run), *more]


def generate(recipe: Path, run: Path, *more: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(recipe, run, *more), capture_output=True, text=True, check=False, **how)


def exported(run: Path) -> bytes:
    return (run / "examples" / "answers.parquet").read_bytes()


def query(run: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(run / "ledger.sqlite") as db:
        return db.execute(sql).fetchall()


def attempts_by_identity(run: Path) -> dict[str, list[str]]:
    """State of every attempt, by the idempotency key under which the server saw it."""
    found: dict[str, list[str]] = {}
    rows = query(
        run,
        "SELECT lower(hex(key)) || '-' || sample || '-' || max_tokens, state FROM attempts "
        "JOIN questions q ON q.id = question ORDER BY attempts.id",
    )
    for identity, state in rows:
        found.setdefault(identity, []).append(state)
    return found
