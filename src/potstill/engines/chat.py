"""What goes on the wire where texts are asked for: OpenAI's chats or continuations, or Anthropic's messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from potstill.engines.reply import read_anthropic, read_openai
from potstill.engines.sampler import Ask, Reading


class Form(Protocol):
    """A way of asking: where it is sent, what is sent, and what the reply says."""

    path: ClassVar[str]

    def body(self, ask: Ask) -> dict[str, object]: ...

    def read(self, raw: bytes) -> Reading:
        """Raises Failure. Needs nothing but the reply."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """`constant`: what every request says, the model and how it samples; `limit`: the field for max_tokens."""

    constant: Mapping[str, object]
    limit: str = "max_tokens"
    path: ClassVar[str] = "/chat/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        return {
            **self.constant,
            "messages": [dict(message) for message in ask.messages],
            self.limit: ask.max_tokens,
            "seed": ask.seed,
            **({"tools": [dict(tool) for tool in ask.tools]} if ask.tools else {}),
            **({"n": ask.count} if ask.count > 1 else {}),
        }

    def read(self, raw: bytes) -> Reading:
        return read_openai(raw)


class Continuation(Chat):
    """The same of a prompt that is sent as text, in the model's own template."""

    path: ClassVar[str] = "/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        several = {"n": ask.count} if ask.count > 1 else {}
        return {**self.constant, "prompt": ask.prompt, self.limit: ask.max_tokens, "seed": ask.seed, **several}


class Anthropic(Chat):
    """System turns stand in a field of their own; tools are refused before anything is sent."""

    path: ClassVar[str] = "/messages"

    def body(self, ask: Ask) -> dict[str, object]:
        system = [str(m["content"]) for m in ask.messages if m["role"] == "system"]
        turns = [dict(m) for m in ask.messages if m["role"] != "system"]
        body = {**self.constant, "messages": turns, self.limit: ask.max_tokens}
        return {**body, **({"system": "\n\n".join(system)} if system else {})}

    def read(self, raw: bytes) -> Reading:
        return read_anthropic(raw)
