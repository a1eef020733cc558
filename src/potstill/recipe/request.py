"""What generation needs to know, and no more: a recipe's own answers, a judge's, those of a rescue or of a test."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potstill.recipe.generate import Generate
from potstill.recipe.prompts import Source
from potstill.recipe.task import Probabilities, Task, Text
from potstill.recipe.teacher import Gguf, Local, Server, Teacher
from potstill.recipe.values import Seed, Values
from potstill.records import Split


class GenerationRequest(Values):
    """Whose answers to which prompts, how many, sampled how, for how much (`generate.budget`)."""

    prompts: Source
    teacher: Teacher
    generate: Generate
    seed: Seed
    task: Task = Text()
    splits: tuple[Split, ...] | None = Field(default=None, description="of the prompts; by default all that there are")


def probabilities_of(request: GenerationRequest) -> Probabilities | Literal["computed here"] | None:
    """How the teacher is asked for its distribution over the choices: as the recipe says, or in the first way that its
    engine has what is needed for. None where answers are texts."""
    task, engine = request.task, request.teacher.engine
    if isinstance(task, Text):
        return None
    if isinstance(engine, Local):
        return "computed here"
    if request.generate.n > 1:
        return "votes"
    if task.probabilities is not None:
        return task.probabilities
    match engine:
        case Server(form="openai", tokenizer=str()):
            return "prompt_logprobs"
        case Server(form="openai", template=str()) | Gguf(template=str()):
            return "completions"
        case Server(form="openai") | Gguf():
            return "top_logprobs"
        case _:
            return "votes"
