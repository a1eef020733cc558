"""What `select.prefer: learnable` asks: how surprising the student finds an answer before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from potstill.engines.likelihood import mean_nats
from potstill.errors import InputError
from potstill.models.load import device
from potstill.models.precision import precision
from potstill.recipe import Recipe
from potstill.recipe.student import Student
from potstill.records import Message, Prompt, Sample
from potstill.text.tokens import Ids
from potstill.train.initial import initial_student
from potstill.verify.stage import Nats


def student_nats(recipe: Recipe) -> Nats:
    """Mean nats per token of each answer (its reasoning too where that is learnt) and of the end of the turn, in the
    student's own template; None for what that cannot write."""
    assert isinstance(recipe.student, Student)
    with precision(recipe.train.precision):
        start = initial_student(recipe.student, seed=recipe.seed)
    model, codec = start.model.to(device()), start.codec  # pyright: ignore[reportArgumentType]
    reasoning = recipe.train.learn == "reasoning and answer"

    def nats(answers: Sequence[tuple[Prompt, Sample]]) -> list[float | None]:
        found: list[float | None] = [None] * len(answers)
        rows: list[tuple[int, Ids, Ids]] = []
        for at, (prompt, sample) in enumerate(answers):
            thought = sample.reasoning if reasoning else None
            said = Message(role="assistant", content=sample.text, reasoning_content=thought)
            with suppress(InputError):
                rows.append((at, *codec.example(prompt.messages, said, tools=prompt.tools)))
        scored = mean_nats(model, [(prefix, target) for _, prefix, target in rows])
        for (at, _, _), value in zip(rows, scored, strict=True):
            found[at] = value
        return found

    return nats
