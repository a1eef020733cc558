"""Examples to training rows in the student's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from potstill.errors import InputError
from potstill.records import Example, Message
from potstill.text.tokens import Codec
from potstill.train.batch import Row


def training_rows(examples: Sequence[Example], codec: Codec, choices: Sequence[str]) -> list[Row]:
    """The student's own template: what only the teacher was told (instructions, worked examples) is not in it."""
    targets = {choice: (*codec.answer(choice), codec.end_of_turn(choice)) for choice in choices}
    return [
        Row(
            prefix=codec.prefix(example.messages),
            target=targets[example.answer],
            teacher_logp=tuple(np.log(np.maximum(example.choice_p, 1e-12)).tolist()),
        )
        for example in examples
    ]


Weighted = tuple[Sequence[Message], float]
"""A conversation and how much its answer counts."""


def conversation_rows(conversations: Sequence[Weighted], codec: Codec, *, reasoning: bool) -> list[Row]:
    """Tokens of the student's own template. A conversation that spells a control token is left out: it would teach the
    model to write one. Raises InputError where none is left, or none has the reasoning that is to be learnt."""
    return [row for row, _ in rows_and_questions(conversations, codec, reasoning=reasoning)]


def rows_and_questions(
    conversations: Sequence[Weighted], codec: Codec, *, reasoning: bool
) -> list[tuple[Row, Sequence[Message]]]:
    """With what was asked, as messages."""
    if reasoning and conversations and not any(said.reasoning_content for (*_, said), _ in conversations):
        raise InputError(
            "train.learn is 'reasoning and answer', but no kept answer has reasoning",
            way_out="let the teacher think, or learn the answers alone (train.learn: answer)",
        )
    rows: list[tuple[Row, Sequence[Message]]] = []
    for (*asked, said), weight in conversations:
        turn = said if reasoning else replace(said, reasoning_content=None)
        if codec.control_token([*asked, turn]) is None:
            row = Row(prefix=codec.prefix(asked), target=codec.turn(asked, turn), weight=weight)
            rows.append((row, asked))
    if not rows:
        raise InputError("there is no answer to learn", way_out="see `potstill verify` for what became of them")
    return rows
