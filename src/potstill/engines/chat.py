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


def body_of(constant: Mapping[str, object], asked: Mapping[str, object]) -> dict[str, object]:
    """What is sent: what every request says, and what this one asks. What is constantly None is left out."""
    return {name: value for name, value in {**constant, **asked}.items() if constant.get(name, value) is not None}


def renamed(body: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The same under the names that the server knows."""
    return {names.get(name, name): value for name, value in body.items()}


@dataclass(frozen=True, slots=True)
class Chat:
    """`constant`: what every request says, the model and how it samples (None: left out); `limit`: the field for
    max_tokens."""

    constant: Mapping[str, object]
    limit: str = "max_tokens"
    path: ClassVar[str] = "/chat/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        asked = {
            "messages": [dict(message) for message in ask.messages],
            self.limit: ask.max_tokens,
            "seed": ask.seed,
            **({"tools": [dict(tool) for tool in ask.tools]} if ask.tools else {}),
            **({"n": ask.count} if ask.count > 1 else {}),
        }
        return body_of(self.constant, asked)

    def read(self, raw: bytes) -> Reading:
        return read_openai(raw)


class Continuation(Chat):
    """The same of a prompt that is sent as text, in the model's own template."""

    path: ClassVar[str] = "/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        asked = {"prompt": ask.prompt, self.limit: ask.max_tokens, "seed": ask.seed}
        return body_of(self.constant, {**asked, **({"n": ask.count} if ask.count > 1 else {})})


class Anthropic(Chat):
    """System turns stand in a field of their own; tools are refused before anything is sent."""

    path: ClassVar[str] = "/messages"

    def body(self, ask: Ask) -> dict[str, object]:
        system = [str(m["content"]) for m in ask.messages if m["role"] == "system"]
        turns = [dict(m) for m in ask.messages if m["role"] != "system"]
        asked = {"messages": turns, self.limit: ask.max_tokens}
        return body_of(self.constant, {**asked, **({"system": "\n\n".join(system)} if system else {})})

    def read(self, raw: bytes) -> Reading:
        return read_anthropic(raw)
