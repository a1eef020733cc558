"""Token ids of prompts and answers.

The prefix (everything up to the answer) and the answer are tokenised apart and joined, so the training prefix equals
`apply_chat_template(messages, add_generation_prompt=True)` token for token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from potstill.errors import InputError
from potstill.records import Message, Tools
from potstill.text.template import Template, Written

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Codec:
    """A tokenizer and a template: what one model reads and writes, and how many `rows` its embeddings have, where that
    is known."""

    tokenizer: Tokenizer
    template: Template
    rows: int | None = None

    @property
    def vocabulary(self) -> int:
        """One more than the greatest id that stands for something; heads are often padded beyond it."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def prefix(self, messages: Sequence[Message], *, tools: Tools = ()) -> Ids:
        """Ids of the rendered messages with the generation prompt."""
        return self.encode(self.template.render(messages, tools=tools, add_generation_prompt=True))

    def question(self, messages: Sequence[Message], *, tools: Tools = ()) -> Ids:
        """The same, where the messages can be read as they are; raises InputError where not, saying why: they spell a
        control token, which would be obeyed, or the template does not write all of them."""
        self._require_readable(messages, tools)
        return self.prefix(messages, tools=tools)

    def conversation(self, messages: Sequence[Message], *, tools: Tools = ()) -> Ids:
        """Ids of the finished conversation, without a generation prompt. Raises InputError as `question` does."""
        self._require_readable(messages, tools, add_generation_prompt=False)
        return self.encode(self.template.render(messages, tools=tools, add_generation_prompt=False))

    def answer(self, answer: str, *, closed: bool = False) -> Ids:
        """Ids of the answer alone, as the template writes it, without the end of the turn or, `closed`, with it."""
        written = self.template.plain(answer)
        return self._turn(written) if closed else self._after(written.prompt, written.turn[: written.answer_end])

    def example(self, messages: Sequence[Message], said: Message, *, tools: Tools = ()) -> tuple[Ids, Ids]:
        """(prefix, turn) of a conversation to learn. Raises InputError where it cannot be learnt as it is: where
        `question` does, and where the template writes the turn otherwise than the model would after the prefix."""
        self._require_readable(messages, tools)
        self._require_plain([said])
        written = self.template.written(messages, said, tools=tools)
        return self.encode(written.prompt), self._turn(written)

    def turn(self, messages: Sequence[Message], said: Message, *, tools: Tools = ()) -> Ids:
        """Ids of the assistant's whole turn after the prefix: its reasoning where the template writes it, its answer,
        and the end-of-turn token, which bears loss too."""
        return self._turn(self.template.written(messages, said, tools=tools))

    def end_of_turn(self, answer: str) -> int:
        """The one added token that closes the assistant's turn; training teaches it and generation stops at it. Blanks
        may stand before it."""
        written = self.template.plain(answer)
        rest = written.turn[written.answer_end :]
        ends = [(t.content, i) for i, t in self._added.items() if t.content and rest.lstrip().startswith(t.content)]
        if not ends:
            raise InputError(
                f"the {self.template.name} template does not close the assistant's turn with a "
                f"special token (after {answer!r} it writes {rest!r})",
                way_out="end the assistant's turn with the model's end-of-turn token, such as <|im_end|>",
            )
        return max(ends, key=lambda end: len(end[0]))[1]

    def control_token(self, messages: Sequence[Message], *, tools: Tools = ()) -> str | None:
        """A control token spelt out in the messages or the tools, which would become its id, or None."""
        texts = [text for m in messages for text in (m.content, m.reasoning_content, m.name, m.tool_call_id) if text]
        texts += [
            json.dumps(used, ensure_ascii=False) for used in (*tools, *(c for m in messages for c in m.tool_calls))
        ]
        return next((n for n in self._control if any(n in text for text in texts)), None)

    def text(self, ids: Sequence[int]) -> str:
        """What the ids spell, control tokens too."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def encode(self, text: str) -> Ids:
        """Ids of a text that is rendered already. Raises InputError for a token that the model has no embedding for."""
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if self.rows is not None and (beyond := max(ids, default=0)) >= self.rows:
            raise InputError(
                f"the {self.template.name}'s token {self.tokenizer.id_to_token(beyond)!r} has the number {beyond}, but "
                f"its embeddings have {self.rows} rows",
                way_out="resize the embeddings (resize_token_embeddings) and save the model, or do without that token",
            )
        return ids

    def _require_plain(self, messages: Sequence[Message], tools: Tools = ()) -> None:
        if token := self.control_token(messages, tools=tools):
            raise InputError(f"it spells the control token {token}", way_out="leave it out")

    def _require_readable(
        self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool = True
    ) -> None:
        self._require_plain(messages, tools)
        if what := self.template.dropped(messages, tools, add_generation_prompt=add_generation_prompt):
            raise InputError(
                f"the {self.template.name} template does not write {what}", way_out="make it, or leave it out"
            )

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return self.tokenizer.get_added_tokens_decoder()

    @cached_property
    def _end(self) -> str:
        return self._added[self.end_of_turn("x")].content

    @cached_property
    def _control(self) -> list[str]:
        """The special tokens, and what ends a turn, which in some tokenizers is not called special."""
        names = dict.fromkeys(t.content for t in self._added.values() if t.special)
        with suppress(InputError):  # who only reads needs no end
            names[self._end] = None
        return list(names)

    def _turn(self, written: Written) -> Ids:
        """Up to the end-of-turn token; what the template writes after it, it writes before the next turn."""
        turn, answer_end = written.turn, written.answer_end
        end = turn.rfind(self._end) if answer_end is None else turn.find(self._end, answer_end)
        if end < 0:
            raise InputError(
                f"the {self.template.name} template does not end a turn with {self._end!r}",
                way_out="close every assistant's turn in the same way",
            )
        return self._after(written.prompt, turn[: end + len(self._end)])

    def _after(self, prompt: str, text: str) -> Ids:
        """Ids of a text that follows the prompt. Tokenizers that begin every text with a blank begin this one without:
        it is encoded with the prompt, or, where the two would grow together, with a line end before it."""
        if not self._begins_with_blank:
            return self.encode(text)
        for before in (prompt, "\n"):
            ids, both = self.encode(before), self.encode(before + text)
            if both[: len(ids)] == ids:
                return both[len(ids) :]
        raise InputError(
            f"the tokenizer of the {self.template.name} joins the answer to the prompt before it",
            way_out="end the template's generation prompt with a control token",
        )

    @cached_property
    def _begins_with_blank(self) -> bool:
        line = self.encode("\n")
        return self.encode("\nx") != (*line, *self.encode("x"))


def choice_ids(codec: Codec, choices: Sequence[str]) -> tuple[Ids, ...]:
    """Ids of every allowed answer. One that begins another is refused: their probabilities would overlap."""
    ids = tuple(codec.answer(choice) for choice in choices)
    for i, one in enumerate(ids):
        for j, other in enumerate(ids):
            if i != j and other[: len(one)] == one:
                raise InputError(
                    f"task.choices: the tokens of '{choices[i]}' begin those of '{choices[j]}'",
                    way_out="choose answers of which none begins another",
                )
    return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizer.json` of a model folder, without the truncation and the padding that it was saved with: they are
    set for each text where they are wanted."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"'{folder}' has no tokenizer.json",
            way_out="give a model folder saved with its fast tokenizer",
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
