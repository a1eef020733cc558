"""`potstill chat`: ask the student of a run, from its model folder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from potstill.errors import InputError
from potstill.evaluate.answers import write_answers
from potstill.records import Message, Prompt


def answerer(model: Path) -> Callable[[str], str]:
    """Text in, the student's answer out."""
    if not (model / "config.json").is_file():
        raise InputError(
            f"there is no student at '{model}' yet",
            way_out="finish the run first: potstill run RECIPE",
        )

    def answer(text: str) -> str:
        prompt = Prompt(id="chat", split="test", messages=(Message(role="user", content=text),))
        return write_answers(model, [prompt])[0][0]

    return answer
