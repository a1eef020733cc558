"""What a teacher is told before every prompt."""

from __future__ import annotations

from potstill.recipe.choices import ChoiceTeacher
from potstill.recipe.teacher import Teacher
from potstill.records import Message


def told_first(teacher: ChoiceTeacher | Teacher) -> tuple[Message, ...]:
    """Instructions and worked examples: what all conversations begin with."""
    told = [Message(role="system", content=teacher.instructions)] if teacher.instructions else []
    for shot in teacher.examples:
        told += [Message(role="user", content=shot.prompt), Message(role="assistant", content=shot.answer)]
    return tuple(told)
