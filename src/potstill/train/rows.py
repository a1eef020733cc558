"""Examples to training rows in the student's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from potstill.errors import InputError
from potstill.records import Example
from potstill.text.tokens import Codec
from potstill.train.batch import Row


def example_rows(
    examples: Sequence[Example], codec: Codec, *, reasoning: bool, left_out: Counter[str] | None = None
) -> list[Row]:
    """Tokens of the student's own template. An example that cannot be learnt as it is, see `Codec.example`, is left
    out; `left_out` counts them by what speaks against them. Raises InputError where none is left, where none has the
    reasoning that is to be learnt, and for a template that ends no turn."""
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
    codec.end_of_turn("x")  # without one, no row could be learnt
    rows: list[tuple[Row, Example]] = []
    left_out = Counter() if left_out is None else left_out
    for example in examples:
        *asked, said = example.messages
        turn = said if reasoning else replace(said, reasoning_content=None)
        try:
            prefix, target = codec.example(asked, turn, tools=example.tools)
        except InputError as why:
            left_out[why.problem] += 1
            continue
        rows.append((Row(prefix=prefix, target=target, weight=example.weight, prompt_id=example.prompt_id), example))
    require_some(rows, left_out)
    return rows


def require_some(rows: Sequence[object], left_out: Counter[str]) -> None:
    """Raises InputError where all examples were left out."""
    if not rows:
        why = "".join(f"; {n:,} left out: {reason}" for reason, n in left_out.items())
        raise InputError(
            f"there is no answer to learn{why}", way_out="see `potstill verify` for what became of the answers"
        )
