"""A teacher for tests and dry runs: it looks the answer up, and costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

from potstill.engines.reply import read_openai
from potstill.engines.sampler import Ask, Failure, Reading
from potstill.errors import InputError


class CannedSampler:
    """`answer` maps the last user turn and the sample's seed to an answer, or to None: refused."""

    def __init__(self, answer: Callable[[str, int], str | None]) -> None:
        self._answer = answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def ask(self, ask: Ask) -> bytes:
        prompt = str(ask.messages[-1]["content"])
        texts = [self._answer(prompt, ask.seed + i) for i in range(ask.count)]
        if None in texts:
            raise Failure("refused", "there is no canned answer to this prompt")
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
        words = sum(len(str(text).split()) for text in texts)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": words}
        return json.dumps({"choices": choices, "usage": usage}, ensure_ascii=False).encode()

    def read(self, raw: bytes) -> Reading:
        return read_openai(raw)


def canned_from(path: Path) -> CannedSampler:
    """The answers of a JSONL file of {"prompt": ..., "answer": ...}; several lines with one prompt take turns."""
    answers: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other line separators may stand in a text
    except (OSError, UnicodeDecodeError):
        raise InputError(f"teacher.engine.answers: '{path}' cannot be read", way_out="give a JSONL file") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            answers.setdefault(str(row["prompt"]), []).append(str(row["answer"]))
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"teacher.engine.answers: '{path}', line {number}: not an object with 'prompt' and 'answer'",
                way_out="fix the line",
            ) from None

    def answer(prompt: str, seed: int) -> str | None:
        found = answers.get(prompt)
        return found[seed % len(found)] if found else None

    return CannedSampler(answer)
