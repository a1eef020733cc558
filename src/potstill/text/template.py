"""Chat templates, rendered as transformers renders them (sandboxed Jinja), without importing transformers.

A template is a program that came with a model file, so it runs in Jinja's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potstill.errors import InputError
from potstill.records import Message, Tools
from potstill.text.whole import whole


def _refuse(said: str) -> str:
    raise jinja2.TemplateError(said)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _turn(message: Message) -> dict[str, Any]:
    """The message as templates read it: the arguments of tool calls as values, where they are JSON."""
    turn: dict[str, Any] = message.as_dict()
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        with suppress(ValueError):  # what the model wrote may be no JSON: it stays the text that it was
            call["function"] = {**function, "arguments": json.loads(function["arguments"])}
    return turn


class Template:
    """A compiled chat template. Raises InputError where it does not parse or refuses the messages."""

    def __init__(self, source: str, *, name: str, tokens: dict[str, str] | None = None) -> None:
        self.source = source
        self.name = name
        self._tokens = tokens or {}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportArgumentType]
        try:
            self._compiled = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the {name} template does not parse at its line {error.lineno}: {error.message}",
                way_out="fix the template",
            ) from None

    def render(self, messages: Sequence[Message], *, tools: Tools = (), add_generation_prompt: bool) -> str:
        """The text that the model reads."""
        try:
            rendered = self._compiled.render(
                messages=[_turn(message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"the {self.name} template refuses these messages: {error}",
                way_out="fix the template or the prompts",
            ) from None
        return whole(rendered)  # the arguments of a tool call may spell half of a pair

    def dropped(self, messages: Sequence[Message], tools: Tools = ()) -> str | None:
        """What of a conversation the template would not write, of tools and their calls; None where it writes all."""
        if not tools and not any(message.tool_calls for message in messages):
            return None
        written = self.render(messages, tools=tools, add_generation_prompt=False)
        if tools and self.render(messages, add_generation_prompt=False) == written:
            return "tools"
        for at, message in enumerate(messages):
            if message.tool_calls:
                without = [*messages[:at], replace(message, tool_calls=()), *messages[at + 1 :]]
                if self.render(without, tools=tools, add_generation_prompt=False) == written:
                    return "tool calls"
        return None

    def completion(self, messages: Sequence[Message], said: Message, *, tools: Tools = ()) -> str:
        """What the template writes after the generation prompt when the assistant says `said`, its end included.

        The generation prompt must be a prefix of the finished conversation; else training and generation would see
        different tokens, and that is refused. So is a template that leaves the reasoning out.
        """
        prefix = self.render(messages, tools=tools, add_generation_prompt=True)
        finished = self.render([*messages, said], tools=tools, add_generation_prompt=False)
        if not finished.startswith(prefix) or said.content not in finished[len(prefix) :]:
            raise InputError(
                f"the {self.name} template does not round-trip: the conversation with the answer "
                f"{said.content!r} does not begin with the generation prompt",
                way_out="make the template write the assistant's turn as generation prompt + answer + end",
            )
        if said.reasoning_content and said.reasoning_content not in finished[len(prefix) :]:
            raise InputError(
                f"the {self.name} template does not write the assistant's reasoning (message.reasoning_content)",
                way_out="make it, or learn the answers alone (train.learn: answer)",
            )
        return finished[len(prefix) :]
