"""Examples to training rows in the student's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.records import Example
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
