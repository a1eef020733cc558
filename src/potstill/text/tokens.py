"""Token ids of prompts and answers.

The prefix (everything up to the answer) and the answer are tokenised apart and joined, so the training prefix equals
`apply_chat_template(messages, add_generation_prompt=True)` token for token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from potstill.errors import InputError
from potstill.records import Message, Tools
from potstill.text.template import Template

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """A tokenizer and a template: what one model reads and writes."""

    tokenizer: Tokenizer
    template: Template

    @property
    def vocabulary(self) -> int:
        """One more than the greatest id that stands for something; heads are often padded beyond it."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def prefix(self, messages: Sequence[Message], *, tools: Tools = ()) -> Ids:
        """Ids of the rendered messages with the generation prompt."""
        return self._encode(self.template.render(messages, tools=tools, add_generation_prompt=True))

    def conversation(self, messages: Sequence[Message], *, tools: Tools = ()) -> Ids:
        """Ids of the finished conversation, without a generation prompt."""
        return self._encode(self.template.render(messages, tools=tools, add_generation_prompt=False))

    def answer(self, answer: str) -> Ids:
        """Ids of the answer alone, as the template writes it, without the end of the turn."""
        written = self.template.completion(_ASKED, Message(role="assistant", content=answer))
        return self._encode(written[: written.index(answer) + len(answer)])

    def turn(self, messages: Sequence[Message], said: Message, *, tools: Tools = ()) -> Ids:
        """Ids of the assistant's whole turn after the prefix: its reasoning where the template writes it, its answer,
        and the end-of-turn token, which bears loss too."""
        ids = self._encode(self.template.completion(messages, said, tools=tools))
        end = self.end_of_turn("x")
        last = max((i for i, token in enumerate(ids) if token == end), default=-1)
        if last < 0:
            raise InputError(
                f"the {self.template.name} template does not end a turn with {self.tokenizer.id_to_token(end)!r}",
                way_out="close every assistant's turn in the same way",
            )
        return ids[: last + 1]

    def end_of_turn(self, answer: str) -> int:
        """The one special token that closes the assistant's turn; training teaches it and generation stops at it."""
        written = self.template.completion(_ASKED, Message(role="assistant", content=answer))
        rest = self._encode(written[written.index(answer) + len(answer) :])
        special = {i for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}
        if not rest or rest[0] not in special:
            raise InputError(
                f"the {self.template.name} template does not close the assistant's turn with a "
                f"special token (after {answer!r} it writes {written[written.index(answer) + len(answer) :]!r})",
                way_out="end the assistant's turn with the model's end-of-turn token, such as <|im_end|>",
            )
        return rest[0]

    def control_token(self, messages: Sequence[Message], *, tools: Tools = ()) -> str | None:
        """A special token spelt out in the messages or the tools, which would become a control id, or None."""
        names = [t.content for t in self.tokenizer.get_added_tokens_decoder().values() if t.special]
        texts = [text for m in messages for text in (m.content, m.reasoning_content, m.name, m.tool_call_id) if text]
        texts += [
            json.dumps(used, ensure_ascii=False) for used in (*tools, *(c for m in messages for c in m.tool_calls))
        ]
        return next((n for n in names if any(n in text for text in texts)), None)

    def text(self, ids: Sequence[int]) -> str:
        """What the ids spell, control tokens too."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _encode(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)


_ASKED = (Message(role="user", content="x"),)


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
    """The `tokenizer.json` of a model folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"'{folder}' has no tokenizer.json",
            way_out="give a model folder saved with its fast tokenizer",
        )
    return Tokenizer.from_file(str(path))
