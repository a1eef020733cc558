"""Chat templates, rendered as transformers renders them (sandboxed Jinja), without importing transformers.

A template is a program that came with a model file, so it runs in Jinja's immutable sandbox. One that asks for today's
date is told the day on which its run began, for ever: the student's prompts, and all that is kept of them, must not
change over night.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from potstill.errors import InputError
from potstill.records import Message, Tools
from potstill.text.whole import whole

_DAY: ContextVar[date | None] = ContextVar("day", default=None)
_DIRECTIVES = (*"FTDRaAbBdemyYjuwHIMSpcxX", *(f"-{letter}" for letter in "dmHIMSj"))
_OPENED = re.compile(r"<(think|thinking|thought|reasoning)>\s*(</\1>\s*)?$")
_REFUSALS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template raises that cannot write some messages; most but the first are mistakes of its author."""
_ASKED = (Message(role="user", content="x"),)
_MARK = "0x5e1f7a"  # an answer that no template writes by itself


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says; what is in it is written as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Names(Namespace):
    """Jinja's `namespace` without attributes that lead into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


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


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [_Generation, jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportArgumentType]
    environment.globals["namespace"] = _Names
    return environment


_JINJA = _environment()


@contextmanager
def day(told: date) -> Generator[None]:
    """What `strftime_now` says in the templates that are made inside, in this thread and its asyncio tasks."""
    token = _DAY.set(told)
    try:
        yield
    finally:
        _DAY.reset(token)


def today() -> date:
    """Here, not in Greenwich."""
    return datetime.now(UTC).astimezone().date()


def dated(source: str) -> str:
    """The same template with a `strftime_now` of its own, which knows one day alone: whoever renders a saved student's
    template writes what the student was trained on."""
    if "strftime_now" not in source or "macro strftime_now" in source:
        return source
    then = datetime.combine(_DAY.get() or today(), time(), UTC)
    said = "".join(f"|replace('%{d}', '{then.strftime('%' + d)}')" for d in _DIRECTIVES)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{said} }}}}{{%- endmacro %}}\n{source}"


def variables(source: str) -> set[str]:
    """The names that a template takes from outside, none where it does not parse."""
    with suppress(jinja2.TemplateSyntaxError):
        return jinja2.meta.find_undeclared_variables(_JINJA.parse(source))
    return set()


def _turn(message: Message) -> dict[str, Any]:
    """The message as templates read it: the arguments of tool calls as values, where they are JSON, and the reasoning
    under both of the names that templates know."""
    turn: dict[str, Any] = message.as_dict()
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        with suppress(ValueError):  # what the model wrote may be no JSON: it stays the text that it was
            call["function"] = {**function, "arguments": json.loads(function["arguments"])}
    return turn if message.reasoning_content is None else {"thinking": message.reasoning_content, **turn}


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation that ends in an answer to learn: what the model reads, the generation prompt at its end; the
    assistant's turn after that; and where in it the answer ends, None where calls of tools may follow it."""

    prompt: str
    turn: str
    answer_end: int | None


