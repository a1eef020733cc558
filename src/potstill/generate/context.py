"""What a teacher reads before every prompt."""

from __future__ import annotations

from potstill.recipe.teacher import Teacher
from potstill.records import Message


def context_of(teacher: Teacher) -> tuple[Message, ...]:
    """Instructions and worked examples: what all conversations begin with."""
    turns = [Message(role="system", content=teacher.instructions)] if teacher.instructions else []
    for shot in teacher.examples:
        turns += [Message(role="user", content=shot.prompt), Message(role="assistant", content=shot.answer)]
    return tuple(turns)
