"""Whether the models of this process have room for the prompts: embeddings for every token, a position for each, known
from their headers and tokenizers before anybody is paid. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from potstill.errors import InputError
from potstill.generate.context import context_of
from potstill.models.config import positions_of, text_config
from potstill.models.locate import hub_snapshot, locate, read_json, rows_of
from potstill.models.templates import template_of
from potstill.recipe import Recipe, arms_of
from potstill.recipe.student import Student
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Local
from potstill.records import Message, Prompt
from potstill.text.tokens import Codec, load_tokenizer

_MARKS = 512  # tokens that a template writes around the messages, at the very most


@dataclass(frozen=True)
class Reader:
    """A model on this machine, by its key in the recipe, and what it reads before every prompt."""

    key: str
    name: str
    folder: Path
    template: str | None
    before: tuple[Message, ...] = ()

    @staticmethod
    def of(
        key: str, name: str, revision: str | None, template: str | None, before: tuple[Message, ...] = ()
    ) -> Reader | None:
        """None where its files are not here, or are not those of a folder."""
        located = locate(name)
        folder = hub_snapshot(name, revision) if located.form == "hub" else located.path
        if folder is None or not all((folder / file).is_file() for file in ("config.json", "tokenizer.json")):
            return None
        return Reader(key, name, folder, template, before)

    @cached_property
    def positions(self) -> int | None:
        return positions_of(text_config(read_json(self.folder / "config.json")))

    @cached_property
    def tokens_without_row(self) -> bool:
        """Whether its tokenizer has any; few models use them."""
        rows = rows_of(self.folder)
        return rows is not None and _greatest_id(self.folder / "tokenizer.json") >= rows

    @cached_property
    def codec(self) -> Codec:
        template = template_of(self.folder, self.template, name=self.key.partition(".")[0])
        return Codec(load_tokenizer(self.folder), template, rows=rows_of(self.folder))

    def require_template(self) -> None:
        """Raises InputError where its template writes a token that its embeddings have no row for."""
        if self.tokens_without_row:
            asked, said = Message(role="user", content="x"), Message(role="assistant", content="x")
            self.codec.prefix((asked,))
            self.codec.conversation((asked, said))

    def require_room(self, prompts: Sequence[Prompt], written: int, *, by: str) -> None:
        """Raises InputError for a prompt after which it cannot write so many tokens, as the recipe says `by`."""
        for prompt in prompts:
            messages = (*self.before, *prompt.messages)
            size = sum(len(repr(part).encode()) for part in (*(m.as_dict() for m in messages), *prompt.tools))
            long = self.positions is not None and size + _MARKS + written > self.positions
            if not (long or self.tokens_without_row):
                continue
            tokens = len(self.codec.prefix(messages, tools=prompt.tools))
            if self.positions is not None and tokens + written > self.positions:
                raise InputError(
                    f"the prompt '{prompt.id}' is too long: it has {tokens:,} tokens, and {written:,} may be written "
                    f"({by}), but {self.key} '{self.name}' has {self.positions:,} positions",
                    way_out="leave it out, write fewer tokens, or take a model with more positions",
                )


def require_room(recipe: Recipe, asked: Sequence[Prompt], tested: Sequence[Prompt]) -> None:
    """Of `asked` prompts those that are learnt, and of `tested` those that the arms answer. Raises InputError."""
    of_test = 1 if isinstance(recipe.task, Choice) or recipe.evaluate is None else recipe.evaluate.max_tokens
    for reader, written, by in _readers(recipe):
        reader.require_room(asked, written, by=by)
        if reader.key != "train.scored_by":
            reader.require_room(tested, of_test, by="evaluate.max_tokens" if of_test > 1 else "its answer")


def _readers(recipe: Recipe) -> Iterator[tuple[Reader, int, str]]:
    """With the tokens that each may write, or has to read, after a prompt."""
    teacher, scorer = recipe.teacher, recipe.scored_by
    if isinstance(teacher.engine, Local):
        choice = isinstance(recipe.task, Choice)
        written = 1 if choice else recipe.generate.max_tokens
        reader = Reader.of(
            "teacher.model", teacher.model, teacher.revision, teacher.engine.template, context_of(teacher)
        )
        if reader is not None:
            yield reader, written, "its answer" if choice else "generate.max_tokens"
    if scorer is not None and scorer.engine is None:
        reader = Reader.of("train.scored_by", scorer.model, scorer.revision, scorer.template, context_of(teacher))
        if reader is not None:
            yield reader, 1, "an answer"
    for arm in arms_of(recipe):
        if isinstance(arm.student, Student) and (reader := reader_of_student(arm.student)) is not None:
            own = arm.recipe.train.on_policy
            yield reader, own.max_tokens if own else 1, "train.on_policy.max_tokens" if own else "an answer"


def reader_of_student(student: Student) -> Reader | None:
    return Reader.of("student.start", student.start, student.revision, student.template)


@lru_cache(8)
def _greatest_id(file: Path) -> int:
    """Of all tokens. To have them from the tokenizer itself takes three times as long."""
    whole = read_json(file)
    vocabulary = whole["model"]["vocab"]
    known = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max((*known, *(token["id"] for token in whole.get("added_tokens", ()))), default=-1)