class Template:
    """A compiled chat template, or two: some models have another for conversations with tools. Raises InputError where
    one does not parse or refuses the messages."""

    def __init__(
        self, source: str, *, name: str, tokens: dict[str, str] | None = None, tool_use: str | None = None
    ) -> None:
        self.source = dated(source)
        self.tool_use = None if tool_use is None else dated(tool_use)
        self.name = name
        self._tokens = tokens or {}
        self._compiled = self._compile(self.source)
        self._with_tools = self._compiled if self.tool_use is None else self._compile(self.tool_use)

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return _JINJA.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the {self.name} template does not parse at its line {error.lineno}: {error.message}",
                way_out="fix the template",
            ) from None

    @property
    def saved(self) -> str | dict[str, str]:
        """As transformers' tokenizers keep it."""
        return self.source if self.tool_use is None else {"default": self.source, "tool_use": self.tool_use}

    def render(self, messages: Sequence[Message], *, tools: Tools = (), add_generation_prompt: bool) -> str:
        """The text that the model reads."""
        compiled = self._with_tools if tools else self._compiled
        return self._render(compiled, messages, tools, add_generation_prompt=add_generation_prompt)

    def _render(
        self, compiled: jinja2.Template, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool
    ) -> str:
        try:
            rendered = compiled.render(
                messages=[_turn(message) for message in messages],
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except _REFUSALS as error:
            raise InputError(
                f"the {self.name} template refuses these messages: {error}",
                way_out="fix the template or the prompts",
            ) from None
        return whole(rendered)  # the arguments of a tool call may spell half of a pair

    def dropped(
        self, messages: Sequence[Message], tools: Tools = (), *, add_generation_prompt: bool = True
    ) -> str | None:
        """What of a conversation the template would not write: tools, their calls, or what somebody else than the
        assistant says. None where it writes all."""
        compiled = self._with_tools if tools else self._compiled
        written = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

        def alike(some: Sequence[Message], tools: Tools) -> bool:
            with suppress(InputError):
                return self._render(compiled, some, tools, add_generation_prompt=add_generation_prompt) == written
            return False

        if tools and alike(messages, ()):
            return "tools"
        for at, message in enumerate(messages):
            if message.tool_calls:
                what, other = "tool calls", replace(message, tool_calls=())
            elif message.role != "assistant" and message.content.strip() not in written:  # or in another way
                what, other = f"what the role '{message.role}' says", replace(message, content=_MARK)
            else:
                continue
            if alike([*messages[:at], other, *messages[at + 1 :]], tools):
                return what
        return None

    def written(self, messages: Sequence[Message], said: Message, *, tools: Tools = ()) -> Written:
        """What the template makes of a conversation in which the assistant says `said` at last, its end included.

        The turn must be what the model would write after the generation prompt; else training and generation would see
        different tokens, and that is refused. So is a template that changes the answer, but for blanks around it, or
        leaves the reasoning out.
        """
        prompt, turn = self._split(messages, said, tools)
        if said.reasoning_content and said.reasoning_content.strip() not in turn:
            raise InputError(
                f"the {self.name} template does not write the assistant's reasoning (message.reasoning_content)",
                way_out="make it, or learn the answers alone (train.learn: answer)",
            )
        if said.tool_calls:  # which stand where they like, and may have an end of their own
            if self._turn_of(messages, replace(said, tool_calls=()), tools) == turn:
                raise InputError(
                    f"the {self.name} template does not write tool calls", way_out="make it, or leave them out"
                )
            if said.content.strip() in turn:
                return Written(prompt, turn, None)
        elif turn.endswith(self._closing):
            answer_end = len(turn) - len(self._closing)
            if turn[:answer_end].rstrip().endswith(said.content.strip()):
                return Written(prompt, turn, answer_end)
        raise InputError(
            f"the {self.name} template does not write the answer as it is",
            way_out="make it write the answer whole, and close every assistant's turn in the same way",
        )

    def plain(self, answer: str) -> Written:
        """An answer to a plain question."""
        return self.written(_ASKED, Message(role="assistant", content=answer))

    def _turn_of(self, messages: Sequence[Message], said: Message, tools: Tools) -> str | None:
        """None where the template refuses that."""
        with suppress(InputError):
            return self._split(messages, said, tools)[1]
        return None

    def require_end(self) -> None:
        """Raises InputError for a template that no student can learn with: it does not round-trip, or writes nothing
        after an answer."""
        if not self._closing.strip():
            raise InputError(
                f"the {self.name} template does not close the assistant's turn: after an answer it writes "
                f"{self._closing!r}",
                way_out="end the assistant's turn with the model's end-of-turn token, such as <|im_end|>",
            )

    @cached_property
    def _closing(self) -> str:
        """What follows an answer."""
        _, turn = self._split(_ASKED, Message(role="assistant", content=_MARK), ())
        return turn.partition(_MARK)[2]

    def _split(self, messages: Sequence[Message], said: Message, tools: Tools) -> tuple[str, str]:
        """The prompt, and the turn after it. Some templates write earlier turns in another way once they are answered:
        their turn is the one of a plain question, where the conversation ends in that too."""
        prompt = self.render(messages, tools=tools, add_generation_prompt=True)
        finished = self.render([*messages, said], tools=tools, add_generation_prompt=False)
        if (turn := _after(prompt, finished, said)) is not None:
            return prompt, turn
        plain = self.render(_ASKED, tools=tools, add_generation_prompt=True)
        begins = plain.removeprefix(self.render(_ASKED, tools=tools, add_generation_prompt=False))
        turn = _after(plain, self.render([*_ASKED, said], tools=tools, add_generation_prompt=False), said)
        if turn and finished.endswith(turn) and prompt.endswith(begins):
            return prompt, turn
        raise InputError(
            f"the {self.name} template does not round-trip: the conversation with the answer does not begin with the "
            "generation prompt",
            way_out="make the template write the assistant's turn as generation prompt + answer + end",
        )


def _after(prompt: str, finished: str, said: Message) -> str | None:
    """What the finished conversation has after the generation prompt; None where it does not begin with that. Where
    the prompt opens the reasoning, which the finished conversation leaves out, the turn closes it first."""
    if finished.startswith(prompt):
        return finished[len(prompt) :]
    if not (opened := _OPENED.search(prompt)) or not finished.startswith(prompt[: opened.start()]):
        return None
    tag, closed = opened.groups()
    turn = finished[opened.start() :]
    if turn.lstrip().startswith(f"<{tag}>"):
        return None  # it is written, but in another way
    begin = "" if prompt.endswith("\n") else "\n"
    return turn if closed else f"{begin}{said.reasoning_content or ''}\n</{tag}>\n\n{turn}"
