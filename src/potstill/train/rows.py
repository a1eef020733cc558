"""Examples to training rows in the student's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from potstill.errors import InputError
from potstill.records import Example, Message, Tools
from potstill.text.tokens import Codec
from potstill.train.batch import Row


def example_rows(
    examples: Sequence[Example], codec: Codec, *, reasoning: bool, left_out: Counter[str] | None = None
) -> list[Row]:
    """Tokens of the student's own template. An example that spells a control token is left out, since it would
    teach the model to write one, and so is one with tools or calls that the template does not write; `left_out` counts
    them. Raises InputError where none is left, or none has the reasoning that is to be learnt."""
    return [row for row, _ in rows_and_examples(examples, codec, reasoning=reasoning, left_out=left_out)]


def rows_and_examples(
    examples: Sequence[Example], codec: Codec, *, reasoning: bool, left_out: Counter[str] | None = None
) -> list[tuple[Row, Example]]:
    """The same, each row with what it was made of."""
    if reasoning and examples and not any(example.messages[-1].reasoning_content for example in examples):
        raise InputError(
            "train.learn is 'reasoning and answer', but no kept answer has reasoning",
            way_out="let the teacher think, or learn the answers alone (train.learn: answer)",
        )
    rows: list[tuple[Row, Example]] = []
    left_out = Counter() if left_out is None else left_out
    for example in examples:
        *asked, said = example.messages
        turn = said if reasoning else replace(said, reasoning_content=None)
        if reason := objection([*asked, turn], example.tools, codec):
            left_out[reason] += 1
            continue
        prefix, target = codec.prefix(asked, tools=example.tools), codec.turn(asked, turn, tools=example.tools)
        rows.append((Row(prefix=prefix, target=target, weight=example.weight, prompt_id=example.prompt_id), example))
    if not rows:
        why = "".join(f"; {n:,} left out: {reason}" for reason, n in left_out.items())
        raise InputError(
            f"there is no answer to learn{why}", way_out="see `potstill verify` for what became of the answers"
        )
    return rows


def objection(messages: Sequence[Message], tools: Tools, codec: Codec) -> str | None:
    """Why a model whose template this is cannot learn a conversation, or None."""
    if codec.control_token(messages, tools=tools) is not None:
        return "it spells a control token"
    if what := codec.template.dropped(messages, tools):
        return f"the {codec.template.name} template does not write {what}"
    return None
